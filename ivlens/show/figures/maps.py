"""Layer x head maps of the effects of several tasks, side by side on one colour scale."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ivlens.effects.results import HeadEffects
from ivlens.show.figures.heads import UNITS, unit_of
from ivlens.show.figures.rows import grouped, rows_of
from ivlens.show.figures.theme import LIGHT, Theme, colour_bar, styled

COLUMNS = 4  # maps side by side


def head_maps(results: Sequence[HeadEffects] | pd.DataFrame, *, top: int = 5, theme: Theme = LIGHT) -> go.Figure:
    """Maps of the average indirect effect (AIE) of every head, one panel per task; dots mark the strongest heads.

    Args:
        results: effects of one model, or their tables (`HeadEffects.to_frame`), concatenated.
        top: how many heads to mark in each map; 0: none.

    Raises:
        ValueError: no effects, effects of several shapes or scores, or a table without the needed columns.
    """
    maps = _from_table(results) if isinstance(results, pd.DataFrame) else _from_effects(results)
    if not maps or len({values.shape for values in maps.values()}) > 1:
        shapes = sorted({str(values.shape) for values in maps.values()})
        raise ValueError(f"head maps of shapes {', '.join(shapes) or 'none'}, expected one or more of one model.")
    unit = _unit(results)
    # one limit for all, so that a colour means the same effect in every map
    limit = max(float(np.nanmax(np.abs(values))) for values in maps.values()) or 1.0
    n_columns = min(COLUMNS, len(maps))
    n_rows = math.ceil(len(maps) / n_columns)
    figure = make_subplots(
        rows=n_rows, cols=n_columns, shared_xaxes=True, shared_yaxes=True, subplot_titles=[*maps],
        horizontal_spacing=0.02, vertical_spacing=0.16 / n_rows,
    )  # fmt: skip
    for place, values in enumerate(maps.values()):
        row, column = divmod(place, n_columns)
        heat = go.Heatmap(
            z=values, zmin=-limit, zmax=limit, colorscale=theme.diverging, xgap=0.5, ygap=0.5, hoverongaps=False,
            showscale=place == 0, colorbar=colour_bar(theme, unit),
            hovertemplate="L%{y}H%{x}: %{z:+.3f}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(heat, row=row + 1, col=column + 1)
        figure.add_trace(_dots(values, top, theme), row=row + 1, col=column + 1)
        figure.update_xaxes(title_text="head" if row == n_rows - 1 else "", row=row + 1, col=column + 1)
        figure.update_yaxes(title_text="" if column else "layer", row=row + 1, col=column + 1)
    styled(figure, theme, "Effect of each head", f"dots: the {top} strongest of each task", height=160 + 170 * n_rows)
    n_layers, n_heads = next(iter(maps.values())).shape
    figure.update_xaxes(showgrid=False, range=[-0.5, n_heads - 0.5], tick0=0, dtick=_step(n_heads))
    figure.update_yaxes(showgrid=False, range=[-0.5, n_layers - 0.5], tick0=0, dtick=_step(n_layers))
    return figure.update_annotations(font={"size": 12, "color": theme.text})


def _from_effects(results: Sequence[HeadEffects]) -> dict[str, np.ndarray]:
    """The map of each result under its task's name; a second map of a task is named `task (2)`."""
    maps = dict[str, np.ndarray]()
    for found in results:
        n_before = sum(other.task == found.task for other in results[: len(maps)])
        maps[f"{found.task} ({n_before + 1})" if n_before else found.task] = found.aie.cpu().numpy()
    return maps


def _from_table(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """The map of each task in a table; NaN for heads that the table lacks."""
    rows = rows_of(frame, ("task", "layer", "head", "aie"), "HeadEffects.to_frame")
    shape = 1 + max(int(row["layer"]) for row in rows), 1 + max(int(row["head"]) for row in rows)
    maps = {}
    for task, group in grouped(rows, lambda row: row["task"]).items():
        maps[str(task)] = np.full(shape, np.nan)
        for row in group:
            maps[str(task)][int(row["layer"]), int(row["head"])] = row["aie"]
    return maps


def _unit(results: Sequence[HeadEffects] | pd.DataFrame) -> str:
    """The title of the colour scale, with the unit if it is known: tables of older versions do not record it."""
    if not isinstance(results, pd.DataFrame):
        units = {unit_of(found) for found in results}
    else:
        units = {UNITS.get(str(score), "score") for score in results["score"]} if "score" in results else set()
    if len(units) > 1:
        raise ValueError(f"head maps in {' and '.join(sorted(units))}, expected one score; draw each by itself.")
    return f"AIE ({units.pop()})" if units else "AIE"


def _dots(values: np.ndarray, top: int, theme: Theme) -> go.Scatter:
    """Dots on the `top` heads of largest effect; heads that were not measured (NaN) come last."""
    order = np.argsort(np.where(np.isnan(values), -np.inf, values), axis=None)[::-1][:top]
    layers, heads = np.unravel_index(order, values.shape)
    marker = {"symbol": "circle", "size": 7, "color": theme.surface, "line": {"width": 1, "color": theme.text}}
    return go.Scatter(x=heads, y=layers, mode="markers", marker=marker, hoverinfo="skip", showlegend=False)


def _step(n: int) -> int:
    """The distance of the ticks on an axis with `n` cells."""
    return 1 if n <= 6 else 2 if n <= 16 else 8
