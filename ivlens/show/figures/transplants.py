"""Figures of parts of one model in another: accuracy against the number of heads, and against the layer of a splice."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from ivlens.show.figures.panels import Look, Panels, mark
from ivlens.show.figures.rows import Row, grouped, interval_kinds, rows_of
from ivlens.show.figures.theme import LIGHT, Theme, level_entry, translucent

HEADS = {
    "vector": Look("the k strongest heads", "circle", "accent"),
    "random": Look("k random heads of the same layers", "square", "control", "dash"),
    "every": Look("all heads", "diamond-open", "accent"),
}
RECEIVES = {"after": "into the tuned model", "before": "into the first model"}
BELOW = {
    "before": Look("first model below, tuned one above", "circle", "accent"),
    "after": Look("tuned model below, first one above", "square", "control", "dash"),
}


def transplant_plot(table: pd.DataFrame, *, theme: Theme = LIGHT) -> go.Figure:
    """Accuracy of each model with outputs of the other one's heads, against the number of heads; two panels a task.

    Args:
        table: the table of `ivlens.transplant`, with a column `task` where there are several tasks.

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    rows = rows_of(table, ("into", "heads", "k", "accuracy", "accuracy_lo", "accuracy_hi"), "ivlens.transplant")
    tasks = grouped(rows, lambda row: str(row.get("task", "")))
    panels = Panels([_name(task, RECEIVES[into]) for task in tasks for into in RECEIVES], theme, n_columns=2)
    ks = sorted({int(row["k"]) for row in rows if row["heads"] in ("vector", "random")})
    last = "all"
    for number, (own, into) in enumerate((own, into) for own in tasks.values() for into in RECEIVES):
        shown = [row for row in own if row["into"] == into]
        for rank, (heads, look) in reversed([*enumerate(HEADS.items())]):
            some = sorted((row for row in shown if row["heads"] == heads), key=lambda row: row["k"])
            places = [last if heads == "every" else str(row["k"]) for row in some]
            panels.add(number, [one.update(legendrank=rank) for one in _series(some, places, look, theme)])
        for giving in RECEIVES:
            for row in own:
                if row["heads"] == "own" and row["into"] == giving:
                    dash = "dash" if giving == into else "dot"
                    line = {"dash": dash, "width": 1.2, "color": theme.reference}
                    panels.figure.add_hline(row["accuracy"], line=line, layer="above", **panels.place(number))
    for dash, name in (("dash", "the model as it is"), ("dot", "the giving model")):
        panels.figure.add_trace(level_entry(name, theme.reference, dash), row=1, col=1)
    note = f"bands: {interval_kinds(rows)} over prompts"
    figure = panels.finished("Heads of one model in the other", note, height=280, margin_t=112)
    figure.update_xaxes(
        title_text="heads that are received, k", type="category", categoryorder="array",
        categoryarray=[*map(str, ks), last], range=[-0.3, len(ks) + 0.3],
    )  # fmt: skip
    figure.update_yaxes(range=[-0.03, 1.03], dtick=0.2)
    return figure.update_yaxes(title_text="accuracy (share of prompts)", col=1)


def splice_plot(table: pd.DataFrame, *, theme: Theme = LIGHT) -> go.Figure:
    """Accuracy of two models spliced at each layer, for both ways round; a panel for each task.

    Args:
        table: the table of `ivlens.splice`, with a column `task` where there are several tasks.

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    rows = rows_of(table, ("lower", "layer", "accuracy", "accuracy_lo", "accuracy_hi"), "ivlens.splice")
    tasks = grouped(rows, lambda row: str(row.get("task", "")))
    panels = Panels([*tasks], theme)
    for number, own in enumerate(tasks.values()):
        for rank, (lower, look) in reversed([*enumerate(BELOW.items())]):
            some = sorted((row for row in own if row["lower"] == lower), key=lambda row: row["layer"])
            found = _series(some, [row["layer"] for row in some], look, theme)
            panels.add(number, [one.update(legendrank=rank) for one in found])
    note = f"bands: {interval_kinds(rows)} over prompts · layer 0: the upper model as it is"
    figure = panels.finished("Lower blocks of one model, upper ones of the other", note, height=250, margin_t=96)
    figure.update_xaxes(title_text="first upper layer")
    figure.update_yaxes(range=[-0.03, 1.03], dtick=0.2)
    return figure.update_yaxes(title_text="accuracy (share of prompts)", col=1)


def _name(task: str, what: str) -> str:
    return f"{task}: {what}" if task else what


def _series(rows: Sequence[Row], places: Sequence[str | int], look: Look, theme: Theme) -> list[go.Scatter]:
    """Line and band of one series; nothing where it has no rows."""
    if not rows:
        return []
    colour = getattr(theme, look.colour)
    lows, highs = ([row[f"accuracy_{end}"] for row in rows] for end in ("lo", "hi"))
    # one closed outline: the upper ends from left to right, the lower ends back
    band = go.Scatter(
        x=[*places, *reversed(places)], y=[*highs, *reversed(lows)], mode="lines", fill="toself",
        fillcolor=translucent(colour, 0.14), line={"width": 0}, hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    line = go.Scatter(
        x=list(places), y=[row["accuracy"] for row in rows], name=look.label, mode="lines+markers",
        line={"color": colour, "width": 2, "dash": look.dash}, marker=mark(look, theme, 7),
        customdata=list(zip(lows, highs, strict=True)),
        hovertemplate=f"%{{x}}<br>{look.label}: %{{y:.2f}} (%{{customdata[0]:.2f}} to %{{customdata[1]:.2f}})"
        "<extra></extra>",
    )  # fmt: skip
    return [band, line]
