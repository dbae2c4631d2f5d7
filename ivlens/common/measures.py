"""Measures under the names they have today, whatever older tables call them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

RENAMED = {"greedy": "accuracy"}  # old name, new name


def renamed(table: "pd.DataFrame") -> "pd.DataFrame":
    """A table whose measures have today's names, be they columns or values in a column `measure`."""
    found = table.rename(columns=RENAMED)
    return found.assign(measure=found["measure"].replace(RENAMED)) if "measure" in found else found
