"""The figure of one prompt: its tokens, shaded by the attention of heads, with the parts of the prompt told apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, cast
from unicodedata import east_asian_width

import plotly.graph_objects as go

from ivlens.analysis.attention.chosen import label
from ivlens.analysis.attention.looked import SEGMENTS
from ivlens.analysis.attention.results import HeadAttention
from ivlens.common.names import shown
from ivlens.show.figures.attention import LOOKS, TELLING
from ivlens.show.figures.theme import LIGHT, Theme, colour_at, colour_bar, readable_on, styled, with_legend

Head = tuple[int, int] | str

COLUMNS = 84  # letters in a line
MOST_TOKENS = 400  # of a longer prompt the last ones are drawn
MOST_HEADS = 3  # prompts below one another, where no heads are chosen
LINE = 25  # px, the height of a line of tokens
MARGINS = 160  # px above and below them
MONO = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"


def attention_tokens(
    found: HeadAttention,
    heads: Head | Sequence[Head] | None = None,
    *,
    prompt: int = 0,
    prompts: str = "clean",
    theme: Theme = LIGHT,
) -> go.Figure:
    """One prompt for each head: a token is the darker, the more the last token attends to it; its line names its part.

    The scale ends at the largest weight of a token that is not the first one, since many heads leave most of their
    attention there; a first token beyond the scale has the darkest colour.

    Args:
        found: what `head_attention` returned.
        heads: one or several, as pairs `(layer, head)` or labels. None: the three that look most at what tells the
            task.
        prompt: which of the prompts whose tokens were kept.
        prompts: which kind of prompts.

    Raises:
        ValueError: no such head or prompts, or a prompt whose tokens were not kept.
    """
    chosen = _telling(found, prompts) if heads is None else _listed(heads)
    tables = {_name(found, head): found.tokens(head, prompt, prompts).to_dict("records") for head in chosen}
    if not tables:
        raise ValueError("heads is empty, expected one head or more; leave it out for those that look most.")
    n_tokens = len(next(iter(tables.values())))
    first = max(0, n_tokens - MOST_TOKENS)
    most = max(row["weight"] for rows in tables.values() for row in rows[1:] or rows) or 1.0
    scale = ((0.0, theme.surface), (1.0, theme.accent))
    texts = [row["token"] for row in next(iter(tables.values()))[first:]]
    room = _beside_one_another(texts, len(tables))
    figure, left, top, lowest, grounds = go.Figure(), 0, 0.0, 0.0, list[dict[str, Any]]()
    for name, rows in tables.items():
        boxes = _laid_out(texts, left, top - 2.0, room)
        for box, row in zip(boxes, rows[first:], strict=True):
            grounds += _grounds(box, colour_at(scale, row["weight"] / most), _colour(row["segment"], theme))
        figure.add_trace(_texts(boxes, rows[first:], most, scale))
        figure.add_annotation(
            x=left, y=top - 0.4, xanchor="left", yanchor="middle", align="left", showarrow=False,
            text=f"<b>{name}</b><br>{_summary(rows, 1 if room < COLUMNS else 5)}",
            font={"size": 12, "color": theme.text},
        )  # fmt: skip
        lowest = boxes[-1].line
        left, top = (left + room, top) if room < COLUMNS else (0, lowest - 1.7)
    top = lowest - 0.7
    figure.update_layout(shapes=grounds)  # all at once: to add them one by one takes seconds
    inputs = found.looked[prompts].inputs
    note = f"attention from the last token · {prompts} prompt {prompt}: {escape(shown(inputs[prompt]))[:40]}"
    note += f" · the last {MOST_TOKENS} of {n_tokens} tokens" if first else ""
    styled(figure, theme, f"What heads look at: {found.task}", note, height=round(MARGINS - LINE * top))
    figure.update_xaxes(visible=False, range=[-0.5, COLUMNS + 0.5])
    figure.update_yaxes(visible=False, range=[top, 0.8])
    _explain(figure, [row["segment"] for rows in tables.values() for row in rows[first:]], most, scale, theme)
    return with_legend(figure, theme, 100, traceorder="normal", itemclick=False, itemdoubleclick=False)


def inches_of(figure: go.Figure) -> float:
    """The height of this figure where it is printed."""
    layout: Any = figure.layout
    return 0.5 + 0.2 * (layout.height - MARGINS) / LINE


@dataclass(frozen=True)
class _Box:
    """The place of a token: its line, its first letter in the line, how many letters wide it is, and what is written.

    `indent` is the width of the spaces before the text.
    """

    line: float
    start: int
    width: int
    text: str
    indent: int


def _beside_one_another(tokens: Sequence[str], n: int) -> int:
    """How many letters a line of one prompt has: few where `n` prompts fit beside one another, otherwise `COLUMNS`."""
    boxes = _laid_out(tokens, 0, 0.0, COLUMNS)
    return room if max(box.start + box.width for box in boxes) + 2 <= (room := COLUMNS // n) else COLUMNS


def _laid_out(tokens: Sequence[str], left: int, line: float, room: int) -> list[_Box]:
    """The places of all tokens: lines end where the prompt's lines end, and where they are full.

    Args:
        tokens: their texts.
        left: where each line begins, in letters.
        line: the first line.
        room: how many letters a line has.
    """
    boxes, at, ended = [], 0, False
    for token in tokens:
        written = shown(token.replace("\r\n", "\n").replace("\n", "⏎"))[: room - 1]
        width = max(1, sum(2 if east_asian_width(letter) in "WF" else 1 for letter in written))
        # an empty line takes no room: its end stands behind that of the line before
        if (ended and token.strip("\r\n")) or at + width > room:
            line, at = line - 1, 0
        text = written.strip(" ")
        indent = len(written) - len(written.lstrip(" ")) if text else 0
        boxes.append(_Box(line, left + at, width, text or "␣", indent))
        at, ended = at + width, "\n" in token
    return boxes


def _grounds(box: _Box, shade: str, colour: str) -> list[dict[str, Any]]:
    """The ground of a token in its shade, and the line below it in the colour of its part of the prompt."""
    ends = {"type": "rect", "x0": box.start + 0.04, "x1": box.start + box.width - 0.04, "layer": "below"}
    ends |= {"line": {"width": 0}}
    ground = ends | {"y0": box.line - 0.4, "y1": box.line + 0.4, "fillcolor": shade}
    return [ground, ends | {"y0": box.line - 0.46, "y1": box.line - 0.34, "fillcolor": colour}]


def _texts(boxes: Sequence[_Box], rows: Sequence[Any], most: float, scale: Any) -> go.Scatter:
    """The tokens' texts, in black or white, whichever is legible on their shade; with hover texts."""
    inks = [readable_on(colour_at(scale, row["weight"] / most)) for row in rows]
    return go.Scatter(
        x=[box.start + box.indent + (box.width - box.indent) / 2 for box in boxes], y=[box.line for box in boxes],
        text=[escape(box.text) for box in boxes], mode="text", textfont={"family": MONO, "size": 12, "color": inks},
        customdata=[[LOOKS[row["segment"]].label, row["weight"]] for row in rows], showlegend=False,
        hovertemplate="%{customdata[0]}: %{customdata[1]:.3f}<extra></extra>", cliponaxis=False,
    )  # fmt: skip


