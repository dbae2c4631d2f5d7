"""What a result is made of, as one key: the same content, the same key, on any machine."""

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

KEY = re.compile(r"[0-9a-f]{64}")


def canonical(value: Any) -> str:
    """JSON that is the same text for the same content.

    Raises:
        ValueError: something that JSON cannot hold, NaN included.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the description of a result holds what JSON cannot ({error}), expected plain numbers, texts, lists and "
            "dicts with text keys; convert it."
        ) from None


def content_key(what: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of everything that a result depends on."""
    return sha256(canonical(what).encode()).hexdigest()
