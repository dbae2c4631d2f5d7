"""What figures of further rows share: a panel for each task, marks with intervals, and the levels of plain prompts."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ivlens.show.figures.rows import Row, rows_of
from ivlens.show.figures.theme import Theme, level_entry, styled, with_legend

COLUMNS = 3  # panels side by side
NAMES = 22  # px, the height of the names of tasks above their panels
# the dash of the level without anything added, and its name in the legend, for each kind of prompt
LEVELS = {"bare": "dash", "clean": "dot"}
LEVEL_NAMES = {"bare": "bare input", "clean": "clean prompt"}
NEEDED = ("condition", "variant", "accuracy", "accuracy_lo", "accuracy_hi")


class Look(NamedTuple):
    """Label, symbol, colour (its name in the theme) and dash of a condition."""

    label: str
    symbol: str
    colour: str
    dash: str = "solid"


def rows_by_task(
    frame: pd.DataFrame, conditions: Sequence[str], needed: Sequence[str] = NEEDED
) -> dict[str, list[Row]]:
    """The rows of each task in the table of judgements with further rows.

    Args:
        conditions: those that a figure is about; tasks without rows of any of them are left out.
        needed: columns that the table must have.

    Raises:
        ValueError: a column is missing, or there are no rows of these conditions.
    """
    rows = rows_of(frame, needed, "ivlens.evaluate_intervention with JudgeOptions(more=MoreRows())")
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(str(row.get("task", "")), []).append(row)
    found = {task: own for task, own in found.items() if any(row["condition"] in conditions for row in own)}
    if not found:
        there = ", ".join(sorted({str(row["condition"]) for row in rows}))
        raise ValueError(f"the table has the conditions {there:.200}, expected some of {', '.join(conditions)}.")
    return found


class Panels:
    """A figure with a panel for each task, at most three side by side."""

    def __init__(self, tasks: Sequence[str], theme: Theme, *, n_columns: int = COLUMNS) -> None:
        self._tasks, self._theme, self._levels = list(tasks), theme, set[str]()
        self.n_columns = min(n_columns, len(tasks))
        self.n_rows = math.ceil(len(tasks) / self.n_columns)
        self.figure: go.Figure = make_subplots(
            rows=self.n_rows, cols=self.n_columns, shared_yaxes=True, horizontal_spacing=0.03,
            subplot_titles=tasks if len(tasks) > 1 else None, vertical_spacing=0.22 / self.n_rows,
        )  # fmt: skip

    def place(self, number: int) -> dict[str, Any]:
        """Row and column of a panel, as plotly's arguments."""
        row, column = divmod(number, self.n_columns)
        return {"row": row + 1, "col": column + 1}

    def add(self, number: int, traces: Sequence[go.Scatter]) -> None:
        """Draw traces in a panel; only those of the first one are in the legend, so all of a name are shown there."""
        known = {trace.name for trace in self.figure.data if trace.showlegend is not False}  # pyright: ignore
        for trace in traces:
            trace.update(legendgroup=trace.name, showlegend=trace.showlegend is not False and trace.name not in known)
            self.figure.add_trace(trace, **self.place(number))

    def levels(self, number: int, rows: Sequence[Row], *, upright: bool = False) -> None:
        """Draw lines at the accuracy of bare and of clean prompts, in a panel that has traces already."""
        for row in rows:
            if row["condition"] in LEVELS:
                line: Any = {"dash": LEVELS[row["condition"]], "width": 1.2, "color": self._theme.reference}
                draw = self.figure.add_vline if upright else self.figure.add_hline
                # below, it would lie under the lines of the grid, where a level of 0 or 1 is not seen
                draw(row["accuracy"], line=line, layer="above", **self.place(number))
                self._levels.add(row["condition"])

    def finished(self, title: str, note: str, *, height: int, margin_t: int) -> go.Figure:
        """The figure with title, note and a legend, which stands above the names of tasks.

        Args:
            height: Pixels of one panel, with what stands below it.
            margin_t: Pixels above the plot, for title, note and legend.
        """
        for name in (name for name in LEVELS if name in self._levels):
            self.figure.add_trace(level_entry(LEVEL_NAMES[name], self._theme.reference, LEVELS[name]), row=1, col=1)
        several = len(self._tasks) > 1
        named = f"{title}: {self._tasks[0]}" if not several and self._tasks[0] else title
        figure = self.figure.update_annotations(font={"size": 12, "color": self._theme.text})
        margin_t += NAMES if several else 0
        styled(figure, self._theme, named, note, height=margin_t + height * self.n_rows)
        above = NAMES / (height * self.n_rows - int(figure.layout.margin.b)) if several else 0.0
        return with_legend(figure, self._theme, margin_t, y=1.0 + above)


def reach(rows: Sequence[Row], value: str, colour: str) -> dict[str, Any]:
    """Intervals as plotly's options for the bars of marks: lengths from the mark, 0 where the interval is unknown."""

    def length(row: Row, end: str, sign: int) -> float:
        if (found := row[f"{value}_{end}"]) != found:  # NaN: there is no interval
            return 0.0
        # t intervals over few prompts may end beyond -1 and 1, where no share and no difference of shares can be
        return max(0.0, sign * (min(1.0, max(-1.0, found)) - row[value]))

    ends = {"array": [length(row, "hi", 1) for row in rows], "arrayminus": [length(row, "lo", -1) for row in rows]}
    return {"type": "data", "symmetric": False, "color": colour, "thickness": 1.2, "width": 0, **ends}


def mark(look: Look, theme: Theme, size: int = 9) -> dict[str, Any]:
    """Plotly's options for the marks of a condition."""
    colour = getattr(theme, look.colour)
    return {"symbol": look.symbol, "size": size, "color": colour, "line": {"width": 2, "color": colour}}
