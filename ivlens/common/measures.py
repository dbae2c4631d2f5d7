"""Names of measures in tables: older tables have older names, which are replaced when they are read."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

RENAMED = {"greedy": "accuracy"}  # old name, new name


def renamed(table: "pd.DataFrame") -> "pd.DataFrame":
    """The table with today's names of measures, in the names of columns and in the column `measure`."""
    found = table.rename(columns=RENAMED)
    return found.assign(measure=found["measure"].replace(RENAMED)) if "measure" in found else found
