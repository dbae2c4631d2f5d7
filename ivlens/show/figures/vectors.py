"""The figure of one vector: how much each of its heads contributes."""

import plotly.graph_objects as go

from ivlens.models.mixers import head_labels
from ivlens.show.figures.heads import short_name
from ivlens.show.figures.theme import LIGHT, Theme, styled
from ivlens.vectors.vector import InstructionVector


def head_shares(vector: InstructionVector, *, theme: Theme = LIGHT) -> go.Figure:
    """One bar per head of the vector, largest effect on top: the head's share of the vector's length.

    The share is the part of the head's write that points along the vector, divided by the vector's length. The shares
    sum to 1; a head with a negative share writes against the others. Some vectors do not record shares (those of older
    versions, and of stages in a series of checkpoints): then bars are the norms of the heads' mean outputs.

    Raises:
        ValueError: the vector has no heads.
    """
    if not vector.heads:
        raise ValueError(
            f"vector {vector.task!r} has no heads to draw, expected one made from effects; this one was computed "
            "from others: plot those, or look at decode(model)."
        )
    norms, recorded = vector.head_means.norm(dim=1).tolist(), vector.settings.get("shares")
    # norms need no model, whereas shares need its output projections
    shares = recorded if recorded is not None and len(recorded) == len(norms) else None
    labels = head_labels(vector.heads, vector.model.n_heads)
    figure = go.Figure(
        go.Bar(
            x=shares or norms, y=labels, orientation="h", marker={"color": theme.accent}, customdata=norms,
            hovertemplate="%{y}: %{x:.3f}<br>norm of its mean output %{customdata:.3g}<extra></extra>",
        )
    )  # fmt: skip
    note = f"{short_name(vector)} · norm {vector.norm:.3g} · heads by their effect, largest on top"
    styled(figure, theme, f"Instruction Vector of {vector.task}", note, height=130 + 24 * len(labels))
    figure.update_xaxes(title_text="share of the vector" if shares else "norm of the head's mean output")
    # no title: labels such as L24H4 say what they are, and would lie below it
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category", dtick=1)
    return figure
