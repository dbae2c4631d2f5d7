"""Figures of sequences of tasks: the score on every task after every stage, and how much each method forgets."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ivlens.runs.suites.report import summary_of
from ivlens.show.figures.rows import Row, grouped, interval_kinds, mean, rows_of
from ivlens.show.figures.theme import LIGHT, Theme, colour_at, colour_bar, readable_on, styled, with_legend

# colours of scores from 0 to 1; light to dark, so that they can also be told apart in grey
LEVELS = ((0.0, "#fbfbf9"), (0.35, "#bcd6ea"), (0.7, "#4b8fc7"), (1.0, "#06477f"))
COLUMNS = 4  # panels side by side


def score_matrices(scores: pd.DataFrame, *, theme: Theme = LIGHT) -> go.Figure:
    """Maps of scores, a panel per method and guidance: a column per task, a row before training and after each stage.

    Args:
        scores: `scores.parquet` of `ivlens bench`. Only the first order of the tasks is shown, averaged over its runs.

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    rows = rows_of(scores, ("method", "guidance", "order", "stage", "trained", "task", "score"), "ivlens bench")
    rows = [row for row in rows if row["order"] == min(row["order"] for row in rows)]
    panels = grouped(rows, lambda row: (row["method"], row["guidance"]))
    n_columns = min(COLUMNS, len(panels))
    figure = make_subplots(
        rows=math.ceil(len(panels) / n_columns), cols=n_columns, shared_xaxes=True, shared_yaxes=True,
        subplot_titles=[_label(*names) for names in panels],
        horizontal_spacing=0.03, vertical_spacing=0.2 / math.ceil(len(panels) / n_columns),
    )  # fmt: skip
    for place, chosen in enumerate(panels.values()):
        matrix = _matrix(chosen)
        heat = go.Heatmap(
            z=matrix.values, x=matrix.tasks, y=matrix.stages, zmin=0, zmax=1, colorscale=LEVELS, xgap=1, ygap=1,
            showscale=place == 0, colorbar=colour_bar(theme, "score"),
            hovertemplate="after %{y}, on %{x}: %{z:.2f}<extra></extra>",
        )  # fmt: skip
        row, column = divmod(place, n_columns)
        figure.add_trace(heat, row=row + 1, col=column + 1)
        if len(matrix.tasks) <= 8:  # in smaller cells numbers do not fit
            _write_scores(figure, matrix, row + 1, column + 1)
    styled(figure, theme, "Score on every task", "columns: judged on · rows: trained last", height=360)
    figure.update_xaxes(showgrid=False, tickangle=-90 if len({row["task"] for row in rows}) > 2 else 0)
    figure.update_yaxes(showgrid=False, autorange="reversed", automargin=True)
    return figure.update_annotations(font={"color": theme.text, "size": 12}, selector={"yanchor": "bottom"})


class _Matrix(NamedTuple):
    """The scores of one panel: `values[stage][task]`, with the labels of rows and columns."""

    stages: list[str]
    tasks: list[str]
    values: list[list[float]]


def _matrix(rows: Sequence[Row]) -> _Matrix:
    """The scores of one method and guidance, averaged over runs; NaN where a task was not judged."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    by_stage = grouped(rows, lambda row: row["stage"])
    values = []
    for group in by_stage.values():
        by_task = grouped(group, lambda row: row["task"])
        values.append([mean(row["score"] for row in by_task.get(task, ())) for task in tasks])
    names = ["before", *tasks][: len(by_stage)]
    return _Matrix([_wrapped(name) for name in names], [_wrapped(task) for task in tasks], values)


def _write_scores(figure: go.Figure, matrix: _Matrix, row: int, column: int) -> None:
    """Write the score into every cell of the panel at this row and column."""
    for name, values in zip(matrix.stages, matrix.values, strict=True):
        for task, value in zip(matrix.tasks, values, strict=True):
            if value != value:  # NaN: not judged
                continue
            ink = readable_on(colour_at(LEVELS, value))
            figure.add_annotation(
                x=task, y=name, text=f"{value:.2f}", showarrow=False, font={"size": 11, "color": ink},
                row=row, col=column, yanchor="middle",
            )  # fmt: skip


def method_summary(cells: pd.DataFrame, *, theme: Theme = LIGHT) -> go.Figure:
    """Two marks per method, with intervals over runs: AP, right after each task's training, and FP, at the end.

    Both are mean scores on the trained tasks; the distance between the two marks is what was forgotten. Formulas:
    docs/method.md, 10 Sequences of tasks.

    Args:
        cells: `cells.parquet` of `ivlens bench`.

    Raises:
        ValueError: as `ivlens.runs.suites.report.summary_of`.
    """
    rows = rows_of(summary_of(cells), ("method", "guidance", "ap", "fp"), "ivlens bench")
    labels = [_label(row["method"], row["guidance"]) for row in rows]
    places = list(range(len(rows)))[::-1]  # the first row is drawn on top
    figure = go.Figure()
    for row, place in zip(rows, places, strict=True):
        ends = {"x": [row["ap"], row["fp"]], "y": [place, place]}
        line = {"color": theme.reference, "width": 1.5}
        figure.add_trace(go.Scatter(**ends, mode="lines", line=line, showlegend=False, hoverinfo="skip"))
    marks = {"ap": ("AP, right after training", "circle-open", "text"), "fp": ("FP, at the end", "circle", "accent")}
    for name, (label, symbol, colour) in marks.items():
        values = np.array([[row[name], row[f"{name}_lo"], row[f"{name}_hi"]] for row in rows], dtype=float)
        reach = np.where(np.isfinite(values), values, values[:, :1])  # one run has no interval
        figure.add_trace(
            go.Scatter(
                x=values[:, 0], y=places, name=label, mode="markers",
                marker={"symbol": symbol, "size": 10, "color": getattr(theme, colour)} | _rim(theme, colour),
                error_x={
                    "type": "data", "symmetric": False, "array": reach[:, 2] - reach[:, 0],
                    "arrayminus": reach[:, 0] - reach[:, 1], "width": 0, "color": getattr(theme, colour),
                },
                text=labels, hovertemplate=f"%{{text}}<br>{label}: %{{x:.2f}}<extra></extra>",
            )
        )  # fmt: skip
    styled(figure, theme, "What methods keep", f"bars: {interval_kinds(rows)} over runs", height=150 + 34 * len(rows))
    figure.update_xaxes(title_text="mean score on the trained tasks", range=[-0.03, 1.03], dtick=0.2)
    figure.update_yaxes(tickvals=places, ticktext=labels, showgrid=False, range=[-0.6, len(rows) - 0.4])
    figure.update_yaxes(automargin=True, tickfont={"color": theme.text})
    return with_legend(figure, theme)


def _rim(theme: Theme, colour: str) -> dict:
    """The line around a mark, in the colour of the theme that has this name."""
    return {"line": {"width": 2, "color": getattr(theme, colour)}}


def _label(method: str, guidance: str) -> str:
    """What a method with a guidance is called in the figure."""
    return method if guidance == "none" else f"{method} + {guidance}"


def _wrapped(name: str) -> str:
    """The name of a task broken into two lines, since panels are narrow."""
    words = name.split("_")
    half = (len(words) + 1) // 2
    return "<br>".join(filter(None, ("_".join(words[:half]), "_".join(words[half:]))))
