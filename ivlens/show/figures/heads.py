"""The layer x head map of the effects of one task."""

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool

from ivlens.effects.results import HeadEffects
from ivlens.models.mixers import head_label
from ivlens.show.figures.marks import grey, rank_marks, unsure, with_map_legend
from ivlens.show.figures.theme import LIGHT, Theme, colour_bar, styled
from ivlens.vectors.vector import InstructionVector

MARGINS = 144  # px above and below the map: title, note and legend; the axis
UNITS = {"prob": "probability", "logprob": "nats", "logit_diff": "logits"}


def head_heatmap(
    effects: HeadEffects,
    *,
    top: int = 10,
    limit: float | None = None,
    show_scale: bool = True,
    theme: Theme = LIGHT,
) -> go.Figure:
    """Map of the average indirect effect (AIE) of every head; the strongest heads are outlined, with their rank.

    Heads whose interval, the one for whole maps, includes 0 are grey.

    Args:
        top: how many heads to mark; 0: none.
        limit: the colour scale reaches from `-limit` to `limit`; the same limit makes several maps comparable. None:
            the largest effect in this map.
        show_scale: whether to draw the colour bar.

    Returns:
        x: head, y: layer (0 at the bottom), colour: AIE in the unit of the score; heads not measured stay blank, and
        places without a head (layers without attention, in hybrid models) are hatched.
    """
    aie = effects.aie.cpu().numpy()
    shown = effects.interval(simultaneous=True)
    low, high = (bound.cpu().numpy() for bound in shown)
    n_layers, n_heads = aie.shape
    names = [[head_label(layer, head, effects.model.n_heads) for head in range(n_heads)] for layer in range(n_layers)]
    # symmetric around 0, so that a colour shows the sign of an effect
    limit = limit or float(np.nanmax(np.abs(aie))) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=aie, zmin=-limit, zmax=limit, colorscale=theme.diverging, xgap=1, ygap=1,
            customdata=np.stack([low, high], axis=-1), hoverongaps=False,
            text=names, hovertemplate="%{text}: %{z:+.2g}<br>" + (shown.kind or "no interval")
            + ": %{customdata[0]:+.2g} to %{customdata[1]:+.2g}<extra></extra>",
            showscale=show_scale, colorbar=colour_bar(theme, f"AIE ({unit_of(effects)})"),
        )
    )  # fmt: skip
    figure.add_traces(hatching(empty_places(effects), theme))
    covered = unsure(low, high)
    if covered.any():
        figure.add_trace(grey(covered, theme))
    figure.add_traces(rank_marks(aie, top, limit, covered, theme))
    note = f"{short_name(effects)} · {len(effects.corruptions)} corrupted prompts"
    height = MARGINS + max(170, min(34 * n_layers, 560))
    styled(figure, theme, f"Effect of each head: {effects.task}", note, height=height)
    figure.update_xaxes(title_text="head", showgrid=False, **_ticks(n_heads), range=[-0.55, n_heads - 0.45])
    if n_heads > effects.model.n_heads:  # behind attention's heads are those of recurrent mixers, counted on
        figure.update_xaxes(title_text="head of attention | of the mixer")
        figure.add_vline(effects.model.n_heads - 0.5, line={"color": theme.text, "width": 2})
    figure.update_yaxes(title_text="layer", showgrid=False, **_ticks(n_layers), range=[-0.6, n_layers - 0.4])
    n_marked = min(top, int(np.isfinite(aie).sum()))
    return with_map_legend(figure, theme, n_marked, shown.kind if covered.any() else "", margin_t=MARGINS - 48)


def empty_places(effects: HeadEffects) -> Bool[np.ndarray, "n_layers n_heads"]:
    """Where the model has no head: in layers without attention, whose means are NaN."""
    return effects.mean_z.isnan().all(-1).cpu().numpy()


def hatching(empty: Bool[np.ndarray, "n_layers n_heads"], theme: Theme) -> list[go.Bar]:
    """A trace of hatched bars over these places of a map, one for each stretch of a layer; none where no place is."""
    # a place begins a stretch where it is empty and the one before it is not
    edges = np.diff(np.pad(empty, ((0, 0), (1, 1))).astype(int), axis=1)
    layers, starts = np.nonzero(edges == 1)
    _, ends = np.nonzero(edges == -1)
    if not len(layers):
        return []
    pattern = {"shape": "/", "size": 6, "solidity": 0.15, "fgcolor": theme.muted, "bgcolor": theme.surface}
    return [
        go.Bar(
            x=(ends - starts).tolist(), y=layers.tolist(), base=(starts - 0.5).tolist(), width=0.96, orientation="h",
            marker={"pattern": pattern, "color": theme.surface, "line": {"width": 0}}, showlegend=False,
            hovertemplate="layer %{y} has no such heads<extra></extra>",
        )
    ]  # fmt: skip


def unit_of(effects: HeadEffects) -> str:
    """The unit of the effects, which is that of the score: probability, nats or logits."""
    return UNITS.get(str(effects.settings.get("score")), "score")


def short_name(result: HeadEffects | InstructionVector) -> str:
    """The name of a result's model without the folder or the owner before it: captions hold no paths."""
    return result.model.name.replace("\\", "/").rstrip("/").rpartition("/")[2] or result.model.name


def _ticks(n: int) -> dict:
    """Plotly's options for the ticks of an axis with `n` cells."""
    return {"tickmode": "linear", "tick0": 0, "dtick": 1 if n <= 16 else 4 if n <= 40 else 8}
