"""Figures of a sweep: accuracy, or another score, by layer and strength, as lines and as a map."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ivlens.show.figures.benchmarks import LEVELS
from ivlens.show.figures.rows import Row, grouped, mean, rows_of
from ivlens.show.figures.theme import LIGHT, Theme, colour_at, colour_bar, level_entry, styled, with_legend

METRIC_NAMES = {
    "accuracy": "accuracy (share of prompts)",
    "exact": "exact answers (share of prompts)",
    "prob": "probability of the answer's first token",
    "logprob": "log-probability of the answer (nats)",
}
SHORT = {"accuracy": "accuracy", "exact": "exact", "prob": "probability", "logprob": "nats"}  # at colour bars


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
    steered, sites, alphas, layers = _settings_of(frame, metric)
    baseline = mean(row[metric] for row in frame.to_dict("records") if row["alpha"] == 0)
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


def strength_map(frame: pd.DataFrame, *, metric: str = "accuracy", title: str = "", theme: Theme = LIGHT) -> go.Figure:
    """Map of a metric by layer and strength, a panel for each site, averaged over vectors and tasks.

    The best setting is outlined, and named in the note.

    Args:
        frame: as for `strength_curves`; rows of strength 0 are without a vector and are no row of the map.
        metric: the column that is drawn: accuracy, exact, prob or logprob.
        title: the title of the figure; empty: a general one.

    Raises:
        ValueError: an unknown metric, a missing column, or no rows with a strength but 0.
    """
    rows, sites, alphas, layers = _settings_of(frame, metric)
    cells = {
        key: mean(row[metric] for row in group)
        for key, group in grouped(rows, lambda row: (row["site"], row["alpha"], row["layer"])).items()
    }
    known = {key: value for key, value in cells.items() if value == value}
    # shares have one scale in all figures; log-probabilities that of their values
    low, high = (0.0, 1.0) if metric != "logprob" else (min(known.values()), max(known.values()))
    figure = make_subplots(rows=1, cols=len(sites), shared_yaxes=True, horizontal_spacing=0.04)
    for column, site in enumerate(sites, start=1):
        values = [[cells.get((site, alpha, layer), float("nan")) for layer in layers] for alpha in alphas]
        heat = go.Heatmap(
            z=values, x=list(map(str, layers)), y=[f"{alpha:g}" for alpha in alphas], zmin=low, zmax=high,
            colorscale=LEVELS, xgap=1, ygap=1, hoverongaps=False, showscale=column == 1,
            colorbar=colour_bar(theme, SHORT[metric]),
            hovertemplate=f"layer %{{x}}, strength %{{y}}, {site}: %{{z:.3f}}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(heat, row=1, col=column)
        figure.update_xaxes(title_text=f"layer · {site}", row=1, col=column)
    site, alpha, layer = max(known, key=lambda key: (known[key], -key[1], -key[2]))
    _outline(figure, sites.index(site) + 1, layers.index(layer), alphas.index(alpha), theme)
    note = f"{METRIC_NAMES[metric]} · outlined: the best, layer {layer}, strength {alpha:g}, {site}: "
    note += f"{known[site, alpha, layer]:.2f}"
    styled(figure, theme, title or "By layer and strength", note, height=150 + 34 * len(alphas))
    figure.update_xaxes(type="category", showgrid=False, dtick=2 if len(layers) > 12 else 1)
    figure.update_yaxes(type="category", showgrid=False)
    return figure.update_yaxes(title_text="strength α", row=1, col=1)


def _settings_of(frame: pd.DataFrame, metric: str) -> tuple[list[Row], list[str], list[float], list[int]]:
    """The rows with a vector, and the sites, strengths and layers that occur in them.

    Raises:
        ValueError: an unknown metric, a missing column, or no rows with a strength but 0.
    """
    if metric not in METRIC_NAMES:
        raise ValueError(f"metric is {metric!r}, expected one of {', '.join(METRIC_NAMES)}.")
    rows = rows_of(frame, ("layer", "alpha", "site", metric), "ivlens.sweep_settings")
    steered = [row for row in rows if row["alpha"] != 0]
    if not steered:
        raise ValueError("the sweep has no strength but 0, expected some with a vector; pass a grid with other alphas.")
    sites = sorted({str(row["site"]) for row in steered}, reverse=True)
    alphas = sorted({float(row["alpha"]) for row in steered})
    return steered, sites, alphas, sorted({int(row["layer"]) for row in steered})


def _outline(figure: go.Figure, column: int, x: int, y: int, theme: Theme) -> None:
    """A frame around one cell of a panel; categories are counted from 0."""
    # two lines, so that the frame is seen on light cells and on dark ones
    for colour, width in ((theme.surface, 4), (theme.text, 2)):
        line: Any = {"color": colour, "width": width}
        figure.add_shape(type="rect", x0=x - 0.5, x1=x + 0.5, y0=y - 0.5, y1=y + 0.5, line=line, row=1, col=column)


def _line(layers: Sequence[int], y: Sequence[float], alpha: float, colour: str) -> go.Scatter:
    """The line of one strength."""
    return go.Scatter(
        x=list(layers), y=list(y), name=f"strength {alpha:g}", legendgroup=f"{alpha:g}", mode="lines+markers",
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
    with_legend(figure, theme, xanchor="left")
