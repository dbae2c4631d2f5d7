"""Tables of a benchmark's results: each cell, each score, and a summary with intervals and verdicts."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ivlens.common.intervals import named_of
from ivlens.common.latex import Look, latex_table, stacked, with_interval, wrapped
from ivlens.common.saves import filling
from ivlens.runs.suites.metrics import forget_verdict, paired_interval
from ivlens.runs.suites.results import CellResult

# columns of the summary, and their headings
SHOWN = {"ap": "AP", "fp": "FP", "forget": "Forget", "bwt": "BWT", "gp_change": "GP change", "ip_change": "IP change"}
VERDICTS = {"forget_verdict": "half of Forget", "gp_verdict": "half of GP back"}


def cell_frame(results: Sequence[CellResult]) -> pd.DataFrame:
    """A table with one row for each cell: its method, guidance, order, seed and rate, and its metrics."""
    rows = [{**asdict(one.cell), **asdict(one.metrics), "seconds": one.seconds} for one in results]
    return _frame(rows)


def score_frame(results: Sequence[CellResult]) -> pd.DataFrame:
    """A table with one row for each score of each cell: every task after every stage; stage 0 is before training."""
    rows = [
        {
            **asdict(one.cell),
            "stage": stage,
            "trained": one.tasks[stage - 1] if stage else "",
            "task": task,
            "score": score,
        }
        for one in results
        for stage, scores in enumerate(one.scores)
        for task, score in zip(one.tasks, scores, strict=True)
    ]
    return _frame(rows)


def curve_frame(results: Sequence[CellResult]) -> pd.DataFrame:
    """A table of all judgements in training: `new` scores the task in training, `old` general and earlier tasks."""
    rows = [
        {**asdict(one.cell), "stage": stage, "task": task, **row}
        for one in results
        for stage, (task, curve) in enumerate(zip(one.tasks, one.curves, strict=True), 1)
        for row in curve
    ]
    return _frame(rows)


def _frame(rows: list[dict[str, object]]) -> pd.DataFrame:
    """Rows as a table whose rates are all numbers."""
    frame = pd.DataFrame(rows)
    return frame.astype({"lr": float}) if rows else frame  # None becomes NaN: a column of objects is written otherwise


def summary(results: Sequence[CellResult]) -> pd.DataFrame:
    """The summary of cells, one row for each method and guidance; see `summary_of`."""
    return summary_of(cell_frame(results))


def summary_of(cells: pd.DataFrame) -> pd.DataFrame:
    """One row for each method and guidance: means of metrics over runs, 95 % t intervals, and verdicts on guidance.

    The column `interval` says what kind of interval it is. `forget_verdict` is by the rule of
    `ivlens.runs.suites.forget_verdict`; `gp_verdict` is by the same rule, for the scores lost on general tasks.

    Args:
        cells: A table from `cell_frame`.

    Raises:
        ValueError: there are several learning rates for one method and guidance.
    """
    rows = []
    # NaN is unlike itself, so a rate that was not set would count as another one in every row
    rates = set(zip(cells["method"], cells["guidance"], cells["lr"].fillna(-1.0), strict=True))
    if len(rates) > len({rate[:2] for rate in rates}):
        raise ValueError("summary got cells of several learning rates for one method and guidance; choose one of each.")
    for method, guidance in dict.fromkeys(zip(cells["method"], cells["guidance"], strict=True)):
        group = cells.query("method == @method and guidance == @guidance")
        row: dict[str, object] = {
            "method": method,
            "guidance": guidance,
            "runs": len(group),
            "interval": named_of(len(group)),
        }
        for name in SHOWN:
            values = group[name].to_numpy(float)
            if np.isfinite(values).all():
                row[name], row[f"{name}_lo"], row[f"{name}_hi"] = paired_interval(values, np.zeros_like(values))
        plain = cells.query("method == @method and guidance == 'none'")
        rows.append(row | (_verdicts(plain, group) if guidance != "none" else {}))
    return pd.DataFrame(rows)


def _verdicts(plain: pd.DataFrame, guided: pd.DataFrame) -> dict[str, object]:
    """The verdicts on guidance, from the orders and seeds that were run both with it and without it."""
    both = plain.merge(guided, on=["order", "seed"], suffixes=("_plain", "_guided"))
    if both.empty:
        return {}
    without, with_it = (both[f"forget_{which}"].to_numpy(float) for which in ("plain", "guided"))
    found: dict[str, object] = {"forget_verdict": forget_verdict(without, with_it).verdict}
    lost, left = (-both[f"gp_change_{which}"].to_numpy(float) for which in ("plain", "guided"))
    if np.isfinite(lost).all() and np.isfinite(left).all():
        found["gp_verdict"] = forget_verdict(lost, left).verdict
    return found


def markdown(table: pd.DataFrame) -> str:
    """A summary as a Markdown table."""
    head, rows = _text(table)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(table: pd.DataFrame) -> str:
    """A summary as two LaTeX tables (package booktabs): scores on the trained tasks, and all that is about others.

    Two, so that they fit the width of a page; the kind of the intervals belongs into the caption.
    """
    verdicts = {name: label for name, label in VERDICTS.items() if name in table}
    first = {name: label for name, label in SHOWN.items() if name in table and not name.endswith("_change")}
    second = {name: label for name, label in SHOWN.items() if name in table and name.endswith("_change")}
    rows, runs = table.to_dict("records"), len(set(table["runs"])) > 1
    parts = []
    for shown, judged in ((first, {}), (second, verdicts)):
        lines = [
            [wrapped(_label(row)), *([str(row["runs"])] if runs else [])]
            + [with_interval(*(row[f"{name}{end}"] for end in ("", "_lo", "_hi")), digits=3) for name in shown]
            + [row[name] if isinstance(row[name], str) else "" for name in judged]
            for row in rows
        ]
        head = [
            "method",
            *(["runs"] if runs else []),
            *shown.values(),
            *(stacked(name, 10) for name in judged.values()),
        ]
        columns = f"p{{0.25\\linewidth}}{'r' * (len(head) - 1)}"
        parts += [latex_table(head, lines, Look(columns))] if shown or judged else []
    return "\\par\\medskip\n".join(parts)


def write_report(results: Sequence[CellResult], folder: Path) -> pd.DataFrame:
    """Write `cells.parquet`, `scores.parquet`, `curves.parquet`, `table.md` and `table.tex`; returns the summary."""
    table = summary(results)
    with filling(folder) as scratch:
        cell_frame(results).to_parquet(scratch / "cells.parquet")
        score_frame(results).to_parquet(scratch / "scores.parquet")
        curve_frame(results).to_parquet(scratch / "curves.parquet")
        (scratch / "table.md").write_text(markdown(table), encoding="utf-8")
        (scratch / "table.tex").write_text(latex(table), encoding="utf-8")
    return table


def _text(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a summary, as texts."""
    shown = {name: label for name, label in SHOWN.items() if name in table}
    verdicts = {name: label for name, label in VERDICTS.items() if name in table}
    rows = []
    for row in table.to_dict("records"):
        numbers = [_with_interval(row[name], row[f"{name}_lo"], row[f"{name}_hi"]) for name in shown]
        judged = [row[name] if isinstance(row[name], str) else "" for name in verdicts]
        about = [str(row[name] or "–") for name in ("method", "guidance", "runs", "interval")]
        rows.append([*about, *numbers, *judged])
    return ["method", "guidance", "runs", "interval", *shown.values(), *verdicts.values()], rows


def _with_interval(mean: float, low: float, high: float) -> str:
    if mean != mean:  # NaN
        return ""
    return f"{mean:.3f}" if not np.isfinite([low, high]).all() else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _label(row: Mapping[Hashable, Any]) -> str:
    """What a method with a guidance is called."""
    method, guidance = str(row["method"]), str(row["guidance"] or "none")
    return method if guidance == "none" else f"{method} + {guidance}"
