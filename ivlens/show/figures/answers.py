"""A figure of what a model says before and after a training: shares of right answers and of each kind of wrong one."""

import pandas as pd
import plotly.graph_objects as go

from ivlens.show.figures.rows import grouped, rows_of
from ivlens.show.figures.theme import LIGHT, Theme, styled, translucent, with_legend

# the kinds of `ivlens.analysis.forgetting.answers_said`, and what stands in the legend
LABELS = {
    "right": "right",
    "own": "the task's answer to another input",
    "new": "a new task's answer",
    "copied": "the input",
    "earlier": "another earlier task's answer",
    "other": "anything else",
}
RUNS = {"before": "before", "none": "after"}  # runs of a study, and their names on the axis


def answers_plot(table: pd.DataFrame, *, theme: Theme = LIGHT) -> go.Figure:
    """For each task, the kinds of answers before and after a training, as shares of all prompts.

    Args:
        table: the tables of `ivlens.analysis.forgetting.answers_said` for two models, with the column `run`: `before`,
            and `none` for the model that was trained without guidance.

    Raises:
        ValueError: a column is missing, there are no rows of these two models, or a kind is unknown.
    """
    rows = rows_of(table, ("task", "kind", "run"), "ivlens study")
    found = {str(row["run"]) for row in rows}
    rows = [row for row in rows if row["run"] in RUNS]
    if not rows:
        raise ValueError(
            f"the table has the runs {', '.join(sorted(found)):.80}, expected {' or '.join(RUNS)} among them; pass "
            "what ivlens study writes."
        )
    # a kind without a label would be drawn nowhere, and the shares would not add up to 1
    if unknown := sorted({str(row["kind"]) for row in rows} - LABELS.keys()):
        raise ValueError(f"the table has the kinds {', '.join(unknown):.80}, expected those of {', '.join(LABELS)}.")
    tasks = grouped(rows, lambda row: str(row["task"]))
    # from bottom to top: the first task stands on top, "before" above "after"
    places = [(task, run) for task in reversed(tasks) for run in reversed(RUNS)]
    figure = go.Figure()
    for kind, label in LABELS.items():
        shares, counts = [], []
        for task, run in places:
            own = [row for row in tasks[task] if row["run"] == run]
            counts.append(f"{sum(row['kind'] == kind for row in own)} of {len(own)}")
            shares.append(sum(row["kind"] == kind for row in own) / len(own) if own else 0.0)
        figure.add_trace(
            go.Bar(
                x=shares, y=[[task for task, _ in places], [RUNS[run] for _, run in places]], name=label,
                orientation="h", marker={"color": _colour(kind, theme), "line": {"width": 0.5, "color": theme.surface}},
                customdata=counts, hovertemplate=f"%{{y}}: {label} %{{x:.2f}} (%{{customdata}})<extra></extra>",
            )
        )  # fmt: skip
    styled(figure, theme, "What the model says", "test prompts, greedy decoding", height=140 + 40 * len(tasks))
    figure.update_layout(barmode="stack", bargap=0.25)
    figure.update_xaxes(title_text="share of prompts", range=[0, 1], dtick=0.2)
    figure.update_yaxes(automargin=True, dividercolor=theme.surface)
    return with_legend(figure, theme, 112, traceorder="normal")


def _colour(kind: str, theme: Theme) -> str:
    """The colour of a kind: what is left of the task in the vector's colour, what took its place in the controls'."""
    colours = {
        "right": theme.accent,
        "own": translucent(theme.accent, 0.45),
        "new": theme.control,
        "copied": translucent(theme.control, 0.35),
        "earlier": next(
            colour for at, colour in theme.steps if at >= (0.7 if theme.name == "light" else 0.3)
        ),  # purple
        "other": theme.unsure,
    }
    return colours[kind]
