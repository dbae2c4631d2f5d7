"""The figure of other ways to make a vector: each beside the controls that belong to it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go

from ivlens.show.figures.panels import Look, Panels, mark, reach, rows_by_task
from ivlens.show.figures.rows import Row, interval_kinds
from ivlens.show.figures.theme import LIGHT, Theme

VECTOR = Look("the vector", "circle", "accent")
DIRECTIONS = Look("random directions", "diamond", "control")
HEADS = Look("random heads", "square", "control")
PERMUTED = Look("trained on permuted answers", "triangle-down", "control")
OTHERS = Look("other tasks' vectors", "triangle-up", "control")


class Way(NamedTuple):
    """One way to make a vector: its condition and variant, its label, and its controls with their looks."""

    condition: str
    variant: str
    label: str
    controls: tuple[tuple[str, Look], ...]


SUMMED = (("random", DIRECTIONS), ("random_heads", HEADS), ("other_tasks", OTHERS))
WAYS = (  # from top to bottom
    Way("iv", "", "sum of the heads' means", SUMMED),
    Way("distributed", "mean", "each head in its layer:<br>mean", (("distributed_random_heads", HEADS),)),
    Way("distributed", "minus_bare", "each head in its layer:<br>mean − bare", (("distributed_random_heads", HEADS),)),
    Way("mean_difference", "corrupted", "mean stream:<br>clean − corrupted", (("mean_difference_random", DIRECTIONS),)),
    Way("mean_difference", "bare", "mean stream:<br>clean − bare", (("mean_difference_random", DIRECTIONS),)),
    Way("trained", "", "trained by gradient", (("trained_permuted", PERMUTED),)),
)  # fmt: skip
LOOKS = (VECTOR, DIRECTIONS, HEADS, OTHERS, PERMUTED)
GAP = 0.7  # between two ways, in heights of a mark


def other_vectors_plot(table: pd.DataFrame, *, theme: Theme = LIGHT) -> go.Figure:
    """Accuracy on bare prompts with vectors made in several ways, each beside its own controls; a panel for each task.

    The ways: the sum of heads' means (the Instruction Vector), the heads' means each in its own layer, differences of
    mean residual streams, and a vector that was trained by gradient.

    Args:
        table: the table of `ivlens.evaluate_intervention` with some of the further rows `mean_difference`,
            `distributed` and `trained`, with a column `task` where there are several tasks.

    Raises:
        ValueError: a column is missing, or there are no such rows.
    """
    # beside nothing else, the vector alone is what `condition_plot` shows
    tasks = rows_by_task(table, tuple(dict.fromkeys(way.condition for way in WAYS if way.condition != "iv")))
    ways = {way: looks for way in WAYS if (looks := _looks(way, tasks.values()))}
    tops, height = _places(ways)
    panels, shown = Panels([*tasks], theme), list[Row]()
    for number, rows in enumerate(tasks.values()):
        found = [
            (look, top - place, row)
            for (way, looks), top in zip(ways.items(), tops, strict=True)
            for place, look in enumerate(looks)
            for row in _of(way, look, rows)
        ]
        shown += [row for _, _, row in found]
        panels.add(number, [_marks(look, found, theme) for look in LOOKS])
        panels.levels(number, rows, upright=True)
    note = f"bars: {interval_kinds(shown)} over prompts"
    figure = panels.finished("Other ways to a vector", note, height=60 + round(21 * height), margin_t=116)
    figure.update_xaxes(title_text="accuracy on bare inputs", range=[-0.03, 1.03], dtick=0.2)
    middles = [top - (len(looks) - 1) / 2 for top, looks in zip(tops, ways.values(), strict=True)]
    figure.update_yaxes(
        tickvals=middles[::-1], ticktext=[way.label for way in ways][::-1], showgrid=False, automargin=True,
        range=[-0.8, height - 0.2], tickfont={"size": 12, "color": theme.text},
    )  # fmt: skip
    for top, looks in list(zip(tops, ways.values(), strict=True))[:-1]:
        line: Any = {"width": 1, "color": theme.grid}
        figure.add_hline(top - len(looks) + 1 - GAP / 2 - 0.5, line=line)
    return figure


def _looks(way: Way, tables: Iterable[Sequence[Row]]) -> list[Look]:
    """The looks of the marks of a way, those of its controls after its own; none where no table has it."""
    looks = [VECTOR, *(look for _, look in way.controls)]
    found = [look for look in looks if any(_of(way, look, rows) for rows in tables)]
    return found if VECTOR in found else []


def _places(ways: Mapping[Way, Sequence[Look]]) -> tuple[list[float], float]:
    """The height of the first mark of each way, so that each mark has a line of its own; and the height of all."""
    height = sum(len(looks) for looks in ways.values()) + GAP * (len(ways) - 1)
    tops, top = list[float](), height - 1
    for looks in ways.values():
        tops.append(top)
        top -= len(looks) + GAP
    return tops, height


def _of(way: Way, look: Look, rows: Sequence[Row]) -> list[Row]:
    """The rows of a way that have this look; none where nothing could be measured."""
    controls = [control for control, one in way.controls if one is look]
    conditions = [way.condition] if look is VECTOR else controls
    own = [row for row in rows if row["condition"] in conditions and row["accuracy"] == row["accuracy"]]
    # a trained vector may have variants that are not known here
    return own if way.condition == "trained" else [row for row in own if row["variant"] == way.variant]


def _marks(look: Look, found: Sequence[tuple[Look, float, Row]], theme: Theme) -> go.Scatter:
    """The marks of one look in all rows."""
    chosen = [(place, row) for one, place, row in found if one is look]
    rows = [row for _, row in chosen]
    return go.Scatter(
        x=[row["accuracy"] for row in rows], y=[place for place, _ in chosen], name=look.label, mode="markers",
        marker=mark(look, theme), error_x=reach(rows, "accuracy", getattr(theme, look.colour)),
        showlegend=bool(rows), hovertemplate=f"{look.label}: %{{x:.2f}}<extra></extra>",
    )  # fmt: skip
