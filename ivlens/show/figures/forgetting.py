"""The figure of forgetting: instruction probability and knowledge probability, before and after training."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from ivlens.common.measures import renamed
from ivlens.show.figures.rows import Row, interval_kinds, rows_of
from ivlens.show.figures.theme import LIGHT, Theme, styled, with_legend

LABELS = {
    "prob": "probability of the answer's first token",
    "seq_prob": "probability of the answer, per token",
    "accuracy": "accuracy, greedy decoding",
    "exact": "accuracy, greedy decoding of the answer alone",
    "ranked": "accuracy, among the task's answers",
}
KINDS = {"instruction": "with the instruction", "knowledge": "in a sentence, without it"}


def forgetting_plot(table: pd.DataFrame, *, measure: str = "seq_prob", theme: Theme = LIGHT) -> go.Figure:
    """One row per task: instruction and knowledge probability, each as a line from before (open) to after (filled).

    Args:
        table: The table that `ivlens.analysis.forgetting.decompose` returns.
        measure: The measure that is drawn, one of those in the column `measure`.

    Raises:
        ValueError: a column is missing, or the measure is unknown or not in the table.
    """
    if measure not in LABELS:
        raise ValueError(f"measure is {measure!r}, expected one of {', '.join(LABELS)}.")
    needed = ("task", "measure", "instruction_before", "excess")
    every = rows_of(renamed(table), needed, "ivlens.analysis.forgetting.decompose")
    rows = [row for row in every if row["measure"] == measure]
    if not rows:
        raise ValueError(f"the table has no rows of the measure {measure!r}, expected some; decompose anew.")
    # the last row is the mean over tasks, which is drawn first; with one task it would repeat that task
    rows = rows[-1:] + rows[:-1] if len(rows) > 2 else rows[:1]
    figure = go.Figure()
    for offset, (kind, label) in zip((0.15, -0.15), KINDS.items(), strict=True):
        colour = theme.accent if kind == "instruction" else theme.control
        figure.add_traces(_lines(rows, kind, label, offset, colour, theme))
    note = f"open: before, filled: after; line over the filled mark: {interval_kinds(rows)} of the drop"
    styled(figure, theme, "What was forgotten", note, height=170 + 46 * len(rows))
    figure.update_xaxes(title_text=LABELS[measure], range=[-0.03, 1.03], dtick=0.2)
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=[row["task"] for row in reversed(rows)], showgrid=False,
        range=[-0.6, len(rows) - 0.4], automargin=True, tickfont={"size": 12, "color": theme.text},
    )  # fmt: skip
    return with_legend(figure, theme, 96)


def _lines(rows: Sequence[Row], kind: str, label: str, offset: float, colour: str, theme: Theme) -> list[go.Scatter]:
    """Lines and marks of one kind of probability, `offset` above the middle of each task's row."""
    places = [len(rows) - 1 - number + offset for number in range(len(rows))]
    # NaN equals nothing, itself included: tasks without this probability are left out
    known = [
        (row, place) for row, place in zip(rows, places, strict=True) if row[f"{kind}_after"] == row[f"{kind}_after"]
    ]
    x: list[float | None] = []
    y: list[float | None] = []
    for row, place in known:
        # None ends a line, so that one trace holds the lines of all tasks
        x += [row[f"{kind}_before"], row[f"{kind}_after"], None]
        y += [place, place, None]
    line = go.Scatter(x=x, y=y, mode="lines", line={"color": colour, "width": 2}, hoverinfo="skip", showlegend=False)
    marks = []
    for what, symbol in (("before", "circle-open"), ("after", "circle")):
        marks.append(
            go.Scatter(
                x=[row[f"{kind}_{what}"] for row, _ in known], y=[place for _, place in known], name=label,
                mode="markers", showlegend=what == "after", text=[row["task"] for row, _ in known],
                marker={"symbol": symbol, "size": 9, "color": colour, "line": {"width": 2, "color": colour}},
                error_x=None if what == "before" else _spread(known, kind, colour),
                hovertemplate=f"%{{text}}, {what}<br>{label}: %{{x:.2f}}<extra></extra>",
            )
        )  # fmt: skip
    return [line, *marks]


def _spread(known: Sequence[tuple[Row, float]], kind: str, colour: str) -> dict:
    """The interval of the drop as a bar over the filled mark: a larger drop reaches to the left."""
    drop = f"{kind}_drop"
    return {
        "type": "data", "symmetric": False, "color": colour, "thickness": 1, "width": 3,
        "array": [max(0.0, row[drop] - row[f"{drop}_lo"]) for row, _ in known],
        "arrayminus": [max(0.0, row[f"{drop}_hi"] - row[drop]) for row, _ in known],
    }  # fmt: skip
