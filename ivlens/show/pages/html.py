"""What all reports share: style sheet, script, and figures in light and dark colours."""

import json
from collections.abc import Callable, Mapping
from importlib import resources
from string import Template

import plotly.graph_objects as go

from ivlens.show.figures.theme import DARK, LIGHT, Theme


def style() -> str:
    """The style sheet of all reports, with the colour scale of head maps in both themes."""
    return template("page.css").substitute(gradient_light=_gradient(LIGHT), gradient_dark=_gradient(DARK))


def script() -> str:
    """The JavaScript that draws the figures of a report."""
    return _read("page.js")


def template(name: str) -> Template:
    """The HTML or CSS template of this name in this folder."""
    return Template(_read(name))


def _read(name: str) -> str:
    return (resources.files("ivlens.show.pages") / name).read_text(encoding="utf-8")


def embedded(figures: Callable[[Theme], Mapping[str, go.Figure]]) -> str:
    """All figures in both themes, as JSON that may stand inside a script element of HTML."""
    themes = {theme.name: figures(theme) for theme in (LIGHT, DARK)}
    by_id = {
        key: {name: json.loads(str(_bare(found[key]).to_json())) for name, found in themes.items()}
        for key in themes[LIGHT.name]
    }
    # "<" is written as an escape, since "</script>" in some text would end the element
    return json.dumps(by_id, separators=(",", ":")).replace("<", "\\u003c")


def _bare(figure: go.Figure) -> go.Figure:
    """The figure for a report, changed in place: without title, since the page has it as text, and without dragging.

    On a touch screen dragging in a figure would keep a finger from scrolling the page.
    """
    figure.update_layout(title=None, margin_t=10, margin_r=8, dragmode=False)
    height = figure.layout.height  # less the room of the title
    return figure.update_layout(height=height - 40 if height else None)


def _gradient(theme: Theme) -> str:
    """The theme's scale for signed values as a gradient of CSS."""
    return f"linear-gradient(to right, {', '.join(f'{colour} {100 * at:.0f}%' for at, colour in theme.diverging)})"
