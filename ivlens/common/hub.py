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
_ENTERED: list[bool] = []  # the user's setting of the switch, once for every open block of `without_retries`


def hub_answers(timeout: float = 3.0) -> bool:
    """Whether a connection to the Hub can be opened; True behind a proxy, which reports failures itself."""
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
    """While the body runs, keep the Hub's client libraries to their local cache if the Hub does not answer.

    Otherwise they retry for half a minute, with a warning each time. Their switch (`HF_HUB_OFFLINE`) is global, so
    it is turned back when the last open block, of any thread, ends.
    """
    from huggingface_hub import constants

    answers = hub_answers()
    with _GUARD:
        # a second block would see the switch as the first one left it, not as the user set it
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
    """Set `HF_HUB_OFFLINE` for every imported library that reads it."""
    from huggingface_hub import constants

    # `datasets` keeps a copy of the switch; imported later, it will read the original
    switches: list[Any] = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    for switch in switches:
        switch.HF_HUB_OFFLINE = offline
