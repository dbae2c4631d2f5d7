"""The figure of accuracy by layer: the Instruction Vector and its controls, each vector at its best strength."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ivlens.common.intervals import wilson
from ivlens.show.figures.rows import Row, grouped, mean, rows_of
from ivlens.show.figures.theme import LIGHT, Theme, level_entry, styled, translucent, with_legend


class Curve(NamedTuple):
    """Label, colour (its name in the theme), dash and symbol of a condition."""

    label: str
    colour: str
    dash: str
    symbol: str


CURVES = {
    "iv": Curve("Instruction Vector", "accent", "solid", "circle"),
    "random_heads": Curve("random heads", "control", "dash", "square"),
    "random": Curve("random vectors", "control", "dot", "diamond"),
    "other_tasks": Curve("other tasks' vectors", "muted", "dashdot", "triangle-up"),
}
NEEDED = ("condition", "vector", "layer", "alpha", "site", "accuracy", "n")


def intervention_curves(frame: pd.DataFrame, *, theme: Theme = LIGHT) -> go.Figure:
    """Accuracy by layer, one line per condition and one panel per site, with Wilson's 95 % intervals over prompts.

    At each layer every vector, controls included, is shown at its own best strength; then the vectors and tasks of one
    condition are averaged. The dashed line is the accuracy without any vector.

    Args:
        frame: `ivlens.sweep_settings` of vectors and of their controls, with a column `condition` (`iv`, `random`,
            `random_heads`, `other_tasks`) and, for several tasks, `task`. Rows of strength 0 are without a vector.

    Raises:
        ValueError: a column is missing, there are no rows, or no row has a known condition and a strength but 0.
    """
    rows = rows_of(frame, NEEDED, "ivlens.sweep_settings with a column `condition`")
    steered = [row for row in rows if row["alpha"] != 0 and row["condition"] in CURVES]
    if not steered:
        raise ValueError(
            f"the table has the conditions {sorted({str(row['condition']) for row in rows})} at the strengths "
            f"{sorted({row['alpha'] for row in rows})}, expected some of {', '.join(CURVES)} at others than 0."
        )
    baseline = mean(row["accuracy"] for row in rows if row["alpha"] == 0)
    sites = sorted({row["site"] for row in steered}, reverse=True)
    figure = make_subplots(rows=1, cols=len(sites), shared_yaxes=True, horizontal_spacing=0.04)
    for column, site in enumerate(sites, start=1):
        for name in (name for name in CURVES if any(row["condition"] == name for row in steered)):
            chosen = [row for row in steered if row["site"] == site and row["condition"] == name]
            for trace in _traces(chosen, CURVES[name], theme):
                figure.add_trace(trace.update(showlegend=column == 1 and bool(trace.name)), row=1, col=column)
        if baseline == baseline:  # not NaN: the table has rows without a vector
            level = {"dash": "dash", "width": 1.2, "color": theme.reference}
            figure.add_hline(y=baseline, line=level, row=1, col=column)  # pyright: ignore[reportArgumentType]
    if baseline == baseline:
        figure.add_trace(level_entry("no vector", theme.reference, "dash"))
    note = "best strength at each layer, select inputs · bands: Wilson 95 % over prompts"
    styled(figure, theme, "Accuracy with a vector added", note, height=380)
    for column, site in enumerate(sites, start=1):
        n_layers = len({row["layer"] for row in steered})
        figure.update_xaxes(title_text=f"layer · {site}", dtick=1 if n_layers <= 16 else 4, row=1, col=column)
    figure.update_yaxes(range=[-0.03, 1.03], dtick=0.2)
    figure.update_yaxes(title_text="accuracy (share of prompts)", row=1, col=1)
    return with_legend(figure, theme)


def _traces(rows: Sequence[Row], curve: Curve, theme: Theme) -> list[go.Scatter]:
    """The line of one condition at one site, and the band of its intervals."""
    by_layer = grouped(rows, lambda row: row["layer"])
    layers = sorted(by_layer)
    points = [_point(by_layer[layer]) for layer in layers]
    colour = getattr(theme, curve.colour)
    # one closed outline: the upper ends from left to right, the lower ends back
    band = go.Scatter(
        x=[*layers, *reversed(layers)], y=[*(high for _, _, high in points), *(low for _, low, _ in reversed(points))],
        mode="lines", fill="toself", fillcolor=translucent(colour, 0.16), line={"width": 0}, hoverinfo="skip",
        legendgroup=curve.label,
    )  # fmt: skip
    line = go.Scatter(
        x=layers, y=[value for value, _, _ in points], name=curve.label, legendgroup=curve.label, mode="lines+markers",
        line={"color": colour, "width": 2, "dash": curve.dash},
        marker={"size": 7, "color": colour, "symbol": curve.symbol},
        customdata=[[low, high] for _, low, high in points],
        hovertemplate=f"{curve.label}, layer %{{x}}: %{{y:.2f}} (%{{customdata[0]:.2f}} to %{{customdata[1]:.2f}})"
        "<extra></extra>",
    )  # fmt: skip
    return [band, line]


def _point(rows: Sequence[Row]) -> tuple[float, float, float]:
    """Mean accuracy of all vectors at their best strengths, and its Wilson interval over the prompts of all tasks.

    The vectors of one task see the same prompts, so prompts are counted once per task, not once per vector.
    """
    vectors = grouped(rows, lambda row: (row.get("task", ""), row["vector"]))
    best = [max(group, key=lambda row: row["accuracy"]) for group in vectors.values()]
    value = mean(row["accuracy"] for row in best)
    prompts = sum(int(group[0]["n"]) for group in grouped(best, lambda row: row.get("task", "")).values())
    return value, *wilson(value * prompts, prompts)
