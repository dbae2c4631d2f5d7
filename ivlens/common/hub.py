"""Whether the Hugging Face Hub answers, so that a machine without a network gets one clear error within seconds."""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

_GUARD = threading.Lock()
_ENTERED: list[bool] = []  # the user's own setting, once for every block that is open


def hub_answers(timeout: float = 3.0) -> bool:
    """Whether a connection to the Hub can be opened; behind a proxy that is left to the proxy to say."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(constants.ENDPOINT)
    if address.scheme in getproxies():
        return True
    try:
        socket.create_connection(
            (address.hostname or "", address.port or (80 if address.scheme == "http" else 443)), timeout
        ).close()
    except OSError:
        return False
    return True


@contextmanager
def without_retries() -> Iterator[None]:
    """Where the Hub does not answer, let its clients look into their cache only, for the duration of the block.

    They would otherwise retry for half a minute with a warning each time. The switch is theirs (`HF_HUB_OFFLINE`) and
    is global, so it is turned back when the last of several blocks, of any thread, ends.
    """
    from huggingface_hub import constants

    answers = hub_answers()
    with _GUARD:
        own = _ENTERED[0] if _ENTERED else constants.HF_HUB_OFFLINE
        _ENTERED.append(own)
        if not answers:
            _switch(True)
    try:
        yield
    finally:
        with _GUARD:
            _ENTERED.pop()
            if not _ENTERED:
                _switch(own)


def _switch(offline: bool) -> None:
    from huggingface_hub import constants

    # `datasets` keeps a copy of the switch; imported later, it will read the original
    switches: list[Any] = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    for switch in switches:
        switch.HF_HUB_OFFLINE = offline
