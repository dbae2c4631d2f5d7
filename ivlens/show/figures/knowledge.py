"""Instruction and knowledge along a series of checkpoints, and where heads have moved."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ivlens.common.measures import renamed
from ivlens.show.figures.dynamics import drift_map
from ivlens.show.figures.rows import grouped, interval_kinds, mean, rows_of
from ivlens.show.figures.theme import LIGHT, Theme, styled, translucent, with_legend

KINDS = {"instruction": ("with the instruction", "accent", "solid", "circle"),
         "knowledge": ("in clozes without it", "control", "dash", "square")}  # fmt: skip


def knowledge_curves(table: pd.DataFrame, *, measure: str = "seq_prob", theme: Theme = LIGHT) -> go.Figure:
    """Probability of the right answers, asked with the instruction and in clozes, from checkpoint to checkpoint.

    Means over tasks that have both; bands are the 95 % intervals of what was lost since the first checkpoint.

    Args:
        table: the forgetting.parquet of `ivlens forget`: `ivlens.analysis.forgetting.decompose` for every checkpoint
            after the first, with a column `checkpoint`.
        measure: one of its measures.

    Raises:
        ValueError: a column is missing, or no row has this measure.
    """
    every = rows_of(
        renamed(table), ("checkpoint", "task", "measure", "instruction_before", "instruction_drop_lo"), "ivlens forget"
    )
    rows = [row for row in every if row["measure"] == measure and row["task"] == "all tasks"]
    if not rows:
        known = ", ".join(sorted({str(row["measure"]) for row in every}))
        raise ValueError(f"measure is {measure!r}, expected one of {known}, with rows over all tasks.")
    names = ["before", *(str(row["checkpoint"]) for row in rows)]
    figure = go.Figure()
    for kind, (label, tone, dash, symbol) in KINDS.items():
        colour, start = getattr(theme, tone), rows[0][f"{kind}_before"]
        values = [start, *(row[f"{kind}_after"] for row in rows)]
        highs = [start, *(start - row[f"{kind}_drop_lo"] for row in rows)]
        lows = [start, *(start - row[f"{kind}_drop_hi"] for row in rows)]
        band = {"x": [*names, *reversed(names)], "y": [*highs, *reversed(lows)], "line": {"width": 0}}
        figure.add_scatter(**band, mode="lines", fill="toself", fillcolor=translucent(colour, 0.16), hoverinfo="skip",
                           showlegend=False)  # fmt: skip
        figure.add_scatter(x=names, y=values, name=label, mode="lines+markers",
                           line={"color": colour, "width": 2, "dash": dash},
                           marker={"size": 7, "color": colour, "symbol": symbol})  # fmt: skip
    note = f"means over tasks · bands: {interval_kinds(rows)} of the loss"
    styled(figure, theme, "Instruction and knowledge", note, height=340)
    figure.update_xaxes(title_text="checkpoint", type="category")
    figure.update_yaxes(title_text="probability of the right answer", range=[-0.03, 1.06], dtick=0.2)
    return with_legend(figure, theme)


def drift_of_table(heads: pd.DataFrame, *, theme: Theme = LIGHT) -> go.Figure:
    """How far what each head writes has moved at the last checkpoint, as a share of what it wrote; mean over tasks.

    Args:
        heads: `Dynamics.heads`.

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    rows = rows_of(heads, ("checkpoint", "layer", "head", "drift"), "ivlens.analysis.dynamics.track")
    # the last in the order of the series: not every checkpoint has a step
    last = [row for row in rows if row["checkpoint"] == rows[-1]["checkpoint"]]
    shape = 1 + max(int(row["layer"]) for row in last), 1 + max(int(row["head"]) for row in last)
    values = np.full(shape, np.nan)
    for (layer, head), group in grouped(last, lambda row: (int(row["layer"]), int(row["head"]))).items():
        values[layer, head] = mean(row["drift"] for row in group)
    return drift_map(values, f"mean over tasks, {last[0]['checkpoint']}", theme)
