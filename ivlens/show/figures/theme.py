"""The look of all figures: one light and one dark theme, whose colours colour-blind readers can tell apart."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from ivlens.common.files import write_whole
from ivlens.common.names import path_of
from ivlens.show.figures.images import image
from ivlens.show.figures.metadata import plain_title, sized, titled

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
IMAGE_SUFFIXES = (".png", ".svg", ".pdf", ".jpg", ".webp")

Scale = tuple[tuple[float, str], ...]  # positions from 0 to 1 and their colours, in rising order


@dataclass(frozen=True)
class Theme:
    """The colours of figures on a light or on a dark background.

    Attributes:
        name: `light` or `dark`.
        surface: the background.
        text, muted, grid: the colours of titles and labels; of ticks and notes; of grid lines.
        accent, control, reference: the colours of what is judged (the vector); of what it is compared with (its
            controls); of reference lines.
        unsure: the grey of heads whose interval includes 0; no colour of `diverging` is close to it.
        diverging: colour scale for signed quantities, close to the background at zero.
        steps: colour scale for ordered lines such as strengths, weakest first, legible on the background throughout.
    """

    name: str
    surface: str
    text: str
    muted: str
    grid: str
    accent: str
    control: str
    reference: str
    unsure: str
    diverging: Scale
    steps: Scale


LIGHT = Theme(
    name="light",
    surface="#ffffff",
    text="#1c2430",
    muted="#5b6675",
    grid="#e3e7ec",
    accent="#0b62a8",
    control="#b4590a",
    reference="#8a94a1",
    unsure="#e2e2e2",
    diverging=((0.0, "#8f3f00"), (0.25, "#e08a3c"), (0.5, "#f7f7f5"), (0.75, "#5ba0d6"), (1.0, "#06477f")),
    steps=((0.0, "#e0a100"), (0.35, "#d2601a"), (0.7, "#8f2a78"), (1.0, "#26246e")),
)
DARK = Theme(
    name="dark",
    surface="#171c24",
    text="#e6ebf2",
    muted="#9aa6b5",
    grid="#2c3440",
    accent="#62b0f0",
    control="#f0a04b",
    reference="#8390a0",
    unsure="#33363b",
    diverging=((0.0, "#ffb870"), (0.25, "#a85d16"), (0.5, "#20262f"), (0.75, "#1f6fae"), (1.0, "#9ad0ff")),
    steps=((0.0, "#7a6cf0"), (0.35, "#d061b8"), (0.7, "#f58a55"), (1.0, "#f9dd6a")),
)


def styled(figure: go.Figure, theme: Theme, title: str, note: str = "", *, height: int) -> go.Figure:
    """Give the figure a title, a note below it, and the theme's fonts, colours and margins; return the same figure."""
    small = f"<br><span style='font-size:12px;color:{theme.muted}'>{note}</span>" if note else ""
    figure.update_layout(
        template="none",
        height=height,
        title={
            "text": f"<b>{title}</b>{small}",
            "font": {"size": 15, "color": theme.text},
            "x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 12},
            "y": 1 - 20 / height, "yref": "container", "yanchor": "top",
        },
        font={"family": FONT, "size": 12, "color": theme.muted},
        paper_bgcolor=theme.surface,
        plot_bgcolor=theme.surface,
        margin={"l": 56, "r": 16, "t": 66 if note else 44, "b": 48},
        hoverlabel={"font": {"family": FONT, "color": theme.text}, "bgcolor": theme.surface, "bordercolor": theme.grid},
    )  # fmt: skip
    axis = {
        "gridcolor": theme.grid,
        "linecolor": theme.grid,
        "zeroline": False,
        "ticks": "",
        "title": {"font": {"size": 12, "color": theme.text}, "standoff": 6},
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def with_legend(figure: go.Figure, theme: Theme, margin_t: int = 92, **legend: Any) -> go.Figure:
    """Put the legend above the plot, in a top margin of `margin_t` pixels, and return the same figure."""
    place = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"color": theme.text}}
    return figure.update_layout(legend=place | legend, margin_t=margin_t)


