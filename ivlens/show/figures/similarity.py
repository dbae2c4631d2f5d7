"""The figure of cosines between vectors, with similar vectors side by side."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from ivlens.analysis.dynamics.cosines import hierarchical_order
from ivlens.show.figures.theme import LIGHT, Theme, colour_at, colour_bar, readable_on, styled
from ivlens.vectors.vector import InstructionVector

STRAIGHT = 36  # letters that fit side by side below the map, in a column of a paper


def similarity_matrix(vectors: Sequence[InstructionVector], *, theme: Theme = LIGHT) -> go.Figure:
    """Map of the cosine of every pair of vectors, in the order of `similarity_order`.

    Raises:
        ValueError: fewer than two vectors, two vectors of one name, or vectors of different `d_model`.
    """
    cosines = _cosines(vectors)
    order = similarity_order(vectors)
    names = [vectors[index].task for index in order]
    cosines = cosines[np.ix_(order, order)]
    n = len(names)
    figure = go.Figure(
        go.Heatmap(
            z=cosines, x=names, y=names, zmin=-1, zmax=1, colorscale=theme.diverging, xgap=1, ygap=1,
            hovertemplate="%{y} · %{x}: %{z:.2f}<extra></extra>", colorbar=colour_bar(theme, "cosine"),
        )
    )  # fmt: skip
    if n <= 14:  # in smaller cells numbers do not fit
        _write_values(figure, names, cosines, theme)
    height = 200 + max(200, min(40 * n, 720))
    styled(figure, theme, "Instruction Vectors compared", "cosine · hierarchical order, average linkage", height=height)
    slanted = n * max(map(len, names)) > STRAIGHT
    figure.update_xaxes(showgrid=False, tickangle=-45 if slanted else 0, automargin=True)
    figure.update_yaxes(showgrid=False, autorange="reversed", automargin=True)
    return figure


def similarity_order(vectors: Sequence[InstructionVector]) -> list[int]:
    """Indices of the vectors in an order that puts similar ones side by side.

    It is the order of the leaves of an average-linkage tree over the distances `1 - cosine`.
    """
    return hierarchical_order(_cosines(vectors))


def _cosines(vectors: Sequence[InstructionVector]) -> np.ndarray:
    names = [vector.task for vector in vectors]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"got vectors of {names}, expected two or more with distinct names; leave repeated ones out.")
    return np.array([[one.cosine(other) for other in vectors] for one in vectors])


def _write_values(figure: go.Figure, names: list[str], cosines: np.ndarray, theme: Theme) -> None:
    """Write each cosine into its cell."""
    size = 12 if len(names) <= 10 else 10
    for row, values in zip(names, cosines, strict=True):
        for column, value in zip(names, values, strict=True):
            ink = readable_on(colour_at(theme.diverging, (value + 1) / 2))
            # adding 0.0 turns "-0.00" into "0.00"; the minus sign is as wide as a digit
            text = f"{round(float(value), 2) + 0.0:.2f}".replace("-", "−")
            figure.add_annotation(x=column, y=row, text=text, showarrow=False, font={"size": size, "color": ink})
