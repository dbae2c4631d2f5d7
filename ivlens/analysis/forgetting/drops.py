"""`decompose`: how much of instruction and of knowledge was lost between two models, with intervals."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ivlens.analysis.forgetting.probabilities import MEASURES, SHAPE, ProbeOptions, probe
from ivlens.common.intervals import grouped_interval, grouped_name
from ivlens.common.measures import renamed
from ivlens.models.boot import TransformerBridge
from ivlens.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("ivlens")

_Key = tuple[str, str, str]  # task, kind, input
KINDS = ("instruction", "knowledge")
ALL_TASKS = "all tasks"
# log-odds of a probability nearer to 0 or 1 than this would say more about rounding than about the model
NEAREST = 1e-4


def decompose(
    before: TransformerBridge, after: TransformerBridge, tasks: Sequence[Task], options: ProbeOptions | None = None
) -> "pd.DataFrame":
    """Probe two models, and compare what was lost of the instruction with what was lost of the knowledge.

    >>> decompose(base, tuned, [load_task("antonym"), load_task("country_capital")])

    `decomposition` explains the table.

    Raises:
        ValueError: as `probe` and `decomposition`.
    """
    return decomposition(probe(before, tasks, options), probe(after, tasks, options))


def decomposition(before: "pd.DataFrame", after: "pd.DataFrame") -> "pd.DataFrame":
    """Compare two tables of `probe`: what was lost of the instruction, and what of the knowledge.

    The claim to be tested is that instruction probability falls more than knowledge probability. Both are probabilities
    of the same answers but start from different heights, so the drops are compared in log-odds: `excess` is the mean
    over examples of `(L_before - L_after)` of the instruction less that of the knowledge, where `L` are the log-odds of
    the same example. A single accuracy has no log-odds: for accuracies `excess` is the difference of the drops. See
    docs/method.md, section 7 Forgetting, taken apart.

    Returns:
        One row for each measure of each task, and of `all tasks` (those with both kinds of probability). Columns:
        `task`, `measure`, `n` examples; for both kinds means and drops, as `instruction_before`, `instruction_after`,
        `instruction_drop` (interval `..._lo` to `..._hi`); `excess` (interval `excess_lo` to `excess_hi`; in nats for
        probabilities); `interval`, the kind of the intervals: 95 % t over examples, for `all tasks` over tasks;
        descriptive with fewer than six. Values are NaN where a task has no knowledge rows. A measure that an older
        table lacks (`exact`) is left out.

    Raises:
        ValueError: the two tables are about different examples, or about models of different shapes.
    """
    import pandas as pd

    check_same_shape(before.attrs.get(SHAPE), after.attrs.get(SHAPE), "the model after")

    before, after = renamed(before), renamed(after)
    if ("exact" in before) != ("exact" in after):
        logger.warning(
            "one of the two tables is older: its accuracy did not look at what follows an answer; probe both models "
            "again to compare accuracies."
        )
    rows_before, rows_after = _records(before), _records(after)
    if list(rows_before) != list(rows_after):
        raise ValueError(
            "the two tables are about different tasks or examples, expected probe() of two models with the same tasks "
            "and options; probe both again."
        )
    rows = []
    names = list(dict.fromkeys(task for task, _, _ in rows_before))
    known = list(dict.fromkeys(task for task, kind, _ in rows_before if kind == KINDS[1]))
    for measure in (name for name in MEASURES if name in before and name in after):
        drops = {name: _drops(rows_before, rows_after, name, measure) for name in names}
        rows += [_row(name, measure, [drops[name]]) for name in names]
        rows.append(_row(ALL_TASKS, measure, [drops[name] for name in known or names]))
    return pd.DataFrame(rows)


def check_same_shape(before: str | None, after: str | None, what: str) -> None:
    """Refuse two models of different shapes, since neither can have been trained from the other.

    Args:
        before, after: The models' shapes in words; None: not known, and nothing is refused.
        what: How the error calls the second model.

    Raises:
        ValueError: the shapes differ.
    """
    if before is not None and after is not None and before != after:
        raise ValueError(
            f"{what} is {after}, expected {before} as the model before: a difference between two models is no "
            "forgetting; name the model that it was trained from (--before on the command line)."
        )


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Log-odds `log(p / (1 - p))` in nats, of probabilities kept `NEAREST` away from 0 and 1."""
    kept = np.clip(np.asarray(probability, float), NEAREST, 1 - NEAREST)
    return np.log(kept / (1 - kept))


def _records(table: "pd.DataFrame") -> dict[_Key, dict[str, Any]]:
    """The rows of a table of `probe`, by task, kind and input."""
    return {(row["task"], row["kind"], row["input"]): row for row in table.to_dict("records")}


def _drops(before: Mapping[_Key, Any], after: Mapping[_Key, Any], task: str, measure: str) -> dict[str, np.ndarray]:
    """Values of one task's examples in one measure: both kinds before, after and their drop, and the excess."""
    found: dict[str, np.ndarray] = {}
    keys = {kind: [key for key in before if key[:2] == (task, kind)] for kind in KINDS}
    for kind in KINDS:
        found[f"{kind}_before"] = np.array([before[key][measure] for key in keys[kind]], float)
        found[f"{kind}_after"] = np.array([after[key][measure] for key in keys[kind]], float)
        found[f"{kind}_drop"] = found[f"{kind}_before"] - found[f"{kind}_after"]
    # accuracies of single examples are 0 or 1, whose log-odds are infinite
    change = log_odds if measure.endswith("prob") else np.asarray
    # both kinds of the same example are compared, so only inputs that have both count
    inputs = [text for _, _, text in keys["knowledge"] if (task, "instruction", text) in before]

    def lost(kind: str) -> np.ndarray:
        """What each input lost in this kind, in log-odds for probabilities."""
        values = [np.array([rows[task, kind, text][measure] for text in inputs], float) for rows in (before, after)]
        return change(values[0]) - change(values[1])

    return found | {"excess": lost("instruction") - lost("knowledge")}


def _row(name: str, measure: str, tasks: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
    """One row of the table, over the examples of one task or over several tasks."""
    n = sum(len(task["instruction_before"]) for task in tasks)
    row: dict[str, Any] = {"task": name, "measure": measure, "n": n}
    for column in (*(f"{kind}_{what}" for kind in KINDS for what in ("before", "after", "drop")), "excess"):
        mean, low, high = grouped_interval([task[column] for task in tasks])
        row[column] = mean
        if column.endswith(("drop", "excess")):
            row |= {f"{column}_lo": low, f"{column}_hi": high}
    return row | {"interval": grouped_name([task["instruction_drop"] for task in tasks])}
