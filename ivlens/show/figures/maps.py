"""Layer x head maps of the effects of several tasks, side by side on one colour scale."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool
from plotly.subplots import make_subplots

from ivlens.effects.results import HeadEffects
from ivlens.show.figures.heads import UNITS, unit_of
from ivlens.show.figures.marks import Map, Room, grey, rank_marks, unsure, with_map_legend
from ivlens.show.figures.rows import grouped, interval_kinds, rows_of
from ivlens.show.figures.theme import LIGHT, Theme, colour_bar, styled

COLUMNS = 4  # maps side by side


def head_maps(results: Sequence[HeadEffects] | pd.DataFrame, *, top: int = 5, theme: Theme = LIGHT) -> go.Figure:
    """Maps of the average indirect effect (AIE) of every head, one panel per task; the strongest have ranks.

    Heads whose interval includes 0 are grey, where the table has intervals.

    Args:
        results: effects of one model, or their tables (`HeadEffects.to_frame`), concatenated.
        top: how many heads to mark in each map; 0: none.

    Raises:
        ValueError: no effects, effects of several shapes or scores, or a table without the needed columns.
    """
    maps = _from_table(results) if isinstance(results, pd.DataFrame) else _from_effects(results)
    if not maps or len({one.values.shape for one in maps.values()}) > 1:
        shapes = sorted({str(one.values.shape) for one in maps.values()})
        raise ValueError(f"head maps of shapes {', '.join(shapes) or 'none'}, expected one or more of one model.")
    unit = _unit(results)
    # one limit for all, so that a colour means the same effect in every map
    limit = max(float(np.nanmax(np.abs(one.values))) for one in maps.values()) or 1.0
    kinds = {one.kind for one in maps.values() if one.covered.any()}
    n_columns = min(COLUMNS, len(maps))
    n_rows = math.ceil(len(maps) / n_columns)
    figure = make_subplots(
        rows=n_rows, cols=n_columns, shared_xaxes=True, shared_yaxes=True, subplot_titles=[*maps],
        horizontal_spacing=0.03, vertical_spacing=0.16 / n_rows,
    )  # fmt: skip
    room = Room(520 / n_columns, 72 * inches_of(next(iter(maps.values())).values.shape[0]))
    for place, one in enumerate(maps.values()):
        row, column = divmod(place, n_columns)
        heat = go.Heatmap(
            z=one.values, zmin=-limit, zmax=limit, colorscale=theme.diverging, xgap=1, ygap=1, hoverongaps=False,
            showscale=place == 0, colorbar=colour_bar(theme, unit),
            hovertemplate="L%{y}H%{x}: %{z:+.2g}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(heat, row=row + 1, col=column + 1)
        marks = rank_marks(one.values, top, limit, one.covered, theme, room)
        for trace in [*([grey(one.covered, theme)] if one.covered.any() else []), *marks]:
            figure.add_trace(trace, row=row + 1, col=column + 1)
        figure.update_xaxes(title_text="head" if row == n_rows - 1 else "", row=row + 1, col=column + 1)
        figure.update_yaxes(title_text="" if column else "layer", row=row + 1, col=column + 1)
    n_layers, n_heads = next(iter(maps.values())).values.shape
    height = 180 + round(130 * inches_of(n_layers)) * n_rows
    styled(figure, theme, "Effect of each head", "one colour scale for all maps", height=height)
    figure.update_xaxes(showgrid=False, range=[-0.55, n_heads - 0.45], tick0=0, dtick=_step(n_heads))
    figure.update_yaxes(showgrid=False, range=[-0.6, n_layers - 0.4], tick0=0, dtick=_step(n_layers))
    figure.update_annotations(font={"size": 12, "color": theme.text}, yshift=2)
    with_map_legend(figure, theme, top, " or ".join(sorted(kinds)), margin_t=118)
    return figure.update_layout(legend_y=1 + 24 / (height - 118 - 48))


def inches_of(n_layers: int) -> float:
    """The height of a row of maps in a printed figure; ranks need room in deep models."""
    return 1.3 if n_layers <= 16 else 2.0


class _Map(NamedTuple):
    """The effects of one task, the heads whose interval includes 0, and the kind of the intervals."""

    values: Map
    covered: Bool[np.ndarray, "n_layers n_heads"]
    kind: str


def _from_effects(results: Sequence[HeadEffects]) -> dict[str, _Map]:
    """The map of each result under its task's name; a second map of a task is named `task (2)`."""
    maps = dict[str, _Map]()
    for found in results:
        n_before = sum(other.task == found.task for other in results[: len(maps)])
        shown = found.interval(simultaneous=True)
        covered = unsure(shown.low.cpu().numpy(), shown.high.cpu().numpy())
        name = f"{found.task} ({n_before + 1})" if n_before else found.task
        maps[name] = _Map(found.aie.cpu().numpy(), covered, shown.kind)
    return maps


def _from_table(frame: pd.DataFrame) -> dict[str, _Map]:
    """The map of each task in a table; NaN for heads that the table lacks."""
    rows = rows_of(frame, ("task", "layer", "head", "aie"), "HeadEffects.to_frame")
    shape = 1 + max(int(row["layer"]) for row in rows), 1 + max(int(row["head"]) for row in rows)
    maps = {}
    for task, group in grouped(rows, lambda row: row["task"]).items():
        values, low, high = (np.full(shape, np.nan) for _ in range(3))
        for row in group:
            head = int(row["layer"]), int(row["head"])
            values[head] = row["aie"]
            low[head], high[head] = row.get("low", np.nan), row.get("high", np.nan)
        maps[str(task)] = _Map(values, unsure(low, high), interval_kinds(group).removesuffix(" interval"))
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


def _step(n: int) -> int:
    """The distance of the ticks on an axis with `n` cells."""
    return 1 if n <= 6 else 2 if n <= 16 else 8
