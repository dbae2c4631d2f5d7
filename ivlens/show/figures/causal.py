"""Figures of the study: every causal test beside its controls, and how much of earlier tasks each guidance keeps."""

import pandas as pd
import plotly.graph_objects as go

from ivlens.show.figures.rows import grouped, mean, rows_of
from ivlens.show.figures.theme import LIGHT, Theme, styled, with_legend

# what each causal test does; drawn in this order, from top to bottom
TITLES = {
    "write": "write: tuned vector in the first model, no instruction",
    "read": "read: first vector in the tuned model, no instruction",
    "reinjection": "re-injection: first vector in the tuned model, instructed",
    "subtraction": "subtraction: new task's vector taken from the tuned model, instructed",
}
# label, symbol and colour (its name in the theme) of each condition
LOOKS = {
    "baseline": ("as it is", "line-ns-open", "text"),
    "iv": ("the vector", "circle", "accent"),
    "own": ("the tuned model's", "circle-open", "accent"),
    "random": ("random vectors", "diamond", "control"),
    "random_heads": ("random heads", "square", "control"),
    "other_tasks": ("other tasks' vectors", "triangle-up", "control"),
}
CONTROLS = ("none", "iv/zero_vector")  # kinds of guidance that others are compared with
# label, symbol and colour (its name in the theme), and whether it is about controls
SIDES = (("guidance", "circle", "accent", False), ("no guidance, or without its content", "square", "control", True))
NAMES = {
    "none": "none",
    "iv": "iv: intervention, KL, heads",
    "iv/zero_vector": "iv with a zero vector",
    "instructions_lighter": "earlier instructions rehearsed",
}


def causal_plot(table: pd.DataFrame, *, theme: Theme = LIGHT) -> go.Figure:
    """One row per causal test: accuracy with the vector and with each of its controls.

    Large marks are means over tasks, small marks single tasks; the value of a control is the mean over its vectors.

    Args:
        table: the tables `CausalTest.frame` of all tests, concatenated.

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    rows = rows_of(table, ("test", "task", "condition", "accuracy"), "ivlens.analysis.dynamics.causal_tests")
    tests = [name for name in TITLES if any(row["test"] == name for row in rows)]
    figure = go.Figure()
    for number, (condition, (label, symbol, tone)) in enumerate(LOOKS.items()):
        colour = getattr(theme, tone)
        # conditions of one test lie beneath one another, so that no mark hides another
        shift, edge = 0.3 - 0.12 * number, {"color": colour}
        own = [row for row in rows if row["condition"] == condition]
        place = {test: len(tests) - 1 - at + shift for at, test in enumerate(tests)}
        for size, opacity, points in (
            (5, 0.35, [(row["accuracy"], row["test"], row["task"]) for row in own]),
            (10, 1.0, [(mean(row["accuracy"] for row in group), test, "mean of tasks")
                       for test, group in grouped(own, lambda row: row["test"]).items()]),
        ):  # fmt: skip
            figure.add_trace(
                go.Scatter(
                    x=[x for x, _, _ in points], y=[place[test] for _, test, _ in points], mode="markers", name=label,
                    showlegend=size == 10, opacity=opacity, text=[task for _, _, task in points],
                    marker={"symbol": symbol, "size": size, "color": colour, "line": edge | {"width": size / 5}},
                    hovertemplate=f"%{{text}}<br>{label}: %{{x:.2f}}<extra></extra>",
                )
            )  # fmt: skip
    styled(
        figure,
        theme,
        "Erased, or overlaid?",
        "large: mean of tasks; small: each task; test inputs",
        height=180 + 105 * len(tests),
    )
    figure.update_xaxes(title_text="accuracy", range=[-0.03, 1.03], dtick=0.2)
    figure.update_yaxes(
        tickvals=list(range(len(tests))), ticktext=[_folded(TITLES[test]) for test in reversed(tests)], showgrid=False,
        range=[-0.55, len(tests) - 0.45], automargin=True, tickfont={"size": 12, "color": theme.text},
    )  # fmt: skip
    for line in range(1, len(tests)):
        figure.add_hline(y=line - 0.5, line={"width": 1, "color": theme.grid})
    return with_legend(figure, theme, 132)


def guidance_plot(evidence: pd.DataFrame, *, theme: Theme = LIGHT) -> go.Figure:
    """One row per kind of guidance: the probability of earlier tasks' answers, given their instruction, after training.

    Large marks are means over tasks, small marks single tasks.

    Args:
        evidence: `StudyResult.evidence`.

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    rows = rows_of(evidence, ("name", "task", "value"), "ivlens.runs.study.run_study")
    # `instruction_drop` is the loss of plain training, not the probability after some guidance
    own = [row for row in rows if row["name"].startswith("instruction_") and row["name"] != "instruction_drop"]
    kinds = list(dict.fromkeys(row["name"].removeprefix("instruction_") for row in own))
    figure = go.Figure()
    for size, opacity in ((6, 0.4), (12, 1.0)):
        points = [(row["value"], row["name"].removeprefix("instruction_"), row["task"]) for row in own]
        if size == 12:
            points = [(mean(x for x, kind, _ in points if kind == one), one, "mean of tasks") for one in kinds]
        for label, symbol, colour, is_control in SIDES:
            chosen = [point for point in points if (point[1] in CONTROLS) == is_control]
            figure.add_trace(
                go.Scatter(
                    x=[x for x, _, _ in chosen], y=[len(kinds) - 1 - kinds.index(kind) for _, kind, _ in chosen],
                    mode="markers", opacity=opacity, text=[task for _, _, task in chosen], name=label,
                    showlegend=size == 12 and bool(chosen),
                    marker={"size": size, "symbol": symbol, "color": getattr(theme, colour)},
                    hovertemplate="%{text}: %{x:.2f}<extra></extra>",
                )
            )  # fmt: skip
    styled(
        figure,
        theme,
        "What guidance keeps",
        "large: mean of earlier tasks; small: each task; test inputs",
        height=176 + 48 * len(kinds),
    )
    figure.update_xaxes(
        title_text="probability of the answer with the instruction, per token", range=[-0.03, 1.03], dtick=0.2
    )
    figure.update_yaxes(
        tickvals=list(range(len(kinds))), ticktext=[NAMES.get(kind, kind) for kind in reversed(kinds)], showgrid=False,
        range=[-0.6, len(kinds) - 0.4], automargin=True, tickfont={"size": 12, "color": theme.text},
    )  # fmt: skip
    return with_legend(figure, theme)


def _folded(text: str) -> str:
    """A row's label: the name of the test in bold, and below it, on two lines, what the test does."""
    name, rest = text.split(": ", 1)
    what, _, where = rest.partition(" in the ") if " in the " in rest else rest.partition(" taken ")
    joint = "in the " if " in the " in rest else "taken "
    return f"<b>{name}</b><br>{what}<br>{joint}{where}"
