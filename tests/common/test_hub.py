import socket
from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from ivlens.common.hub import hub_answers, without_retries


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A Hub on this machine, and no proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield server


def test_a_listening_hub_answers(endpoint: socket.socket) -> None:
    assert hub_answers()
    with without_retries():
        assert not constants.HF_HUB_OFFLINE


def test_a_silent_hub_turns_the_clients_offline_for_the_block(endpoint: socket.socket) -> None:
    endpoint.close()
    assert not hub_answers()
    with pytest.raises(KeyError), without_retries():
        assert constants.HF_HUB_OFFLINE
        raise KeyError
    assert not constants.HF_HUB_OFFLINE


def test_a_proxy_is_left_to_say(endpoint: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.close()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert hub_answers()


def test_the_users_own_switch_is_kept(endpoint: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub_answers()
    with without_retries():
        assert constants.HF_HUB_OFFLINE
    assert constants.HF_HUB_OFFLINE


def test_blocks_that_overlap_leave_the_switch_as_it_was(endpoint: socket.socket) -> None:
    endpoint.close()
    first, second = without_retries(), without_retries()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert constants.HF_HUB_OFFLINE  # the second still needs it
    second.__exit__(None, None, None)
    assert not constants.HF_HUB_OFFLINE
