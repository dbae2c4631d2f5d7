"""Checks of the values on a command line, before any command sees them."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from ivlens.common.checks import MOST
from ivlens.common.names import can_be_path

_WHOLE = re.compile(r"[+-]?[0-9]+")
_MOST_COUNTED = 10**6  # prompts, steps, threads: more would fill the memory before anything is measured
_SIGNED = {"--seed", "--sign", "--layer"}  # all other whole numbers are counts; layers are checked with the model


def converted(kind: Any, tokens: Sequence[Any]) -> Any:
    """The value of an option, converted to the option's type.

    Raises:
        ValueError: a number that is not whole where the option takes whole numbers (cyclopts would round it), that is
            negative where it takes counts, or that is not finite; or a text that cannot be a path.
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
    """What an option expects, if the value is something else; empty if the value fits the option's type."""
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
    """Whether Python can read the text as a number."""
    try:
        float(value)
    except ValueError:
        return False
    return True
