"""Vectors, heads and performance along a training."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from ivlens.analysis.dynamics.comparison import Dynamics
from ivlens.show.figures.rows import Row, grouped, mean, rows_of
from ivlens.show.figures.theme import LIGHT, Theme, colour_at, colour_bar, styled, with_legend

PANELS = {"accuracy": "accuracy with the instruction", "iv_cosine_fixed": "cosine with the first vector"}


def dynamics_curves(tasks: pd.DataFrame, *, theme: Theme = LIGHT) -> go.Figure:
    """Performance (left) and IV cosine (right) over the checkpoints: thin for each task, thick for their mean.

    Dashed in the right panel: the cosine of two halves of the prompts (nothing changed), and the mean cosine between
    tasks (another vector).

    Args:
        tasks: `Dynamics.tasks`.

    Raises:
        ValueError: not such a table.
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
    """How far what each head writes has moved, as a share of what it wrote at first; mean over tasks.

    Raises:
        KeyError: no such checkpoint.
    """
    name = checkpoint or dynamics.stages[-1].name
    return drift_map(dynamics.drift_map(checkpoint).numpy(), f"{name} against {dynamics.stages[0].name}", theme)


def drift_map(drift: Float[np.ndarray, "n_layers n_heads"], note: str, theme: Theme) -> go.Figure:
    """Drift of every head on a scale from 0 to the largest; NaN where it is not known."""
    n_layers, n_heads = drift.shape
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
    """Performance against one predictor: a mark for each task at each checkpoint, darker for later ones.

    Args:
        tasks: `Dynamics.tasks`, without the first checkpoint.
        predictors: What `ivlens.analysis.dynamics.predictors` made of it.
    """
    rows = rows_of(tasks, (name, "prob", "step"), "ivlens.analysis.dynamics.track")
    found = {
        row["predictor"]: row for row in rows_of(predictors, ("predictor", "r2"), "ivlens.analysis.dynamics.predictors")
    }
    figure = go.Figure()
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
        figure, theme, "Does the activated vector predict performance?", f"R² where not fitted: {scores}", height=400
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
    return go.Scatter(
        x=_places(points, names), y=list(y), mode="lines+markers", name=label, legendgroup=label, showlegend=shown,
        line=line, marker={"size": 4 if line["width"] == 1 else 7}, opacity=opacity,
        hovertemplate=f"{task}, step %{{x}}: %{{y:.2f}}<extra></extra>",
    )  # fmt: skip


def _places(points: Sequence[Row], names: Sequence[str]) -> list[int]:
    """Steps where all checkpoints have one, otherwise their numbers."""
    if all(row["step"] >= 0 for row in points):
        return [row["step"] for row in points]
    return [names.index(row["checkpoint"]) for row in points]


def _axis(rows: Sequence[Row]) -> str:
    return "step" if all(row["step"] >= 0 for row in rows) else "checkpoint"


def _references(figure: go.Figure, rows: Sequence[Row], theme: Theme) -> None:
    first = [row for row in rows if row["checkpoint"] == rows[0]["checkpoint"]]
    for value, label in (("split_half", "two halves"), ("between_mean", "between tasks")):
        level = mean(row[value] for row in first if row[value] == row[value])
        if level == level:
            at = {"xref": "x2 domain", "yref": "y2", "y0": level, "y1": level, "x0": 0, "x1": 1}
            figure.add_shape(type="line", **at, line={"dash": "dash", "width": 1.2, "color": theme.reference})
            figure.add_annotation(
                x=1, xref="x2 domain", xanchor="right", y=level, yref="y2", yanchor="top" if level > 0.9 else "bottom",
                text=label, showarrow=False, font={"size": 11, "color": theme.muted},
            )  # fmt: skip
