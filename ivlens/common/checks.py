"""Checks of counts and paths among options, made when the options are; their kinds are checked by `arguments`."""

from pathlib import Path
from typing import Any

from ivlens.common.fitting import NOT_FITTING, fit

MOST = 2**53  # beyond it a float does not hold every whole number
_LONGEST_PATH, _LONGEST_NAME = 4096, 255  # on most systems


def check_counts(options: Any, **least: int) -> None:
    """Refuse counts among a dataclass's options that are no whole numbers or too small; those of numpy become plain.

    Args:
        options: Whose attributes they are; one that is None passes.
        least: The smallest that each may be, by name.

    Raises:
        ValueError: one of them is not.
    """
    for name, smallest in least.items():
        value = getattr(options, name)
        count = check_count(name, value, smallest)
        if count is not value:
            object.__setattr__(options, name, count)


def check_count(name: str, value: Any, smallest: int, largest: int = MOST) -> int | None:
    """As `check_counts`, for one value and the name a reader knows it by; the plain number."""
    count = fit(value, int | None)
    if count is not None and (count is NOT_FITTING or not smallest <= count <= largest):
        most = "or more" if largest == MOST else f"to {largest:,}"
        raise ValueError(f"{name} is {value!r:.60}, expected a whole number, {smallest} {most}.")
    return count


def check_path(name: str, path: str | Path) -> Path:
    """The path, if there can be such a one.

    Raises:
        ValueError: it is empty, longer than paths can be, or has a NUL in it.
    """
    text = str(path)
    longest = max(len(part.encode("utf-8", "replace")) for part in text.split("/"))
    if not text.strip() or "\0" in text or longest > _LONGEST_NAME or len(text) > _LONGEST_PATH:
        raise ValueError(f"{name} is {text!r:.60}, expected the path of a file or folder; check it.")
    return Path(path)
