"""Figures of a training: accuracy, Instruction Vectors and head outputs from checkpoint to checkpoint."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from ivlens.analysis.dynamics.comparison import Dynamics
from ivlens.show.figures.rows import Row, grouped, mean, rows_of
from ivlens.show.figures.theme import LIGHT, Theme, colour_at, colour_bar, level_entry, styled, with_legend

PANELS = {"accuracy": "accuracy with the instruction", "iv_cosine_fixed": "cosine with the first vector"}


def dynamics_curves(tasks: pd.DataFrame, *, theme: Theme = LIGHT) -> go.Figure:
    """Accuracy (left) and the cosine of each vector with its first version (right), over the checkpoints.

    Thin lines are tasks, thick lines their means. Dashed and dotted lines in the right panel are references: the cosine
    between vectors from two halves of the prompts (as if nothing had changed), and the mean cosine between vectors of
    different tasks.

    Args:
        tasks: `Dynamics.tasks`.

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    rows = rows_of(tasks, ("checkpoint", "step", "task", *PANELS, "split_half"), "ivlens.analysis.dynamics.track")
    names = list(dict.fromkeys(row["checkpoint"] for row in rows))
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.09)
    for column, value in enumerate(PANELS, 1):
        for number, (task, points) in enumerate(grouped(rows, lambda row: row["task"]).items()):
            y = [row[value] for row in points]
            line = {"color": theme.control, "width": 1}
            figure.add_trace(
                _line(points, names, y, line, task, "each task", column == 1 and number == 0, 0.45), row=1, col=column
            )
        every = grouped(rows, lambda row: row["checkpoint"])
        y = [mean(row[value] for row in points) for points in every.values()]
        first = [points[0] for points in every.values()]
        line = {"color": theme.accent, "width": 3}
        figure.add_trace(_line(first, names, y, line, "mean", "mean of tasks", column == 1, 1.0), row=1, col=column)
    _references(figure, rows, theme)
    styled(figure, theme, "Does the vector stay while performance goes?", "select inputs", height=380)
    figure.update_xaxes(title_text=_axis(rows))
    for column, (value, title) in enumerate(PANELS.items(), 1):
        low = min(0.0, *(row[value] for row in rows))
        figure.update_yaxes(title_text=title, range=[low - 0.03, 1.06], dtick=0.2, row=1, col=column)
    return with_legend(figure, theme)


def drift_heatmap(dynamics: Dynamics, *, checkpoint: str | None = None, theme: Theme = LIGHT) -> go.Figure:
    """Map of the drift of every head: the change in its mean write, as a share of its first mean write.

    The map is the mean over tasks. Formula: docs/method.md, 8 Vectors along a training.

    Args:
        checkpoint: name of the checkpoint that is compared with the first one; None: the last.

    Raises:
        KeyError: no such checkpoint.
    """
    name = checkpoint or dynamics.stages[-1].name
    return drift_map(dynamics.drift_map(checkpoint).numpy(), f"{name} against {dynamics.stages[0].name}", theme)


def drift_map(drift: Float[np.ndarray, "n_layers n_heads"], note: str, theme: Theme) -> go.Figure:
    """Layer x head map of drift, from 0 to the largest value; cells stay blank where the drift is NaN (unknown)."""
    n_layers, n_heads = drift.shape
    # drift is never negative: only the upper half of the diverging scale is used
    scale = [[place, colour] for place, colour in ((0.0, theme.surface), (0.5, colour_at(theme.diverging, 0.75)),
                                                   (1.0, colour_at(theme.diverging, 1.0)))]  # fmt: skip
    figure = go.Figure(
        go.Heatmap(
            z=drift, zmin=0, zmax=float(np.nanmax(drift)) or 1.0, colorscale=scale, xgap=1, ygap=1, hoverongaps=False,
            hovertemplate="L%{y}H%{x}: %{z:.2f}<extra></extra>", colorbar=colour_bar(theme, "drift (share)"),
        )
    )  # fmt: skip
    styled(figure, theme, "Where heads write something else", note, height=120 + max(170, min(34 * n_layers, 560)))
    ticks = {"tickmode": "linear", "tick0": 0, "dtick": 1 if n_heads <= 16 else 4 if n_heads <= 40 else 8}
    figure.update_xaxes(title_text="head", showgrid=False, **ticks, range=[-0.5, n_heads - 0.5])
    figure.update_yaxes(
        title_text="layer", showgrid=False, dtick=1 if n_layers <= 16 else 4, range=[-0.5, n_layers - 0.5]
    )
    return figure


