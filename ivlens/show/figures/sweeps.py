"""The figure of a sweep: accuracy, or another score, by layer and strength."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ivlens.show.figures.rows import grouped, mean, rows_of
from ivlens.show.figures.theme import LIGHT, Theme, colour_at, level_entry, styled, with_legend

METRIC_NAMES = {
    "accuracy": "accuracy (share of prompts)",
    "exact": "exact answers (share of prompts)",
    "prob": "probability of the answer's first token",
    "logprob": "log-probability of the answer (nats)",
}


def strength_curves(
    frame: pd.DataFrame,
    *,
    metric: str = "accuracy",
    title: str = "Accuracy by layer and strength",
    theme: Theme = LIGHT,
) -> go.Figure:
    """A metric by layer, one line per strength and one panel per site, averaged over vectors and tasks.

    Args:
        frame: what `ivlens.sweep_settings` returns (columns layer, alpha, site and the metric), or several of these
            concatenated. Rows of strength 0 are without a vector: their mean is the dashed line.
        metric: the column that is drawn: accuracy, exact, prob or logprob.
        title: the title of the figure.

    Raises:
        ValueError: an unknown metric, a missing column, or no rows with a strength but 0.
    """
    if metric not in METRIC_NAMES:
        raise ValueError(f"metric is {metric!r}, expected one of {', '.join(METRIC_NAMES)}.")
    rows = rows_of(frame, ("layer", "alpha", "site", metric), "ivlens.sweep_settings")
    steered = [row for row in rows if row["alpha"] != 0]
    if not steered:
        raise ValueError("the sweep has no strength but 0, expected some with a vector; pass a grid with other alphas.")
    baseline = mean(row[metric] for row in rows if row["alpha"] == 0)
    sites = sorted({row["site"] for row in steered}, reverse=True)
    alphas = sorted({row["alpha"] for row in steered})
    layers = sorted({row["layer"] for row in steered})
    figure = make_subplots(rows=1, cols=len(sites), shared_yaxes=True, horizontal_spacing=0.04)
    for column, site in enumerate(sites, start=1):
        panel = grouped((row for row in steered if row["site"] == site), lambda row: (row["alpha"], row["layer"]))
        for rank, alpha in enumerate(alphas):
            y = [mean(row[metric] for row in panel.get((alpha, layer), ())) for layer in layers]
            line = _line(layers, y, alpha, colour_at(theme.steps, rank / max(1, len(alphas) - 1)))
            figure.add_trace(line.update(showlegend=column == 1), row=1, col=column)
        if not math.isnan(baseline):
            _dash(figure, baseline, column, theme)
    # prompts behind one point: all rows share equally among the points
    n = sum(row.get("n", 0) for row in steered) // (len(sites) * len(alphas) * len(layers))
    if not math.isnan(baseline):
        figure.add_trace(level_entry("no vector", theme.reference, "dash"))
    styled(figure, theme, title, f"{n} prompts per point" if n else "", height=380)
    _finish(figure, sites, layers, metric, theme)
    return figure


def _line(layers: Sequence[int], y: Sequence[float], alpha: float, colour: str) -> go.Scatter:
    """The line of one strength."""
    return go.Scatter(
        x=list(layers), y=list(y), name=f"{alpha:g}", legendgroup=f"{alpha:g}", mode="lines+markers",
        line={"color": colour, "width": 2}, marker={"size": 6, "color": colour},
        hovertemplate=f"layer %{{x}}, strength {alpha:g}: %{{y:.2f}}<extra></extra>",
    )  # fmt: skip


def _dash(figure: go.Figure, value: float, column: int, theme: Theme) -> None:
    """Draw a dashed horizontal line at this value across the panel."""
    axis = "" if column == 1 else str(column)
    line = {"dash": "dash", "width": 1.5, "color": theme.reference}
    figure.add_shape(type="line", xref=f"x{axis} domain", yref=f"y{axis}", x0=0, x1=1, y0=value, y1=value, line=line)


def _finish(figure: go.Figure, sites: Sequence[str], layers: Sequence[int], metric: str, theme: Theme) -> None:
    """Set the titles and ranges of all axes, and the legend."""
    # in a deep model not every layer is tried
    ticks: dict[str, Any] = {"tickvals": list(layers)} if len(layers) <= 16 else {"dtick": 4}
    for column, site in enumerate(sites, start=1):
        figure.update_xaxes(title_text=f"layer · {site}", **ticks, row=1, col=column)
    figure.update_yaxes(title_text=METRIC_NAMES[metric], row=1, col=1)
    if metric != "logprob":  # all others are shares
        figure.update_yaxes(range=[-0.03, 1.03], dtick=0.2)
    title = {"text": "strength α ", "font": {"color": theme.text, "size": 12}}
    with_legend(figure, theme, xanchor="left", title=title)
