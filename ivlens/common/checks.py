"""Checks that many options share: counts, lists in which a text is one item, and texts that must not be empty.

Types of arguments are checked in `arguments`.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ivlens.common.arguments import briefly
from ivlens.common.fitting import NOT_FITTING, fit

if TYPE_CHECKING:
    Texts = tuple[str, ...]
else:  # at run time: what callers may give; `set_items` turns it into a tuple
    Texts = str | Iterable[str]

MOST = 2**53  # above it a float, and so a number in JSON, cannot hold every whole number


def check_counts(options: Any, **least: int) -> None:
    """Check that fields of an options object are whole numbers and large enough; numbers of numpy become plain ones.

    Args:
        options: The dataclass that has the fields; a field that is None passes.
        least: The smallest value of each field, by its name.

    Raises:
        ValueError: a field is no whole number, or too small.
    """
    for name, smallest in least.items():
        value = getattr(options, name)
        count = check_count(name, value, smallest)
        if count is not value:
            object.__setattr__(options, name, count)


def check_count(name: str, value: Any, smallest: int, largest: int = MOST) -> int | None:
    """Check one whole number, and return it as a plain int; None passes.

    Args:
        name: What the error calls the number.
        value: The number, which may be one of numpy or torch.
        smallest: The smallest value that is allowed.
        largest: The largest value that is allowed.

    Raises:
        ValueError: no whole number, too small, or too large.
    """
    count = fit(value, int | None)
    if count is not None and (count is NOT_FITTING or not smallest <= count <= largest):
        most = "or more" if largest == MOST else f"to {largest:,}"
        raise ValueError(f"{name} is {value!r:.60}, expected a whole number, {smallest} {most}.")
    return count


def as_items(name: str, given: Any, kind: type | tuple[type, ...] = str, *, meant: str = "") -> tuple[Any, ...]:
    """`given` as a tuple of items; a single item becomes a tuple of one, so that a text is never split into letters.

    Args:
        name: What the error calls `given`.
        given: An item, or any iterable of items.
        kind: The type of an item, or several types.
        meant: The error's remedy: how to make an item, for callers who gave its name instead.

    Raises:
        TypeError: `given` is neither an item nor an iterable, or one of its items is something else.
    """
    if isinstance(given, kind):
        return (given,)
    is_list = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping)
    is_list = is_list and getattr(given, "ndim", 1) != 0  # one number of numpy or torch has no items
    items = tuple(given) if is_list else (given,)
    wrong = [item for item in items if not isinstance(item, kind)]
    if wrong or not is_list:
        kinds = " or ".join(
            "text" if each is str else each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,))
        )
        remedy = f"; {meant}" if meant else ""
        raise TypeError(f"{name}: got {briefly(wrong[0])}, expected one {kinds}, or several in a list{remedy}.")
    return items


def set_items(options: Any, *names: str, kind: type | tuple[type, ...] = str, meant: str = "") -> None:
    """Turn fields of a frozen dataclass into tuples (`as_items`) while it is created; None stays None."""
    for name in names:
        if (value := getattr(options, name)) is not None:
            object.__setattr__(options, name, as_items(f"{type(options).__name__}.{name}", value, kind, meant=meant))


def check_filled(**given: object) -> None:
    """Refuse options that are empty texts.

    An unset shell variable leaves an empty text, which must not stand for the default.

    Raises:
        ValueError: a text is empty, or white space alone.
    """
    for name, value in given.items():
        if isinstance(value, str) and not value.strip():
            raise ValueError(
                f"{name} is {value!r}, expected a text that says something; leave {name} out for the default."
            )
