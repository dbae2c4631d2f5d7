"""Results as LaTeX tables, which need the package booktabs."""

from collections.abc import Iterable, Sequence

import pandas as pd

from ivlens.show.figures.conditions import LOOKS, condition_rows
from ivlens.show.figures.rows import grouped, mean, rows_of
from ivlens.show.figures.training import KINDS

_SPECIAL = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def condition_table(conditions: pd.DataFrame) -> str:
    """A LaTeX table of accuracy: a row per task, a column per condition, an interval for the Instruction Vector."""
    rows = condition_rows(conditions)
    # in the order of `LOOKS`, as in the figure
    names = [name for name in LOOKS if any(row["condition"] == name for row in rows)]
    tasks = grouped(rows, lambda row: row.get("task", "accuracy"))
    lines = []
    for task, group in tasks.items():
        by_condition = grouped(group, lambda row: row["condition"])
        lines.append([_escaped(task), *(_value(by_condition.get(name, ()), name == "iv") for name in names)])
    if len(tasks) > 1:
        every = grouped(rows, lambda row: row["condition"])
        means = [_number(mean(row["accuracy"] for row in every[name])) for name in names]
        lines += [[r"\midrule" + "\nmean", *means]]
    head = ["task", *(_escaped(LOOKS[name].label) for name in names)]
    return latex_table(head, lines)


def tuning_table(scores: pd.DataFrame) -> str:
    """A LaTeX table of every task's accuracy before training and after it, with a column for each kind of guidance."""
    rows = rows_of(scores, ("task", "role", "before"), "ivlens.finetune")
    # every other column of numbers is the accuracy after a training, named by its guidance
    kinds = [name for name in rows[0] if name not in ("task", "role", "before") and isinstance(rows[0][name], float)]
    head = ["task", "", "before", *(_escaped(KINDS[kind].label if kind in KINDS else kind) for kind in kinds)]
    lines = [
        [_escaped(row["task"]), "new" if row["role"] == "new" else "earlier"]
        + [_number(row[name]) for name in ("before", *kinds)]
        for row in rows
    ]
    return latex_table(head, lines, texts=2)


def claims_table(claims: pd.DataFrame) -> str:
    """A LaTeX table of the study's claims: the paper's number, this study's with its interval, margin and verdict."""
    lines = []
    for row in rows_of(claims, ("text", "paper", "value", "low", "high", "margin", "verdict"), "ivlens study"):
        number = _number(row["value"])
        reach = "" if row["low"] != row["low"] else f" {{\\scriptsize [{row['low']:.2f}, {row['high']:.2f}]}}"
        texts = _escaped(row["text"]), _escaped(row["paper"])
        lines.append([*texts, f"{number}{reach}", _number(row["margin"]), _escaped(row["verdict"])])
    head = ["claim", "paper", "here", "margin", "verdict"]
    wide = latex_table(head, lines, texts=2)
    # long texts wrap in columns of fixed width
    return wide.replace("{llrrr}", "{p{0.36\\linewidth}p{0.22\\linewidth}rrl}", 1)


def latex_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """A LaTeX table of these cells, which are not escaped.

    Args:
        head: the names of the columns.
        rows: the cells of each row.
        texts: how many of the first columns are aligned to the left; the others are aligned to the right.
    """
    columns = "l" * texts + "r" * (len(head) - texts)
    body = "".join(" & ".join(row) + r" \\" + "\n" for row in rows)
    return (
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{' & '.join(head)} \\\\\n\\midrule\n{body}"
        "\\bottomrule\n\\end{tabular}\n"
    )


def _value(rows: Sequence[dict], with_interval: bool) -> str:
    """The cell of one task and condition: mean accuracy over its rows, with the interval if asked for."""
    if not rows:
        return "--"
    value, low, high = (mean(row[name] for row in rows) for name in ("accuracy", "accuracy_lo", "accuracy_hi"))
    if not with_interval:
        return _number(value)
    return f"{_number(value)} {{\\scriptsize [{low:.2f}, {high:.2f}]}}"


def _number(value: float) -> str:
    return "--" if value != value else f"{value:.2f}"


def _escaped(text: object) -> str:
    return "".join(_SPECIAL.get(char, char) for char in str(text))
