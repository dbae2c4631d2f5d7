"""Figures of a series of checkpoints: instruction and knowledge probability at each, and the drift of every head."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ivlens.common.measures import renamed
from ivlens.show.figures.dynamics import drift_map
from ivlens.show.figures.rows import grouped, interval_kinds, mean, rows_of
from ivlens.show.figures.theme import LIGHT, Theme, styled, translucent, with_legend

# label, colour (its name in the theme), dash and symbol of either kind of probability
KINDS = {"instruction": ("with the instruction", "accent", "solid", "circle"),
         "knowledge": ("in clozes without it", "control", "dash", "square")}  # fmt: skip


def knowledge_curves(table: pd.DataFrame, *, measure: str = "seq_prob", theme: Theme = LIGHT) -> go.Figure:
    """Instruction and knowledge probability of the right answers, from checkpoint to checkpoint.

    Both are means over the tasks that have both; bands are the 95 % intervals of the loss since the first checkpoint.

    Args:
        table: `forgetting.parquet` of `ivlens forget`: the tables of `ivlens.analysis.forgetting.decompose` for every
            checkpoint after the first, with a column `checkpoint`.
        measure: the measure that is drawn, one of those in the column `measure`.

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
        # the interval is that of the drop, so a small drop is the upper end; at the first checkpoint nothing was lost
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
    """Map of the drift of every head at the last checkpoint: the change in its mean write, as a share of the first one.

    The map is the mean over tasks. Formula: docs/method.md, 8 Vectors along a training.

    Args:
        heads: `Dynamics.heads`.

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    rows = rows_of(heads, ("checkpoint", "layer", "head", "drift"), "ivlens.analysis.dynamics.track")
    # the last row names the last checkpoint; step numbers cannot tell, since not every checkpoint has one
    last = [row for row in rows if row["checkpoint"] == rows[-1]["checkpoint"]]
    shape = 1 + max(int(row["layer"]) for row in last), 1 + max(int(row["head"]) for row in last)
    values = np.full(shape, np.nan)
    for (layer, head), group in grouped(last, lambda row: (int(row["layer"]), int(row["head"]))).items():
        values[layer, head] = mean(row["drift"] for row in group)
    return drift_map(values, f"mean over tasks, {last[0]['checkpoint']}", theme)
