"""Tables as lists of plain rows, for the functions that draw figures.

Comprehensions over rows are easier to read and to type-check than chains of data-frame methods.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import pandas as pd

Row = dict[str, Any]
Item = TypeVar("Item")


def rows_of(frame: pd.DataFrame, needed: Sequence[str], maker: str) -> list[Row]:
    """The rows of a table as dictionaries.

    Args:
        needed: columns that the table must have.
        maker: the function or command that makes such tables, named in the error.

    Raises:
        ValueError: a needed column is missing, or there are no rows.
    """
    missing = [name for name in needed if name not in frame]
    if missing or not len(frame):
        got = f"lacks the columns {', '.join(missing)}" if missing else "has no rows"
        raise ValueError(f"the table {got}, expected what {maker} returns; pass that.")
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def grouped(rows: Iterable[Item], key: Callable[[Item], Hashable]) -> dict[Any, list[Item]]:
    """Lists of the rows (or other items) with the same key, in the order in which keys first occur."""
    groups: dict[Any, list[Item]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


def interval_kinds(rows: Iterable[Mapping[Any, Any]]) -> str:
    """The kinds of the intervals in these rows, each named once; "95 % interval" where the table does not say."""
    names = [row.get("interval") for row in rows]
    return ", ".join(dict.fromkeys(name for name in names if isinstance(name, str) and name)) or "95 % interval"


def mean(values: Iterable[Any]) -> float:
    """The arithmetic mean of these values; NaN if there are none."""
    listed = [float(value) for value in values]
    return sum(listed) / len(listed) if listed else float("nan")
