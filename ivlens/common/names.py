"""Names, paths and errors made safe to show: characters that control a terminal are escaped; checks of paths."""

import os
import re
from pathlib import Path
from typing import Any

_LONGEST_PATH, _LONGEST_NAME = 4096, 255  # letters of a path, bytes of one name in it, on most systems
# control characters (ESC, backspace and line ends, too), marks that change the direction of writing, half surrogates
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: object, keep: str = "") -> str:
    r"""`text` with its control characters written out (`\x1b`), except those in `keep`."""
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else _written_out(found[0]), str(text))


def set_shown(made: Any, *names: str) -> None:
    """Escape control characters (`shown`) in fields of a frozen dataclass while it is created."""
    for name in names:
        object.__setattr__(made, name, shown(getattr(made, name)))


def _written_out(letter: str) -> str:
    """A character as Python writes it in a string, such as a backslash and `n` for a line end."""
    return letter.encode("unicode_escape", "surrogatepass").decode()


def one_line(error: BaseException, most: int = 300) -> str:
    """An error's message in one line of at most `most` letters; the name of its class where it has none."""
    return (" ".join(str(error).split()) or type(error).__name__)[:most]


def can_be_path(text: str) -> bool:
    """Whether a text can be a path: it is not empty, has no NUL, and neither it nor a name in it is too long."""
    longest = max(len(part.encode("utf-8", "replace")) for part in text.split("/"))
    return bool(text.strip()) and "\0" not in text and longest <= _LONGEST_NAME and len(text) <= _LONGEST_PATH


def expanded(given: str | os.PathLike[str]) -> Path:
    """A path with the home folder in the place of `~`; where there is no such user, the path as it is.

    `Path.expanduser` raises a RuntimeError for a user that does not exist.
    """
    return Path(os.path.expanduser(os.fspath(given)))


def path_of(given: str | os.PathLike[str], what: str = "path") -> Path:
    """`given` as a `Path`.

    An empty text, which an unset shell variable leaves, would mean the working directory, and is refused.

    Raises:
        ValueError: the text is empty, longer than paths can be, or has a NUL in it.
    """
    text = os.fspath(given)
    if not can_be_path(text):
        raise ValueError(
            f"{what} is {text!r:.60}, expected the path of a file or folder; '.' is the working directory."
        )
    return Path(text)
