"""What the words of a command line may be, before any command sees them."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from ivlens.common.checks import MOST
from ivlens.common.names import can_be_path

_WHOLE = re.compile(r"[+-]?[0-9]+")
_MOST_COUNTED = 10**6  # of prompts, steps, threads: what is listed or started before anything is measured
_SIGNED = {"--seed", "--sign", "--layer"}  # all other whole numbers are counts; of layers the model says which it has


def converted(kind: Any, tokens: Sequence[Any]) -> Any:
    """The value of an option, as its type says.

    Raises:
        ValueError: a number that is not whole (cyclopts would round it), negative or not finite where none can be
            meant, or an empty path.
    """
    from cyclopts import convert

    kinds = {kind, *get_args(kind)}
    for token in tokens:
        expected = _expected(kinds, token.keyword or "", token.value)
        if expected:
            value = repr(token.value) if Path in kinds else token.value
            raise ValueError(f"{token.keyword or 'the argument'} is {value:.60}, expected {expected}.")
    return convert(kind, tokens)


def _expected(kinds: set[Any], name: str, value: str) -> str:
    """What an option takes, where it is given something else; empty where nothing is wrong that can be told here."""
    if Path in kinds and not can_be_path(value):
        return "a path"
    if int in kinds:
        if _WHOLE.fullmatch(value) is None or len(value) > 20 or abs(int(value)) >= MOST:
            return "a whole number below 2^53"
        if name not in _SIGNED and not 0 <= int(value) <= _MOST_COUNTED:
            return "0 or more" if int(value) < 0 else f"at most {_MOST_COUNTED:,}"
    if float in kinds and not (_is_text_of_number(value) and math.isfinite(float(value))):
        return "a finite number"
    return ""


def _is_text_of_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
