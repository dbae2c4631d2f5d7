"""The present names of measures, for tables that older versions wrote."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

RENAMED = {"greedy": "accuracy"}  # old name, new name


def renamed(table: "pd.DataFrame") -> "pd.DataFrame":
    """The table with the present names of measures, both as columns and as values of a column `measure`."""
    found = table.rename(columns=RENAMED)
    return found.assign(measure=found["measure"].replace(RENAMED)) if "measure" in found else found
