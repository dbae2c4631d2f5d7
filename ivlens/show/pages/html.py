"""What all pages share: their look, and figures for light and dark screens."""

import json
from collections.abc import Callable, Mapping
from importlib import resources
from string import Template

import plotly.graph_objects as go

from ivlens.show.figures.theme import DARK, LIGHT, Theme


def style() -> str:
    """The style sheet."""
    return template("page.css").substitute(gradient_light=_gradient(LIGHT), gradient_dark=_gradient(DARK))


def script() -> str:
    """What draws a page's figures."""
    return _read("page.js")


def template(name: str) -> Template:
    """A skeleton beside this file."""
    return Template(_read(name))


def _read(name: str) -> str:
    return (resources.files("ivlens.show.pages") / name).read_text(encoding="utf-8")


def embedded(figures: Callable[[Theme], Mapping[str, go.Figure]]) -> str:
    """All figures for both themes as JSON that may stand inside a script element."""
    themes = {theme.name: figures(theme) for theme in (LIGHT, DARK)}
    by_id = {
        key: {name: json.loads(str(_bare(found[key]).to_json())) for name, found in themes.items()}
        for key in themes[LIGHT.name]
    }
    return json.dumps(by_id, separators=(",", ":")).replace("<", "\\u003c")


def _bare(figure: go.Figure) -> go.Figure:
    """Without its title, which the page sets as text, and without dragging, which would catch a finger that scrolls."""
    figure.update_layout(title=None, margin_t=10, margin_r=8, dragmode=False)
    height = figure.layout.height
    return figure.update_layout(height=height - 40 if height else None)


def _gradient(theme: Theme) -> str:
    return f"linear-gradient(to right, {', '.join(f'{colour} {100 * at:.0f}%' for at, colour in theme.diverging)})"
