"""The key of a result, made from everything that the result depends on; it is the same on any machine."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from typing import Any

from ivlens.common.version import __version__

KEY = re.compile(r"[0-9a-f]{64}")


def versions() -> dict[str, str]:
    """Versions of ivlens, torch and transformers: every result depends on them."""
    return {"ivlens": __version__, "torch": _version_of("torch"), "transformers": _version_of("transformers")}


@lru_cache(maxsize=2)
def _version_of(package: str) -> str:
    return version(package)  # cached, because it reads a file, and a sweep asks for every one of thousands of cells


def canonical(value: Any) -> str:
    """A value as JSON text; equal values give the same text, whatever the order of their dicts.

    Raises:
        ValueError: the value holds something that JSON cannot, NaN included.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the description of a result holds what JSON cannot ({error}), expected plain numbers, texts, lists and "
            "dicts with text keys; convert it."
        ) from None


def content_key(what: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the description of a result, which names everything that the result depends on."""
    return sha256(canonical(what).encode()).hexdigest()