def _explain(figure: go.Figure, segments: Sequence[str], most: float, scale: Any, theme: Theme) -> None:
    """The legend of the parts that are in the prompt, and the scale of the shades."""
    for name in (name for name in LOOKS if name in segments):
        marker: dict[str, Any] = {"symbol": "square", "size": 11, "color": _colour(name, theme)}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", name=LOOKS[name].label, marker=marker))
    bar = colour_bar(theme, "attention (share)")
    marker = {"color": [0.0], "cmin": 0, "cmax": most, "colorscale": scale, "showscale": True, "colorbar": bar}
    figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, showlegend=False))


def _summary(rows: Sequence[Any], most: int) -> str:
    """The shares of the parts of this prompt, those of the `most` largest, as one line."""
    shares = {name: sum(row["weight"] for row in rows if row["segment"] == name) for name in LOOKS}
    found = sorted((name for name in shares if shares[name] >= 0.01), key=lambda name: -shares[name])[:most]
    return " · ".join(f"{LOOKS[name].label} {shares[name]:.2f}" for name in found)


def _telling(found: HeadAttention, prompts: str) -> list[Head]:
    """Up to three heads, those that look most at what tells the task on prompts of this kind."""
    means = found.shares(prompts).mean(0)
    told = means[:, [SEGMENTS.index(name) for name in TELLING]].sum(1)
    return [found.heads[number] for number in told.argsort(descending=True, stable=True)[:MOST_HEADS].tolist()]


def _listed(heads: Head | Sequence[Head]) -> list[Head]:
    """One head or several as a list."""
    is_pair = len(heads) == 2 and all(isinstance(part, int) for part in heads)
    return [cast(Head, heads)] if isinstance(heads, str) or is_pair else list(cast(Sequence[Head], heads))


def _name(found: HeadAttention, head: Head) -> str:
    """The label of a head; the text that was given where it is no pair, which `tokens` checks."""
    return label(head) if isinstance(head, tuple) else head.strip().upper()


def _colour(segment: str, theme: Theme) -> str:
    """The colour of a part of the prompt."""
    look = LOOKS[segment]
    return look.dark if theme.name == "dark" else look.light