def prediction_plot(
    tasks: pd.DataFrame, predictors: pd.DataFrame, *, name: str = "activation_cosine", theme: Theme = LIGHT
) -> go.Figure:
    """Probability of the answer against one predictor: one mark per task and checkpoint, coloured by training step.

    Args:
        tasks: `Dynamics.tasks`, without the first checkpoint.
        predictors: the table that `ivlens.analysis.dynamics.predictors` returns for `tasks`.
        name: the column of `tasks` that is the predictor.

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    rows = rows_of(tasks, (name, "prob", "step"), "ivlens.analysis.dynamics.track")
    found = {
        row["predictor"]: row for row in rows_of(predictors, ("predictor", "r2"), "ivlens.analysis.dynamics.predictors")
    }
    figure = go.Figure()
    # checkpoints without a step number (-1) come last
    steps = sorted(grouped(rows, lambda row: row["step"] if row["step"] >= 0 else float("inf")).items())
    for rank, (number, own) in enumerate(steps):
        step = "unknown" if number == float("inf") else f"{number:.0f}"
        colour = colour_at(theme.steps, rank / max(1, len(steps) - 1))
        figure.add_trace(
            go.Scatter(
                x=[row[name] for row in own], y=[row["prob"] for row in own], mode="markers", name=step,
                marker={"size": 9, "color": colour}, text=[row["task"] for row in own],
                hovertemplate=f"%{{text}}, step {step}<br>%{{x:.2f}}: %{{y:.2f}}<extra></extra>",
            )
        )  # fmt: skip
    scores = ", ".join(f"{key.replace('_', ' ')} {row['r2']:.2f}" for key, row in found.items())
    styled(
        figure,
        theme,
        "Does the activated vector predict performance?",
        f"R² on tasks left out of the fit: {scores}",
        height=400,
    )
    figure.update_xaxes(
        title_text=name.replace("_", " ").replace("activation cosine", "cosine of hidden state and first vector")
    )
    figure.update_yaxes(title_text="probability of the answer", range=[-0.03, 1.06], dtick=0.2)
    return with_legend(figure, theme, title={"text": "step "}, font={"color": theme.muted})


def _line(
    points: Sequence[Row], names: Sequence[str], y: Sequence[float], line: dict, task: str, label: str, shown: bool,
    opacity: float,
) -> go.Scatter:  # fmt: skip
    """One line over the checkpoints: `y` at each of `points`, named `task` in hover texts and `label` in the legend."""
    return go.Scatter(
        x=_places(points, names), y=list(y), mode="lines+markers", name=label, legendgroup=label, showlegend=shown,
        line=line, marker={"size": 4 if line["width"] == 1 else 7}, opacity=opacity,
        hovertemplate=f"{task}, step %{{x}}: %{{y:.2f}}<extra></extra>",
    )  # fmt: skip


def _places(points: Sequence[Row], names: Sequence[str]) -> list[int]:
    """Places on the x axis: training steps if every checkpoint has one, otherwise the numbers of the checkpoints."""
    if all(row["step"] >= 0 for row in points):
        return [row["step"] for row in points]
    return [names.index(row["checkpoint"]) for row in points]


def _axis(rows: Sequence[Row]) -> str:
    """The title of the x axis, see `_places`."""
    return "step" if all(row["step"] >= 0 for row in rows) else "checkpoint"


def _references(figure: go.Figure, rows: Sequence[Row], theme: Theme) -> None:
    """Draw the two reference lines in the right panel, each the mean over tasks at the first checkpoint."""
    first = [row for row in rows if row["checkpoint"] == rows[0]["checkpoint"]]
    lines = (("split_half", "two halves of the prompts", "dash"), ("between_mean", "vectors of different tasks", "dot"))
    for value, label, dash in lines:
        level = mean(row[value] for row in first if row[value] == row[value])
        if level == level:
            at = {"xref": "x2 domain", "yref": "y2", "y0": level, "y1": level, "x0": 0, "x1": 1}
            figure.add_shape(type="line", **at, line={"dash": dash, "width": 1.5, "color": theme.reference})
            figure.add_trace(level_entry(label, theme.reference, dash), row=1, col=2)
