"""The layer x head map of the effects of one task."""

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool

from ivlens.effects.results import HeadEffects
from ivlens.models.mixers import head_label
from ivlens.show.figures.theme import LIGHT, Theme, colour_bar, styled

UNITS = {"prob": "probability", "logprob": "nats", "logit_diff": "logits"}


def head_heatmap(
    effects: HeadEffects,
    *,
    top: int = 10,
    limit: float | None = None,
    show_scale: bool = True,
    theme: Theme = LIGHT,
) -> go.Figure:
    """Map of the average indirect effect (AIE) of every head; the strongest heads are marked by rank.

    In maps with many heads, where numbers do not fit, the strongest are marked by dots.

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
            text=names, hovertemplate="%{text}: %{z:+.3f}<br>" + (shown.kind or "no interval")
            + ": %{customdata[0]:+.3f} to %{customdata[1]:+.3f}<extra></extra>",
            showscale=show_scale, colorbar=colour_bar(theme, f"AIE ({unit_of(effects)})"),
        )
    )  # fmt: skip
    figure.add_traces(hatching(empty_places(effects), theme))
    _mark_ranks(figure, effects, top, theme)
    n = len(effects.corruptions)
    name = effects.model.name.rstrip("/").rpartition("/")[2]
    marks = f"dots: the {top} strongest heads" if is_crowded(effects) else f"numbers: rank of the {top} strongest heads"
    note = f"{name} · {n} corrupted prompts" + (f" · {marks}" if top else "")
    styled(figure, theme, f"Effect of each head: {effects.task}", note, height=120 + max(170, min(34 * n_layers, 560)))
    figure.update_xaxes(title_text="head", showgrid=False, **_ticks(n_heads), range=[-0.5, n_heads - 0.5])
    if n_heads > effects.model.n_heads:  # behind attention's heads are those of recurrent mixers, counted on
        figure.update_xaxes(title_text="head of attention | of the mixer")
        figure.add_vline(effects.model.n_heads - 0.5, line={"color": theme.text, "width": 2})
    figure.update_yaxes(title_text="layer", showgrid=False, **_ticks(n_layers), range=[-0.5, n_layers - 0.5])
    return figure


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


def is_crowded(effects: HeadEffects) -> bool:
    """Whether the cells of the map are too small to hold a number."""
    return max(effects.aie.shape) > 20


def _mark_ranks(figure: go.Figure, effects: HeadEffects, top: int, theme: Theme) -> None:
    """Mark the `top` heads of largest effect with their ranks, or with dots in a crowded map."""
    if top < 1:
        return
    # heads that were not measured are NaN and have no rank
    heads = effects.top_heads(min(top, int(effects.aie.isfinite().sum())))
    crowded = is_crowded(effects)
    figure.add_trace(
        go.Scatter(
            x=[head for _, head in heads], y=[layer for layer, _ in heads],
            text=[str(rank) for rank in range(1, len(heads) + 1)],
            mode="markers" if crowded else "text+markers",
            textfont={"size": 11, "color": theme.text},
            marker={
                "symbol": "circle", "size": 8 if crowded else 18, "color": theme.surface,
                "opacity": 0.82, "line": {"width": 1, "color": theme.text},
            },
            hoverinfo="skip", showlegend=False,
        )
    )  # fmt: skip


def _ticks(n: int) -> dict:
    """Plotly's options for the ticks of an axis with `n` cells."""
    return {"tickmode": "linear", "tick0": 0, "dtick": 1 if n <= 16 else 4 if n <= 40 else 8}
