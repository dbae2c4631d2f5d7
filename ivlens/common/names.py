"""Names, paths and errors as they are shown: what would make a terminal do something is escaped."""

import os
import re
from pathlib import Path
from typing import Any

_LONGEST_PATH, _LONGEST_NAME = 4096, 255  # on most systems
# control characters (with ESC, backspace and line ends), marks that turn the direction of writing, halves of surrogates
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: object, keep: str = "") -> str:
    r"""`text` with its control characters written out (`\x1b`), but for those to keep."""
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else _written_out(found[0]), str(text))


def set_shown(made: Any, *names: str) -> None:
    """`shown` for names among the fields of a frozen dataclass, as it is made."""
    for name in names:
        object.__setattr__(made, name, shown(getattr(made, name)))


def _written_out(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode()


def one_line(error: BaseException, most: int = 300) -> str:
    """What an error says, in one line of at most so many letters; its kind, where it says nothing."""
    return (" ".join(str(error).split()) or type(error).__name__)[:most]


def can_be_path(text: str) -> bool:
    """Whether a system would take it for a path: not empty, not too long, nor any part of it, and without a NUL."""
    longest = max(len(part.encode("utf-8", "replace")) for part in text.split("/"))
    return bool(text.strip()) and "\0" not in text and longest <= _LONGEST_NAME and len(text) <= _LONGEST_PATH


def path_of(given: str | os.PathLike[str], what: str = "path") -> Path:
    """`given` as a path.

    Raises:
        ValueError: an empty text, which would be the working directory (an unset variable leaves one); longer than
            paths can be, or with a NUL in it.
    """
    text = os.fspath(given)
    if not can_be_path(text):
        raise ValueError(
            f"{what} is {text!r:.60}, expected the path of a file or folder; '.' is the working directory."
        )
    return Path(text)
