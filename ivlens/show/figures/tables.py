"""Results as LaTeX tables, which need the package booktabs and fit a page that is 6.5 inches wide or wider."""

from collections.abc import Sequence

import pandas as pd

from ivlens.common.latex import Look, escaped, latex_table, number, stacked, with_interval, wrapped
from ivlens.show.figures.conditions import LOOKS, condition_rows
from ivlens.show.figures.rows import grouped, mean, rows_of
from ivlens.show.figures.training import KINDS

# the conditions in words that fit a narrow column
SHORT = {
    "clean": "clean prompt",
    "iv": "with the vector",
    "iv_heads": "heads replaced",
    "bare": "bare input",
    "random": "random vectors",
    "random_heads": "random heads",
    "other_tasks": "other tasks' vectors",
    "constant": "constant answer",
}
TEXT = 0.2  # width of a column of names, as a share of the line


def condition_table(conditions: pd.DataFrame) -> str:
    """A LaTeX table of accuracy: a row per task, a column per condition, an interval for the Instruction Vector."""
    rows = condition_rows(conditions)
    # in the order of `LOOKS`, as in the figure
    names = [name for name in LOOKS if any(row["condition"] == name for row in rows)]
    tasks = grouped(rows, lambda row: row.get("task", "accuracy"))
    lines = []
    for task, group in tasks.items():
        by_condition = grouped(group, lambda row: row["condition"])
        lines.append([wrapped(task), *(_value(by_condition.get(name, ()), name == "iv") for name in names)])
    if len(tasks) > 1:
        every = grouped(rows, lambda row: row["condition"])
        lines += [[], ["mean", *(number(mean(row["accuracy"] for row in every[name])) for name in names)]]
    head = ["task", *(stacked(SHORT[name], 9) for name in names)]
    return latex_table(head, lines, Look(f"p{{{TEXT}\\linewidth}}{'r' * len(names)}"))


def tuning_table(scores: pd.DataFrame) -> str:
    """A LaTeX table of every task's accuracy before training and after it, with a column for each kind of guidance."""
    rows = rows_of(scores, ("task", "role", "before"), "ivlens.finetune")
    # every other column of numbers is the accuracy after a training, named by its guidance
    kinds = [name for name in rows[0] if name not in ("task", "role", "before") and isinstance(rows[0][name], float)]
    head = ["task", "", "before", *(stacked(KINDS[kind].label if kind in KINDS else kind, 12) for kind in kinds)]
    lines = [
        [wrapped(row["task"]), "new" if row["role"] == "new" else "earlier"]
        + [number(row[name]) for name in ("before", *kinds)]
        for row in rows
    ]
    return latex_table(head, lines, Look(f"p{{{TEXT}\\linewidth}}l{'r' * (1 + len(kinds))}"))


def claims_table(claims: pd.DataFrame) -> str:
    """A LaTeX table of the study's claims: the paper's number, this study's with its interval, margin and verdict."""
    lines = []
    for row in rows_of(claims, ("text", "paper", "value", "low", "high", "margin", "verdict"), "ivlens study"):
        here = with_interval(row["value"], row["low"], row["high"])
        lines.append(
            [wrapped(row["text"]), wrapped(row["paper"]), here, number(row["margin"]), escaped(row["verdict"])]
        )
    columns = "p{0.36\\linewidth}p{0.22\\linewidth}rrl"  # long texts wrap
    return latex_table(["claim", "paper", "here", "margin", "verdict"], lines, Look(columns))


def _value(rows: Sequence[dict], has_interval: bool) -> str:
    """The cell of one task and condition: mean accuracy over its rows, with the interval if asked for."""
    if not rows:
        return "--"
    value, low, high = (mean(row[name] for row in rows) for name in ("accuracy", "accuracy_lo", "accuracy_hi"))
    return with_interval(value, low, high) if has_interval else number(value)
