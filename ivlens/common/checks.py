"""Checks that many options share, made when the options are: counts, and lists in which a text is one item.

Kinds of arguments are checked by `arguments`.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ivlens.common.arguments import briefly
from ivlens.common.fitting import NOT_FITTING, fit

if TYPE_CHECKING:
    Texts = tuple[str, ...]
else:  # what may be given; `set_items` makes it a tuple
    Texts = str | Iterable[str]

MOST = 2**53  # beyond it a float, and a number in JSON, does not hold every whole number


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


def as_items(name: str, given: Any, kind: type | tuple[type, ...] = str, *, meant: str = "") -> tuple[Any, ...]:
    """`given` as a tuple of items; what is an item itself is one, so that a text never falls apart into letters.

    Args:
        name: What a reader knows it by.
        given: An item, or any iterable of items.
        kind: What an item is.
        meant: How to make one, where a text stands in the place of something else.

    Raises:
        TypeError: something else, or among the items.
    """
    if isinstance(given, kind):
        return (given,)
    is_list = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping)
    is_list = is_list and getattr(given, "ndim", 1) != 0  # a number of numpy or torch has no items
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
    """`as_items` for fields of a frozen dataclass, as they are made; one that is None stays."""
    for name in names:
        if (value := getattr(options, name)) is not None:
            object.__setattr__(options, name, as_items(f"{type(options).__name__}.{name}", value, kind, meant=meant))


def check_filled(**given: object) -> None:
    """Refuse empty texts among options: an unset variable leaves one, and it must not stand for a default.

    Raises:
        ValueError: one of them is.
    """
    for name, value in given.items():
        if isinstance(value, str) and not value.strip():
            raise ValueError(
                f"{name} is {value!r}, expected a text that says something; leave {name} out for the default."
            )
