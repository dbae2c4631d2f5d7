"""The figure of a judgement: accuracy with the vector, with its controls, and without anything added."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go

from ivlens.show.figures.rows import Row, grouped, interval_kinds, mean, rows_of
from ivlens.show.figures.theme import LIGHT, Theme, styled, with_legend


class Look(NamedTuple):
    """Label, symbol and colour (its name in the theme) of a condition; no two conditions share a symbol."""

    label: str
    symbol: str
    colour: str


# drawn in this order, from top to bottom: the vector first, then what it is compared with
LOOKS = {
    "clean": Look("clean prompt, told its task", "circle-open", "text"),
    "iv": Look("Instruction Vector added", "circle", "accent"),
    "iv_heads": Look("its heads replaced by their means", "star", "accent"),
    "bare": Look("bare input", "line-ns-open", "text"),
    "random": Look("random vectors", "diamond", "control"),
    "random_heads": Look("random heads' vectors", "square", "control"),
    "other_tasks": Look("other tasks' vectors", "triangle-up", "control"),
    "constant": Look("best constant answer", "x-thin-open", "reference"),
}
RENAMED = {"baseline": "bare"}  # names of conditions in tables of older versions, and their names now
VALUES = ("accuracy", "accuracy_lo", "accuracy_hi")
ROW_HEIGHT = 82  # pixels for each task


def condition_plot(frame: pd.DataFrame, *, theme: Theme = LIGHT) -> go.Figure:
    """One row per task, with a mark and an interval for each condition; of several tasks, the mean comes first.

    Rows of other conditions, such as the further rows of `ivlens.MoreRows`, are left out.

    Args:
        frame: the table of `ivlens.evaluate_intervention`, with a column `task` where there are several tasks.

    Raises:
        ValueError: a column is missing, or there are no rows of these conditions.
    """
    every = condition_rows(frame)
    rows = _with_mean(_rows_by_task(every))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    present = [name for name in LOOKS if any(row["condition"] == name for row in rows)]
    alone = len(tasks) == 1
    # one task: a row per condition; several: the conditions of a task share 0.72 of its row
    step = 1.0 if alone else 0.72 / max(1, len(present) - 1)
    figure = go.Figure()
    for place, condition in enumerate(present):
        chosen = [row for row in rows if row["condition"] == condition]
        offset = (len(present) - 1) / 2 * step - place * step
        places = [len(tasks) - 1 - tasks.index(row["task"]) + offset for row in chosen]
        figure.add_trace(_marks(chosen, places, condition, theme))
    height = 110 + 34 * len(present) if alone else 190 + ROW_HEIGHT * len(tasks)
    title = f"Accuracy by condition: {tasks[0]}" if alone and tasks[0] else "Accuracy by condition"
    styled(figure, theme, title, f"bars: {interval_kinds(every)} over prompts", height=height)
    figure.update_xaxes(title_text="accuracy (share of prompts)", range=[-0.03, 1.03], dtick=0.2)
    if alone:
        labels = [LOOKS[name].label for name in reversed(present)]
        _label_rows(figure, labels, [place - (len(present) - 1) / 2 for place in range(len(present))], theme)
        figure.update_layout(showlegend=False)
    else:
        _label_rows(figure, list(reversed(tasks)), [float(place) for place in range(len(tasks))], theme)
        _legend(figure, len(tasks), theme)
    return figure


def condition_rows(frame: pd.DataFrame) -> list[Row]:
    """The rows of a judgement's table that have one of the `LOOKS`; older tables' conditions get today's names.

    Raises:
        ValueError: a column is missing, or there are no such rows.
    """
    rows = rows_of(frame, ("condition", *VALUES), "ivlens.evaluate_intervention(...).table")
    rows = [{**row, "condition": RENAMED.get(row["condition"], row["condition"])} for row in rows]
    # a control that was left out, such as other tasks' vectors where there are none, has a row without a value
    found = [row for row in rows if row["condition"] in LOOKS and row["accuracy"] == row["accuracy"]]
    if not found:
        there = ", ".join(sorted({str(row["condition"]) for row in rows}))
        raise ValueError(f"the table has the conditions {there:.200}, expected some of {', '.join(LOOKS)}.")
    return found


def _rows_by_task(rows: Sequence[Row]) -> list[Row]:
    """One row per task and condition; several rows of one condition (`per_vector=True`) are averaged."""
    groups = grouped(rows, lambda row: (row.get("task", ""), row["condition"]))
    return [
        {"task": task, "condition": condition, **{name: mean(row[name] for row in group) for name in VALUES}}
        for (task, condition), group in groups.items()
    ]


def _with_mean(rows: list[Row]) -> list[Row]:
    """The rows, and before them, for several tasks, the mean over tasks of each condition.

    The mean has no interval: intervals here are over prompts, and say nothing about other tasks.
    """
    if len({row["task"] for row in rows}) == 1:
        return rows
    overall = []
    for condition, group in grouped(rows, lambda row: row["condition"]).items():
        value = mean(row["accuracy"] for row in group)
        overall.append({"task": "mean of tasks", "condition": condition, **dict.fromkeys(VALUES, value)})
    return [*overall, *rows]


def _marks(rows: Sequence[Row], y: Sequence[float], condition: str, theme: Theme) -> go.Scatter:
    """The marks of one condition with their intervals, at these heights."""
    look = LOOKS[condition]
    colour = getattr(theme, look.colour)
    return go.Scatter(
        x=[row["accuracy"] for row in rows], y=y, name=look.label, mode="markers", text=[row["task"] for row in rows],
        marker={"symbol": look.symbol, "size": 9, "color": colour, "line": {"width": 2, "color": colour}},
        error_x={
            "type": "data", "symmetric": False, "color": colour, "thickness": 1.2, "width": 0,
            # lengths from the mark, where rounding must not give a negative one
            "array": [max(0.0, row["accuracy_hi"] - row["accuracy"]) for row in rows],
            "arrayminus": [max(0.0, row["accuracy"] - row["accuracy_lo"]) for row in rows],
        },
        hovertemplate=f"%{{text}}<br>{look.label}: %{{x:.2f}}<extra></extra>",
    )  # fmt: skip


def _label_rows(figure: go.Figure, labels: Sequence[str], places: Sequence[float], theme: Theme) -> None:
    figure.update_yaxes(
        tickvals=places, ticktext=labels, range=[places[0] - 0.6, places[-1] + 0.6], showgrid=False, automargin=True,
        tickfont={"size": 12, "color": theme.text},
    )  # fmt: skip


def _legend(figure: go.Figure, n_tasks: int, theme: Theme) -> None:
    for line in range(1, n_tasks):
        figure.add_hline(y=line - 0.5, line={"width": 1, "color": theme.grid})
    # 150 px for the title, the note and a legend that takes four lines in a narrow figure
    with_legend(figure, theme, 150, xanchor="left", traceorder="normal")
