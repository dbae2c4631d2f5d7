"""The figure of numbers of heads: accuracy with vectors of more and more heads, beside as many random heads."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from ivlens.show.figures.panels import Look, Panels, mark, rows_by_task
from ivlens.show.figures.rows import Row, interval_kinds
from ivlens.show.figures.theme import LIGHT, Theme, translucent

LOOKS = {
    "by_k": Look("vector of the k strongest heads", "circle", "accent"),
    "by_k_random_heads": Look("vectors of k random heads", "square", "control", "dash"),
}
BEST = "the best of these draws"


def by_k_plot(table: pd.DataFrame, *, theme: Theme = LIGHT) -> go.Figure:
    """Accuracy against the number of heads `k`, with the vector and with as many random heads; a panel for each task.

    Bands are intervals over prompts; the small open marks are the best draw of random heads at each `k`.

    Args:
        table: the table of `ivlens.evaluate_intervention` with the further rows `by_k`, with a column `task` where
            there are several tasks.

    Raises:
        ValueError: a column is missing, or there are no such rows.
    """
    tasks = rows_by_task(table, tuple(LOOKS))
    panels = Panels([*tasks], theme)
    numbers = sorted({k_of(row) for rows in tasks.values() for row in rows if row["condition"] in LOOKS})
    for number, rows in enumerate(tasks.values()):
        for rank, (condition, look) in reversed([*enumerate(LOOKS.items())]):  # the vector last, on top of the others
            chosen = sorted((row for row in rows if row["condition"] == condition), key=k_of)
            if chosen:
                panels.add(number, [trace.update(legendrank=rank) for trace in _traces(chosen, look, theme)])
        panels.levels(number, rows)
    shown = [row for rows in tasks.values() for row in rows if row["condition"] in LOOKS]
    note = f"bands: {interval_kinds(shown)} over prompts"
    figure = panels.finished("How many heads", note, height=270, margin_t=96)
    figure.update_xaxes(
        title_text="heads in the vector, k", type="category", categoryorder="array",
        categoryarray=list(map(str, numbers)), range=[-0.3, len(numbers) - 0.7],
    )  # fmt: skip
    figure.update_yaxes(range=[-0.03, 1.03], dtick=0.2)
    return figure.update_yaxes(title_text="accuracy (share of prompts)", col=1)


def k_of(row: Row) -> int:
    """The number of heads of a row, from its variant, such as `k=5`."""
    name, _, k = str(row["variant"]).partition("=")
    if name != "k" or not k.isdecimal():
        raise ValueError(
            f"a row of {row['condition']} has the variant {row['variant']!r:.60}, expected k= and a number."
        )
    return int(k)


def _traces(rows: Sequence[Row], look: Look, theme: Theme) -> list[go.Scatter]:
    """Line and band of one condition, and for random heads the best draws."""
    colour, ks = getattr(theme, look.colour), [str(k_of(row)) for row in rows]
    lows, highs = ([row[f"accuracy_{end}"] for row in rows] for end in ("lo", "hi"))
    # one closed outline: the upper ends from left to right, the lower ends back
    band = go.Scatter(
        x=[*ks, *reversed(ks)], y=[*highs, *reversed(lows)], mode="lines", fill="toself",
        fillcolor=translucent(colour, 0.14), line={"width": 0}, hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    line = go.Scatter(
        x=ks, y=[row["accuracy"] for row in rows], name=look.label, mode="lines+markers",
        line={"color": colour, "width": 2, "dash": look.dash}, marker={**mark(look, theme, 7), "line": {"width": 0}},
        customdata=list(zip(lows, highs, strict=True)),
        hovertemplate=f"k = %{{x}}<br>{look.label}: %{{y:.2f}} (%{{customdata[0]:.2f}} to %{{customdata[1]:.2f}})"
        "<extra></extra>",
    )  # fmt: skip
    best = [row.get("accuracy_best", float("nan")) for row in rows]
    if look.colour != "control" or all(value != value for value in best):
        return [band, line]
    dots = go.Scatter(
        x=ks, y=best, name=BEST, mode="markers", marker=mark(Look("", "square-open", "control"), theme, 6),
        hovertemplate="k = %{x}<br>best draw: %{y:.2f}<extra></extra>",
    )  # fmt: skip
    return [band, line, dots]
