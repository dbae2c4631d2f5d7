"""One check for counts among options, made when the options are."""

from typing import Any


def check_counts(options: Any, **least: int) -> None:
    """Refuse counts among a dataclass's options that are no whole numbers or too small.

    Args:
        options: Whose attributes they are; one that is None passes.
        least: The smallest that each may be, by name.

    Raises:
        ValueError: one of them is not.
    """
    for name, smallest in least.items():
        check_count(name, getattr(options, name), smallest)


def check_count(name: str, value: Any, smallest: int) -> None:
    """As `check_counts`, for one value and the name a reader knows it by."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not smallest <= value < 2**53):
        raise ValueError(f"{name} is {value!r}, expected a whole number, {smallest} or more.")
