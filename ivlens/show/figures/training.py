"""Figures of a training: what is learned of the new task, and what is forgotten of earlier ones."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ivlens.common.checks import as_items
from ivlens.show.figures.rows import Row, grouped, mean, rows_of
from ivlens.show.figures.theme import LIGHT, Theme, styled, with_legend


class Kind(NamedTuple):
    """Label, colour, dash and symbol of a kind of guidance."""

    label: str
    colour: str
    dash: str
    symbol: str


# at most six kinds are drawn, chosen in this order: plain training, rehearsal, the paper's guidance and its controls
KINDS = {
    "none": Kind("no guidance", "#5b6675", "solid", "x"),
    "instructions": Kind("instructions rehearsed", "#0b62a8", "solid", "circle"),
    "instructions_light": Kind("instructions rehearsed, lightly", "#0b62a8", "dash", "circle-open"),
    "iv": Kind("IV guidance", "#b4590a", "solid", "square"),
    "iv/zero_vector": Kind("IV guidance, zero vector", "#b4590a", "dot", "square-open"),
    "kl": Kind("IV-KL", "#8f2a78", "dash", "diamond"),
    "kl/zero_vector": Kind("IV-KL, zero vector", "#8f2a78", "dot", "diamond-open"),
    "heads": Kind("head consistency", "#1c7a4b", "solid", "triangle-up"),
    "heads/random_heads": Kind("consistency of random heads", "#1c7a4b", "dot", "triangle-up-open"),
    "vectors": Kind("vectors rehearsed", "#7d6a00", "dashdot", "star"),
    "instructions_lighter": Kind("instructions rehearsed, more lightly", "#0b62a8", "dot", "diamond-open"),
    "answers": Kind("whole answers rehearsed", "#4c78a8", "solid", "triangle-up"),
    "answers_light": Kind("whole answers rehearsed, lightly", "#4c78a8", "dash", "triangle-up-open"),
}
MOST = 6  # lines that can be told apart in one figure
OTHERS = ("#444444", "#777777", "#26246e", "#8f3f00", "#06477f", "#2c3440")


def training_curves(log: pd.DataFrame, *, theme: Theme = LIGHT) -> go.Figure:
    """Accuracy on the new task, and on earlier ones if some were watched, at every judged step of a training.

    Args:
        log: the `log` of `ivlens.finetune`, or the `log.csv` of `ivlens tune`, with the columns `step`, `new` and,
            if earlier tasks were watched, `watched`.

    Raises:
        ValueError: a column is missing, or no step was judged.
    """
    # `new` is NaN at steps that were not judged
    rows = [row for row in rows_of(log, ("step", "new"), "ivlens.finetune") if row["new"] == row["new"]]
    if not rows:
        raise ValueError("the log has no judged steps, expected some; train with judge_every below the steps.")
    lines = [
        ("new", "new task", "accent", "solid", "circle"),
        ("watched", "earlier tasks, mean", "control", "dash", "square"),
    ]
    figure = go.Figure()
    for column, label, colour, dash, symbol in lines:
        if any(row.get(column, float("nan")) == row.get(column, float("nan")) for row in rows):
            figure.add_trace(
                go.Scatter(
                    x=[row["step"] for row in rows], y=[row[column] for row in rows], name=label, mode="lines+markers",
                    line={"color": getattr(theme, colour), "width": 2, "dash": dash},
                    marker={"size": 6, "color": getattr(theme, colour), "symbol": symbol},
                    hovertemplate=f"step %{{x}}, {label}: %{{y:.2f}}<extra></extra>",
                )
            )  # fmt: skip
    styled(figure, theme, "Learning and forgetting", "select inputs", height=340)
    figure.update_xaxes(title_text="training step", rangemode="tozero")
    figure.update_yaxes(title_text="accuracy (share of prompts)", range=[-0.03, 1.06], dtick=0.2)
    return with_legend(figure, theme)


def forgetting_against_learning(
    curves: pd.DataFrame, *, kinds: str | Sequence[str] | None = None, theme: Theme = LIGHT
) -> go.Figure:
    """Accuracy on earlier tasks against accuracy on the new one: a line per kind of guidance, a panel per method.

    Where each kind was trained once, its line is the course of that training. Otherwise the line is the Pareto front of
    all trainings and judged steps of that kind: for each accuracy on the new task, the best accuracy on earlier tasks
    among those that reach it. So a weak setting, which neither learns nor forgets, looks no better than it is. With
    several new tasks, the line is the mean of their fronts, up to the new accuracy that all of them reach.

    Args:
        curves: judged steps of trainings, with the columns `guidance`, `new` and `old` (or `watched`), and possibly
            `method` and `task`: the curves of `ivlens bench` or of the demo.
        kinds: the kinds of guidance that are drawn; None: those of `shown_kinds`.

    Raises:
        ValueError: a column is missing, there are no rows, or no row has one of these kinds.
    """
    frame = curves if "old" in curves else curves.rename(columns={"watched": "old"})
    rows = rows_of(frame, ("guidance", "new", "old"), "ivlens bench or ivlens demo")
    rows = [row for row in rows if row["new"] == row["new"] and row["old"] == row["old"]]
    wanted = shown_kinds(row["guidance"] for row in rows) if kinds is None else as_items("kinds", kinds)
    rows = [row for row in rows if row["guidance"] in wanted]
    if not rows:
        raise ValueError(f"the curves have no judged steps of {', '.join(wanted) or 'any guidance'}; choose others.")
    once = trained_once(rows)
    panels = grouped(rows, lambda row: row.get("method", ""))
    figure = make_subplots(rows=1, cols=len(panels), shared_yaxes=True, horizontal_spacing=0.04)
    drawn = set[str]()
    for column, chosen in enumerate(panels.values(), start=1):
        by_kind = grouped(chosen, lambda row: row["guidance"])
        for rank, kind in enumerate(name for name in wanted if name in by_kind):
            points = _course(by_kind[kind]) if once else _front(by_kind[kind])
            line = _line(points, _look(kind, rank))
            figure.add_trace(line.update(showlegend=kind not in drawn), row=1, col=column)
            drawn.add(kind)
    note = "one training each" if once else "best of all trainings and judged steps"
    styled(figure, theme, "Forgetting against learning", f"{note}, select inputs", height=380)
    for column, method in enumerate(panels, start=1):
        title = "accuracy on the new task" + (f" · {method}" if method else "")
        figure.update_xaxes(title_text=title, range=[-0.03, 1.03], dtick=0.2, row=1, col=column)
    figure.update_yaxes(range=[-0.03, 1.06], dtick=0.2)
    figure.update_yaxes(title_text="mean accuracy on earlier tasks", row=1, col=1)
    return with_legend(figure, theme, 106)


def shown_kinds(found: Iterable[Any]) -> list[str]:
    """The kinds of guidance to draw: at most six of those found, first the known ones in the order of `KINDS`."""
    names = list(dict.fromkeys(str(name) for name in found))
    known = [name for name in KINDS if name in names]
    return [*known, *(name for name in names if name not in KINDS)][:MOST]


def _look(kind: str, rank: int) -> Kind:
    """How a kind is drawn; an unknown kind gets a colour and a dash by its rank among the drawn ones."""
    return KINDS.get(kind, Kind(kind, OTHERS[rank % len(OTHERS)], ("solid", "dash", "dot")[rank % 3], "circle"))


def trained_once(rows: Sequence[Row]) -> bool:
    """Whether every kind of guidance was trained once with each method: then no step of it was judged twice."""
    groups = grouped(rows, lambda row: (row.get("method", ""), row["guidance"]))
    steps = [[row.get("step") for row in group] for group in groups.values()]
    return all(None not in listed and len(set(listed)) == len(listed) for listed in steps)


def _course(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """The points (new, old) of one training, in the order of its steps."""
    return [(row["new"], row["old"]) for row in sorted(rows, key=lambda row: row.get("step", 0))]


def _front(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """The Pareto front of one kind of guidance; with several new tasks, the mean of their fronts."""
    by_task = grouped(rows, lambda row: row.get("task", ""))
    fronts = [front(_course(group)) for group in by_task.values()]
    return fronts[0] if len(fronts) == 1 else _mean_front(fronts)


def _line(points: Sequence[tuple[float, float]], look: Kind) -> go.Scatter:
    """The line of one kind of guidance through these points (new, old)."""
    return go.Scatter(
        x=[new for new, _ in points], y=[old for _, old in points], name=look.label, legendgroup=look.label,
        mode="lines+markers", line={"color": look.colour, "width": 2, "dash": look.dash},
        marker={"size": 6, "color": look.colour, "symbol": look.symbol},
        hovertemplate=f"{look.label}: new %{{x:.2f}}, old %{{y:.2f}}<extra></extra>",
    )  # fmt: skip


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front of points (new, old): those that no other point beats on both scores, by rising new score."""
    kept: list[tuple[float, float]] = []
    # from the highest new score down, a point counts if its old score is higher than all before it
    for new, old in sorted(set(points), reverse=True):
        if not kept or old > kept[-1][1]:
            kept.append((new, old))
    return kept[::-1]


def _mean_front(fronts: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The mean of several fronts at eleven new scores, from 0 to the highest that all of them reach."""
    end = min(front[-1][0] for front in fronts)
    places = [end * step / 10 for step in range(11)]
    return [(place, mean(max(old for new, old in front if new >= place) for front in fronts)) for place in places]
