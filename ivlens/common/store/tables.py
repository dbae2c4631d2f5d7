"""Many results as one table: which of them it shows, and with which labels."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ivlens.common.store.entries import Entry
from ivlens.common.store.keys import canonical

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("ivlens")

# parts of a description that say what a name in the labels stood for: two results that differ only in these have the
# same labels, and only one of them can stand in a table
_NAMED = {"model", "task", "others", "bank", "format", "ivlens", "torch", "transformers"}


def one_table(entries: Sequence[Entry], name: str) -> "pd.DataFrame":
    """The rows of these results, with the labels of its result before each row; `latest_of_each` says of which.

    Args:
        entries: The results.
        name: What they are of, for the warning about results that are left out.
    """
    import pandas as pd

    latest = latest_of_each(entries)
    if len(latest) < len(entries):
        what = "of models, tasks or packages that have changed since; no table shows them"
        logger.warning("%s: %d results are %s.", name, len(entries) - len(latest), what)
    tables = []
    for entry in latest:
        table = entry.table()
        table = table.drop(columns="entry", errors="ignore")  # a name that stands for the result itself
        labels = {name: value for name, value in entry.labels.items() if name not in table}
        labels["entry"] = entry.key[:12]
        names = [*labels, *table]
        for name, value in labels.items():  # no keywords, as a label may have any name
            table[name] = value
        tables.append(table[names])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def latest_of_each(entries: Sequence[Entry]) -> list[Entry]:
    """Of results that only differ in what their labels' names stood for, the one that was asked for last.

    The labels of a result name a model and a task. When the weights or examples behind such a name have changed, the
    store has two results with the same labels, and a table should show one of them. All other results are returned.
    """
    latest: dict[str, Entry] = {}
    for entry in entries:
        named = {name: value for name, value in entry.what.items() if name not in _NAMED}
        alike = canonical([dict(entry.labels), named]) if "model" in entry.labels else entry.key
        if alike not in latest or _asked_at(latest[alike]) < _asked_at(entry):
            latest[alike] = entry
    kept = {entry.key for entry in latest.values()}
    return [entry for entry in entries if entry.key in kept]


def _asked_at(entry: Entry) -> int:
    """When a result was written or last asked for (`Store.ask_for`): the time of its folder, in ns."""
    try:
        return entry.folder.stat().st_mtime_ns
    except OSError:  # removed meanwhile
        return 0
