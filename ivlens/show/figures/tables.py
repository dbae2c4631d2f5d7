"""Results as LaTeX tables (package booktabs)."""

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
    """Accuracy of every task under every condition, that of the Instruction Vector with its interval."""
    rows = condition_rows(conditions)
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
    """Accuracy of every task before a training and after it; one column for each kind of guidance, if there are any."""
    rows = rows_of(scores, ("task", "role", "before"), "ivlens.finetune")
    kinds = [name for name in rows[0] if name not in ("task", "role", "before") and isinstance(rows[0][name], float)]
    head = ["task", "", "before", *(_escaped(KINDS[kind].label if kind in KINDS else kind) for kind in kinds)]
    lines = [
        [_escaped(row["task"]), "new" if row["role"] == "new" else "earlier"]
        + [_number(row[name]) for name in ("before", *kinds)]
        for row in rows
    ]
    return latex_table(head, lines, texts=2)


def claims_table(claims: pd.DataFrame) -> str:
    """One row for each claim of the study: its number with its interval, the margin, the verdict."""
    lines = []
    for row in rows_of(claims, ("text", "paper", "value", "low", "high", "margin", "verdict"), "ivlens study"):
        number = _number(row["value"])
        reach = "" if row["low"] != row["low"] else f" {{\\scriptsize [{row['low']:.2f}, {row['high']:.2f}]}}"
        texts = _escaped(row["text"]), _escaped(row["paper"])
        lines.append([*texts, f"{number}{reach}", _number(row["margin"]), _escaped(row["verdict"])])
    head = ["claim", "paper", "here", "margin", "verdict"]
    wide = latex_table(head, lines, texts=2)
    return wide.replace("{llrrr}", "{p{0.36\\linewidth}p{0.22\\linewidth}rrl}", 1)


def latex_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """Cells as they are, in booktabs' rules; the first `texts` columns to the left, the others to the right."""
    columns = "l" * texts + "r" * (len(head) - texts)
    body = "".join(" & ".join(row) + r" \\" + "\n" for row in rows)
    return (
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{' & '.join(head)} \\\\\n\\midrule\n{body}"
        "\\bottomrule\n\\end{tabular}\n"
    )


def _value(rows: Sequence[dict], with_interval: bool) -> str:
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
