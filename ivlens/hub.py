"""Whether the Hugging Face Hub answers, so that a machine without a network gets one clear error within seconds."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies


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
    is global, so it is turned back at the end.
    """
    from huggingface_hub import constants

    # `datasets` keeps a copy of the switch; unimported, it will read the original.
    switches: list[Any] = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    if not hub_answers():
        for switch in switches:
            switch.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = value