def level_entry(label: str, colour: str, dash: str) -> go.Scatter:
    """A trace that draws nothing and stands in the legend for a reference line."""
    line: Any = {"color": colour, "dash": dash, "width": 1.5}
    return go.Scatter(x=[None], y=[None], mode="lines", name=label, line=line, showlegend=True, legendrank=2000)


def colour_bar(theme: Theme, title: str) -> dict:
    """Plotly's options for a thin colour bar with this title, which names the unit."""
    return {
        "thickness": 10,
        "outlinewidth": 0,
        "len": 1.0,
        "xpad": 8,
        "nticks": 6,
        "tickfont": {"size": 11, "color": theme.muted},
        "title": {"text": title, "side": "right", "font": {"size": 11, "color": theme.muted}},
    }


def colour_at(scale: Scale, position: float) -> str:
    """The colour of the scale at `position`, from 0 to 1, as `#rrggbb`: a linear mix of its two neighbours."""
    position = min(max(position, 0.0), 1.0)
    for (low, first), (high, second) in zip(scale, scale[1:], strict=False):
        if position <= high:
            share = (position - low) / (high - low)
            parts = zip(_channels(first), _channels(second), strict=True)
            return "#" + "".join(f"{round(one + share * (other - one)):02x}" for one, other in parts)
    return scale[-1][1]


def translucent(colour: str, opacity: float) -> str:
    """The colour `#rrggbb` with this opacity, from 0 to 1, as CSS writes it."""
    return f"rgba({', '.join(map(str, _channels(colour)))}, {opacity:g})"


def readable_on(colour: str) -> str:
    """Black or white, whichever contrasts more with the colour (WCAG relative luminance)."""
    # 2.2 approximates sRGB's curve; at a luminance of 0.18 black and white contrast equally
    linear = [(part / 255) ** 2.2 for part in _channels(colour)]
    luminance = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#10151c" if luminance > 0.18 else "#ffffff"


def write_figure(figure: go.Figure, path: str | Path, *, scale: float = 2.0) -> Path:
    """Write the figure to a file, whole or not at all, in the format that the suffix of the path names.

    A PDF has the figure's title in its properties, a PNG its resolution.

    Args:
        path: ends in `.html` (works offline), `.json`, or the suffix of an image: .png, .svg, .pdf, .jpg, .webp.
        scale: pixels of an image for each pixel of the figure.

    Raises:
        ValueError: an unknown suffix.
        ImportError: an image was asked for, and kaleido is not installed.
        FileNotFoundError: an image was asked for, and there is no Chrome that works.
        TimeoutError: Chrome did not answer in time.
    """
    target = path_of(path)
    suffix = target.suffix.lower()
    if suffix == ".html":
        content = figure.to_html(include_plotlyjs=True, config={"displaylogo": False}).encode()
    elif suffix == ".json":
        content = str(figure.to_json()).encode()
    elif suffix in IMAGE_SUFFIXES:
        content = _described(image(figure, suffix.removeprefix("."), scale), suffix, figure, target, scale)
    else:
        known = ", ".join((".html", ".json", *IMAGE_SUFFIXES))
        raise ValueError(f"{target} has suffix {suffix!r}, expected one of {known}; rename it.")
    return write_whole(target, lambda path: path.write_bytes(content))


def _described(content: bytes, suffix: str, figure: go.Figure, target: Path, scale: float) -> bytes:
    """The bytes of an image with what the format can say of it: its title or its size."""
    if suffix == ".png":
        return sized(content, scale)
    if suffix != ".pdf":
        return content
    kept = figure.layout.meta.get("title") if isinstance(figure.layout.meta, dict) else None
    return titled(content, kept or plain_title(figure.layout.title.text or "") or target.stem)


def _channels(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour `#rrggbb`, each from 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
