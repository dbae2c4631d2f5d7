"""Figures for papers: at printed size, as wide as a column or the page, without title, in fonts of 7 to 8 points."""

import math
import re
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import plotly.graph_objects as go

from ivlens.show.figures.metadata import PX_PER_INCH, plain_title

Width = Literal["column", "page"]

INCHES: dict[Width, float] = {"column": 3.3, "page": 6.8}
# these fonts look alike, and every Chromium finds at least one of them
PAPER_FONT = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
SMALLEST = 9.3  # px: 7 points
FONTS, MARKS, LINES = 0.8, 0.7, 0.75  # sizes on paper, as shares of those on the screen
# px, to estimate the legend's size: mean width of a letter; line sample and gaps of an entry; height of a line
LETTER, KEY, LEGEND_LINE = 4.9, 36.0, 15.0
TITLES = 14  # px, the height of the titles of panels


@dataclass(frozen=True)
class Paper:
    """What a paper looks like.

    Attributes:
        column, page: width of a column and of the page's text, in inches; the same in a paper of one column.
        font: names of fonts as CSS lists them, the first one that Chromium finds is used. The program and the version
            of Chromium decide which there are.
    """

    column: float = INCHES["column"]
    page: float = INCHES["page"]
    font: str = PAPER_FONT

    def __post_init__(self) -> None:
        for name in ("column", "page"):
            if not 1.5 <= (inches := getattr(self, name)) <= 20:
                raise ValueError(f"{name} is {inches:g} inches, expected 1.5 to 20; name the width that LaTeX prints.")
        if not re.fullmatch(r"[\w ,'-]{1,200}", self.font):
            raise ValueError(f"font is {self.font!r:.60}, expected names of fonts such as 'Times New Roman'.")


USUAL = Paper()


@dataclass(frozen=True)
class Drawing:
    """A figure or a LaTeX table for a paper, with its caption.

    Attributes:
        name: the name of its files, without suffix.
        caption: says what is shown, and what bars and bands are, since the printed figure has no title and no note.
        figure: the figure as drawn for screens; None for a table.
        table: the table as LaTeX; empty for a figure.
        width: as wide as a column or as the page.
        inches: the height of the printed figure.
    """

    name: str
    caption: str
    figure: go.Figure | None = None
    table: str = ""
    width: Width = "column"
    inches: float = 2.4

    def printed(self, paper: Paper = USUAL) -> go.Figure:
        """The figure at its printed size, see `for_paper`."""
        assert self.figure is not None
        return for_paper(self.figure, self.width, self.inches, paper)


def for_paper(figure: go.Figure, width: Width = "column", inches: float = 2.4, paper: Paper = USUAL) -> go.Figure:
    """A copy of the figure at its printed size, without title and note.

    Args:
        figure: a figure that `ivlens.show.figures` drew.
        width: `column` (3.3 inches, unless `paper` says otherwise) or `page` (6.8 inches).
        inches: the height of the printed figure.
        paper: widths and font.

    Returns:
        The copy. Its pixels are 1/96 inch, so that a PDF of it has the printed size; its fonts have 7 points or more.
    """
    content = deepcopy(figure.to_plotly_json())
    title = content["layout"].pop("title", {}).get("text", "")
    for part in (*content["data"], content["layout"]):
        _shrink(part)
    small = go.Figure(content)
    px = getattr(paper, width) * PX_PER_INCH
    small.update_layout(
        width=round(px), height=round(inches * PX_PER_INCH), font_family=paper.font, autosize=False,
        meta={"title": plain_title(title)},
        margin={"l": 40, "r": _right(small), "t": _top(small, px), "b": 34, "pad": 0},
    )  # fmt: skip
    small.update_xaxes(automargin=True, title_standoff=6)
    small.update_yaxes(automargin=True, title_standoff=5)
    if small.layout.legend.orientation == "h":
        # above the titles of panels, which stand right above the plot
        above = (
            TITLES / (small.layout.height - small.layout.margin.t - small.layout.margin.b) if _has_panels(small) else 0
        )
        small.update_layout(legend={"y": 1.0 + above, "yref": "paper", "itemsizing": "trace", "tracegroupgap": 0})
    return small


def _shrink(node: Any, inside: str = "") -> None:
    """Shrink all fonts, marks and lines in a part of a figure's JSON, in place; `inside` is the key it stands under."""
    if isinstance(node, list | tuple):
        for part in node:
            _shrink(part, inside)
    if not isinstance(node, dict):
        return
    size = node.get("size")
    if isinstance(size, int | float):
        if inside.endswith("font"):
            node["size"] = max(SMALLEST, round(size * FONTS, 1))
        elif inside == "marker":
            node["size"] = round(size * MARKS, 1)
    if inside == "line" and isinstance(node.get("width"), int | float):
        node["width"] = round(node["width"] * LINES, 2)
    for key, part in node.items():
        _shrink(part, key)


def _top(figure: go.Figure, width: float) -> int:
    """The margin above the plot, in pixels: room for the legend and for the titles of panels."""
    traces: tuple[Any, ...] = figure.data  # pyright: ignore[reportAssignmentType]
    names = [trace.name for trace in traces if trace.name and trace.showlegend is not False]
    panels = _has_panels(figure)
    # of one trace alone plotly draws a legend only where it is asked to
    if len(names) < (1 if figure.layout.showlegend else 2) or figure.layout.showlegend is False:
        return 22 if panels else 8
    title = figure.layout.legend.title.text or ""
    return round(8 + LEGEND_LINE * _lines(names, width - 60, len(title) * LETTER)) + (TITLES if panels else 0)


def _right(figure: go.Figure) -> int:
    """The margin to the right of the plot, in pixels: room for texts that stand there."""
    beside = [
        note for note in figure.layout.annotations if note.xref == "paper" and note.x == 1 and note.xanchor == "left"
    ]
    return 8 + max((round((note.xshift or 0) + len(note.text) * LETTER) for note in beside), default=0)


def _has_panels(figure: go.Figure) -> bool:
    """Whether panels have titles above them."""
    return any(note.yanchor == "bottom" and note.yref == "paper" for note in figure.layout.annotations)


def _lines(names: Iterable[str], room: float, title: float) -> int:
    """How many lines a horizontal legend takes, given that plotly makes all entries as wide as the widest."""
    listed = list(names)
    widest = max(len(name) for name in listed) * LETTER + KEY
    per_line = max(1, int((room - title) // widest))
    return math.ceil(len(listed) / per_line)
