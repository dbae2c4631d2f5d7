"""The figure of necessity: what a model loses on clean prompts when heads say something else."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from ivlens.show.figures.panels import NEEDED, Look, Panels, mark, reach, rows_by_task
from ivlens.show.figures.rows import Row
from ivlens.show.figures.theme import LIGHT, Theme

LOOKS = {
    "necessity": Look("the vector's heads", "circle", "accent"),
    "necessity_next_heads": Look("the heads next in strength", "circle-open", "accent"),
    "necessity_random_heads": Look("random heads of the same layers", "square", "control"),
}
# which prompts the means are over that take the place of outputs, drawn from top to bottom
SOURCES = {"other_tasks": "other tasks'<br>prompts", "corrupted": "corrupted<br>prompts", "bare": "bare<br>inputs"}
STEP = 0.2  # between the marks of one row


def necessity_plot(table: pd.DataFrame, *, theme: Theme = LIGHT) -> go.Figure:
    """Accuracy lost on clean prompts with head outputs replaced by means, for each kind of means; a panel per task.

    Args:
        table: the table of `ivlens.evaluate_intervention` with the further rows `necessity`, with a column `task` where
            there are several tasks.

    Raises:
        ValueError: a column is missing, or there are no such rows.
    """
    tasks = rows_by_task(table, tuple(LOOKS), (*NEEDED, "lost", "lost_lo", "lost_hi"))
    shown = {task: [row for row in rows if row["condition"] in LOOKS] for task, rows in tasks.items()}
    sources = [name for name in SOURCES if any(row["variant"] == name for rows in shown.values() for row in rows)]
    panels = Panels([*tasks], theme)
    for number, rows in enumerate(shown.values()):
        panels.add(number, [_marks(rows, condition, sources, place, theme) for place, condition in enumerate(LOOKS)])
        panels.figure.add_vline(0, line={"width": 1, "color": theme.reference}, layer="below", **panels.place(number))
    note = "outputs at the last prompt token are replaced · bars: t 95 % over prompts"
    figure = panels.finished("Lost without these heads", note, height=70 + 62 * len(sources), margin_t=96)
    # a loss below 0 is a gain, which is rare and small
    lows = [row["lost_lo"] for rows in shown.values() for row in rows if row["lost_lo"] == row["lost_lo"]]
    least = max(-1.0, min(0.0, *lows))
    figure.update_xaxes(title_text="accuracy lost on clean prompts", range=[least - 0.03, 1.03], dtick=0.2)
    figure.update_yaxes(
        tickvals=list(range(len(sources))), ticktext=[SOURCES[name] for name in reversed(sources)], showgrid=False,
        range=[-0.5, len(sources) - 0.5], automargin=True, tickfont={"size": 12, "color": theme.text},
    )  # fmt: skip
    return figure.update_yaxes(title_text="replaced by means over", col=1)


def _marks(rows: Sequence[Row], condition: str, sources: Sequence[str], place: int, theme: Theme) -> go.Scatter:
    """The marks of one set of heads, a little above or below the middle of each row."""
    look = LOOKS[condition]
    chosen = [row for row in rows if row["condition"] == condition and row["variant"] in sources]
    return go.Scatter(
        x=[row["lost"] for row in chosen], name=look.label, mode="markers", marker=mark(look, theme),
        y=[len(sources) - 1 - sources.index(row["variant"]) + STEP * (1 - place) for row in chosen],
        error_x=reach(chosen, "lost", getattr(theme, look.colour)),
        hovertemplate=f"{look.label}: %{{x:+.2f}}<extra></extra>",
    )  # fmt: skip
