"""What the words of a command line may be, before any command sees them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

_WHOLE = re.compile(r"[+-]?[0-9]+")
_MOST = 2**53  # beyond it a number in JSON is another one


def converted(kind: Any, tokens: Sequence[Any]) -> Any:
    """The value of an option, as its type says.

    Raises:
        ValueError: a number that is not whole where one is expected (cyclopts would round it), or an empty path.
    """
    from cyclopts import convert

    kinds = {kind, *get_args(kind)}
    for token in tokens:
        name, value = token.keyword or "the argument", token.value
        if int in kinds and not _is_whole(value):
            raise ValueError(f"{name} is {value!r:.60}, expected a whole number below 2^53.")
        if Path in kinds and (not value.strip() or "\0" in value):
            raise ValueError(f"{name} is {value!r:.60}, expected a path.")
    return convert(kind, tokens)


def _is_whole(value: str) -> bool:
    return _WHOLE.fullmatch(value) is not None and len(value) < 20 and abs(int(value)) < _MOST
