"""What maps of heads have in common: grey for heads that show no effect, and the strongest outlined with their rank."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool, Float

from ivlens.show.figures.theme import Theme, colour_at, readable_on, with_legend

Map = Float[np.ndarray, "n_layers n_heads"]
Place = tuple[float, float]  # x and y, in cells: head and layer

DIGIT, LINE = 5.6, 8.0  # px, width of a digit and height of a number in the smallest font of printed figures
GAP = 4.0  # px, between a rank and what is not its head
FIT = 0.92  # share of a cell that a number may take to stand inside it


class Room(NamedTuple):
    """The size of a whole map in a printed figure, in pixels."""

    width: float
    height: float


class Box(NamedTuple):
    """A rectangle in a map, in cells: its middle and its size."""

    x: float
    y: float
    width: float
    height: float

    def meets(self, other: "Box", gap: Place) -> bool:
        """Whether it overlaps with another one, or is closer to it than the gap in both directions."""
        across = abs(self.x - other.x) < (self.width + other.width) / 2 + gap[0] - 1e-6
        return across and abs(self.y - other.y) < (self.height + other.height) / 2 + gap[1] - 1e-6

    def is_in(self, shape: tuple[int, ...]) -> bool:
        """Whether all of it is in a map of this shape."""
        across = abs(self.x - (shape[1] - 1) / 2) <= (shape[1] - self.width) / 2
        return across and abs(self.y - (shape[0] - 1) / 2) <= (shape[0] - self.height) / 2


ONE = Room(225.0, 340.0)  # a map alone, as wide as a column


def strongest(values: Map, top: int) -> list[tuple[int, int]]:
    """The `top` heads of largest value as `(layer, head)`, largest first; heads that were not measured are left out."""
    order = np.argsort(-np.where(np.isnan(values), -np.inf, values), axis=None, kind="stable")
    chosen = order[: min(top, int(np.isfinite(values).sum()))]
    return [divmod(int(index), values.shape[1]) for index in chosen]


def unsure(low: Map, high: Map) -> Bool[np.ndarray, "n_layers n_heads"]:
    """Which heads have an interval that includes 0; none where there are no intervals (NaN)."""
    return (low <= 0) & (high >= 0)


def grey(cells: Bool[np.ndarray, "n_layers n_heads"], theme: Theme) -> go.Heatmap:
    """A layer of grey over these cells of a map; the effects below it stay in the hover texts."""
    return go.Heatmap(
        z=np.where(cells, 0.0, np.nan), zmin=0, zmax=1, colorscale=[(0, theme.unsure), (1, theme.unsure)],
        showscale=False, hoverinfo="skip", hoverongaps=False, xgap=1, ygap=1,
    )  # fmt: skip


def rank_marks(
    values: Map, top: int, limit: float, covered: Bool[np.ndarray, "n_layers n_heads"], theme: Theme, room: Room = ONE
) -> list[go.Scatter]:
    """The strongest heads outlined, and their ranks: inside the cells where numbers fit, otherwise beside them.

    Args:
        values: the map.
        top: how many heads; 0: none.
        limit: the value at which the map's colours end.
        covered: which cells are grey.
        room: the printed size of the map.
    """
    heads = strongest(values, top)
    if not heads:
        return []
    texts = [str(rank) for rank in range(1, len(heads) + 1)]
    cell = room.width / values.shape[1], min(26.0, room.height / values.shape[0])
    sizes = [(len(text) * DIGIT / cell[0], LINE / cell[1]) for text in texts]
    inside = all(max(size) <= FIT for size in sizes)
    gap = GAP / cell[0], GAP / cell[1] / 2
    places = [(float(head), float(layer)) for layer, head in heads]
    places = places if inside else beside(heads, sizes, values.shape, gap)
    inks = [theme.text] * len(heads)
    if inside:
        grounds = [
            theme.unsure if covered[head] else colour_at(theme.diverging, float(values[head] / limit + 1) / 2)
            for head in heads
        ]
        inks = [readable_on(ground) for ground in grounds]
    numbers = go.Scatter(
        x=[x for x, _ in places], y=[y for _, y in places], text=texts, mode="text", cliponaxis=False,
        textfont={"size": 11, "color": inks}, hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    return [_outlines(heads, theme), numbers]


def beside(
    heads: Sequence[tuple[int, int]], sizes: Sequence[Place], shape: tuple[int, ...], gap: Place = (0.0, 0.0)
) -> list[Place]:
    """A place beside each head for its rank: away from other heads and ranks, if possible, and in the map.

    Args:
        heads: the heads as `(layer, head)`.
        sizes: width and height of each rank, in cells.
        shape: layers and heads of the map.
        gap: the least distance to other heads and ranks, in cells.
    """
    ranks = list[Box]()
    for (layer, head), (width, height) in zip(heads, sizes, strict=True):
        others = [Box(h, n, 1.0, 1.0) for n, h in heads if (n, h) != (layer, head)] + ranks
        along, up = 0.55 + width / 2, 0.55 + height / 2
        steps = [(along, 0), (-along, 0), (0, up), (0, -up), (along, up), (-along, up), (along, -up), (-along, -up)]
        tried = [Box(head + x, layer + y, width, height) for x, y in steps]
        free = [box for box in tried if box.is_in(shape) and not any(box.meets(other, gap) for other in others)]
        ranks.append((free or tried)[0])
    return [(float(box.x), float(box.y)) for box in ranks]


def with_map_legend(figure: go.Figure, theme: Theme, top: int, kind: str, *, margin_t: int) -> go.Figure:
    """Say above the map what outlines and grey cells mean; return the same figure.

    Args:
        top: how many heads are outlined; 0: none, and no entry.
        kind: the kind of the intervals that decide what is grey; empty: nothing is, and no entry.
    """
    entries = []
    if top:
        entries.append((f"the {top} strongest heads, by rank", "square-open", theme.text))
    if kind:
        entries.append((f"{kind} interval includes 0", "square", theme.unsure))
    for name, symbol, colour in entries:
        marker: dict[str, Any] = {"symbol": symbol, "size": 12, "color": colour, "line": {"width": 1.5}}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", name=name, marker=marker, showlegend=True))
    figure.update_layout(showlegend=bool(entries))
    return with_legend(figure, theme, margin_t, itemclick=False, itemdoubleclick=False) if entries else figure


def _outlines(heads: Sequence[tuple[int, int]], theme: Theme) -> go.Scatter:
    """One line around the cell of each head."""
    x: list[float | None] = []
    y: list[float | None] = []
    for layer, head in heads:
        # None ends a line, so that one trace holds all outlines
        x += [head - 0.5, head + 0.5, head + 0.5, head - 0.5, head - 0.5, None]
        y += [layer - 0.5, layer - 0.5, layer + 0.5, layer + 0.5, layer - 0.5, None]
    line: Any = {"color": theme.text, "width": 1.6}
    return go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False)
