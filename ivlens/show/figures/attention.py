"""The figure of where heads look: a bar for each head and kind of prompts, divided by part of the prompt."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go

from ivlens.show.figures.rows import Row, grouped, interval_kinds, rows_of
from ivlens.show.figures.theme import LIGHT, Theme, readable_on, styled, with_legend


class Look(NamedTuple):
    """Label of a segment, and its colours in the light and in the dark theme."""

    label: str
    light: str
    dark: str


# from left to right: first what tells the task, in strong colours; then the query; then what tells nothing
LOOKS = {
    "instruction": Look("instruction", "#b4590a", "#f0a04b"),
    "inputs": Look("demonstrations' inputs", "#7cc0ea", "#2f6f9c"),
    "answers": Look("demonstrations' answers", "#0b62a8", "#62b0f0"),
    "query": Look("query", "#1b9e77", "#4cc9a2"),
    "template": Look("template", "#c5ccd4", "#4b5563"),
    "start": Look("first token", "#8a94a1", "#9aa6b5"),
    "sink": Look("no token (sink)", "#e3e7ec", "#2c3440"),
}
SCORES_ROOM = 184  # px to the right of the bars
TELLING = ("instruction", "inputs", "answers")
NEEDED = ("prompts", "label", "segment", "share", "low", "high")


def attention_bars(frame: pd.DataFrame, *, top: int = 20, theme: Theme = LIGHT) -> go.Figure:
    """The mean shares of each head, one bar for each kind of prompts; beside it both scores of the head, if known.

    Args:
        frame: `HeadAttention.frame()`, of one task.
        top: Of more heads than this those are shown that look most at what tells the task, on clean prompts.

    Raises:
        ValueError: a column is missing, there are no rows, or rows of several tasks.
    """
    rows = rows_of(frame, NEEDED, "HeadAttention.frame()")
    tasks = list(dict.fromkeys(str(row.get("task", "")) for row in rows))
    if len(tasks) > 1:
        raise ValueError(f"the table has {len(tasks)} tasks, expected one; draw each by itself.")
    by_head = grouped(rows, lambda row: row["label"])
    chosen = strongest(by_head, top)
    kinds = list(dict.fromkeys(row["prompts"] for row in rows))
    bars = [(head, kind) for head in chosen for kind in kinds]
    shares = {(row["label"], row["prompts"], row["segment"]): row for row in rows}
    figure = go.Figure()
    for segment, look in LOOKS.items():
        own = [shares.get((head, kind, segment)) for head, kind in bars]
        if not any(row and row["share"] > 0 for row in own):
            continue
        figure.add_trace(_bars(own, segment, look, theme))
    n = max(int(row.get("n", 0)) for row in rows)
    note = f"attention from the last prompt token · {n} prompts of each kind · {interval_kinds(rows)} on hovering"
    if len(chosen) < len(by_head):
        note += f" · the {len(chosen)} of {len(by_head)} heads that look most at what tells the task"
    styled(figure, theme, f"Where heads look: {tasks[0]}", note, height=150 + max(60, 26 * len(bars)))
    figure.update_layout(barmode="stack", bargap=0.25, margin_r=SCORES_ROOM)
    figure.update_xaxes(title_text="share of attention", range=[0, 1], dtick=0.2, showgrid=False)
    names = [head if len(kinds) == 1 else f"{head} · {kind}" for head, kind in bars]
    figure.update_yaxes(tickvals=list(range(len(bars))), ticktext=names, autorange="reversed", automargin=True)
    _note_scores(figure, chosen, by_head, len(kinds), theme)
    return with_legend(figure, theme, 112, xanchor="left", traceorder="normal")


def strongest(by_head: dict[str, list[Row]], top: int) -> list[str]:
    """The heads to show: all in their order, or the `top` that look most at what tells the task."""
    heads = list(by_head)
    if len(heads) <= top:
        return heads
    first = next(iter(by_head.values()))[0]["prompts"]  # the first kind is the clean one
    told = {
        head: sum(row["share"] for row in own if row["prompts"] == first and row["segment"] in TELLING)
        for head, own in by_head.items()
    }
    return sorted(heads, key=lambda head: -told[head])[:top]


def _bars(rows: Sequence[Row | None], segment: str, look: Look, theme: Theme) -> go.Bar:
    """The parts of all bars that show one segment."""
    colour = look.dark if theme.name == "dark" else look.light
    known = [row or {"share": 0.0, "low": 0.0, "high": 0.0} for row in rows]
    return go.Bar(
        x=[row["share"] for row in known], y=list(range(len(known))), orientation="h", name=look.label,
        marker={"color": colour, "line": {"width": 0}},
        text=[f"{row['share']:.2f}" if row["share"] >= 0.08 else "" for row in known],
        textposition="inside", insidetextanchor="middle", textangle=0, constraintext="none",
        textfont={"size": 10, "color": readable_on(colour)},
        customdata=[[row["low"], row["high"]] for row in known],
        hovertemplate=f"{look.label}: %{{x:.3f}} (%{{customdata[0]:.3f}} to %{{customdata[1]:.3f}})<extra></extra>",
        legendgroup=segment,
    )  # fmt: skip


def _note_scores(
    figure: go.Figure, heads: Sequence[str], by_head: dict[str, list[Row]], n_kinds: int, theme: Theme
) -> None:
    """Write both scores of each head to the right of its first bar."""
    for place, head in enumerate(heads):
        row = by_head[head][0]
        induction, previous = row.get("induction", float("nan")), row.get("previous", float("nan"))
        if induction == induction:
            figure.add_annotation(
                x=1.0, xref="paper", xanchor="left", xshift=8, y=place * n_kinds, yref="y", showarrow=False,
                text=f"induction {induction:.2f}, previous {previous:.2f}", font={"size": 10, "color": theme.muted},
            )  # fmt: skip
