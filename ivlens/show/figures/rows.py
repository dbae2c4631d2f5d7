"""Tables as plain rows: what a figure draws is easier to see, and to type-check, than chains of data-frame methods."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import pandas as pd

Row = dict[str, Any]
Item = TypeVar("Item")


def rows_of(frame: pd.DataFrame, needed: Sequence[str], maker: str) -> list[Row]:
    """The rows of a table that `maker` made.

    Raises:
        ValueError: a needed column is missing, or there are no rows.
    """
    missing = [name for name in needed if name not in frame]
    if missing or not len(frame):
        got = f"lacks the columns {', '.join(missing)}" if missing else "has no rows"
        raise ValueError(f"the table {got}, expected what {maker} returns; pass that.")
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def grouped(rows: Iterable[Item], key: Callable[[Item], Hashable]) -> dict[Any, list[Item]]:
    """Rows, or whatever else, by key, in the order in which keys first occur."""
    groups: dict[Any, list[Item]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


def interval_kinds(rows: Iterable[Mapping[Any, Any]]) -> str:
    """What the intervals of these rows are called, each name once; "95 % interval" in tables that do not say."""
    names = [row.get("interval") for row in rows]
    return ", ".join(dict.fromkeys(name for name in names if isinstance(name, str) and name)) or "95 % interval"


def mean(values: Iterable[Any]) -> float:
    """Arithmetic mean; NaN of nothing."""
    listed = [float(value) for value in values]
    return sum(listed) / len(listed) if listed else float("nan")
