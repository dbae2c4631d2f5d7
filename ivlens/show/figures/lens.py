"""The figure of a logit lens: the probability of followed texts after every layer, without a vector and with it."""

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ivlens.analysis.inside.lens_results import LogitLens
from ivlens.show.figures.panels import Look
from ivlens.show.figures.theme import LIGHT, Theme, level_entry, styled, with_legend

LOOKS = {
    "plain": Look("plain", "circle-open", "reference", "dash"),
    "patched": Look("with the vector", "circle", "accent"),
}
MOST = 4  # followed texts that find room side by side
LONGEST = 28  # letters of a prompt in the note


def lens_plot(lens: LogitLens, prompt: int = 0, *, theme: Theme = LIGHT) -> go.Figure:
    """The probability of each followed text by layer, a line for each run and a panel for each text.

    The dotted line is the layer after which the vector is added.

    Args:
        lens: From `ivlens.logit_lens`, with texts to follow.
        prompt: Which of its prompts.

    Raises:
        ValueError: no text was followed, or there is no such prompt.
    """
    texts = lens.followed[:MOST]
    if not texts:
        raise ValueError(
            "the lens followed no text, expected one or more; measure it with LensOptions(follow=[' answer'])."
        )
    if not 0 <= prompt < len(lens.prompts):
        raise ValueError(f"prompt is {prompt}, expected 0 to {len(lens.prompts) - 1}.")
    layers, at = [*range(lens.followed_probs.shape[2])], lens.settings.get("at")
    figure = make_subplots(
        rows=1, cols=len(texts), shared_yaxes=True, horizontal_spacing=0.03,
        subplot_titles=[f"“{text.strip()}”" for text in texts],
    )  # fmt: skip
    for number, text in enumerate(texts):
        for run, name in enumerate(lens.runs):
            look, probs = LOOKS[name], lens.followed_probs[run, prompt, :, number].tolist()
            colour = getattr(theme, look.colour)
            line = go.Scatter(
                x=layers, y=probs, name=look.label, legendgroup=name, showlegend=not number, mode="lines+markers",
                line={"color": colour, "width": 2, "dash": look.dash},
                marker={"symbol": look.symbol, "size": 6, "color": colour},
                hovertemplate=f"layer %{{x}}, {look.label}: %{{y:.3f}} {text.strip()!r}<extra></extra>",
            )  # fmt: skip
            figure.add_trace(line, row=1, col=number + 1)
        if at is not None:  # after the traces: plotly draws it in panels that have some
            dotted: Any = {"width": 1.2, "dash": "dot", "color": theme.muted}
            figure.add_vline(at[0], line=dotted, row=1, col=number + 1)  # pyright: ignore
    if at is not None:
        figure.add_trace(level_entry("the vector's layer", theme.muted, "dot"), row=1, col=1)
    figure.update_annotations(font={"size": 12, "color": theme.text})
    shown = " ".join(lens.prompts[prompt].split())
    note = f"logit lens · after …{shown[-LONGEST:]}" if len(shown) > LONGEST else f"logit lens · after {shown}"
    styled(figure, theme, "Next token, layer by layer", note, height=340)
    figure.update_xaxes(title_text="layer", range=[-0.5, len(layers) - 0.5])
    figure.update_yaxes(range=[-0.03, 1.03], dtick=0.2)
    figure.update_yaxes(title_text="probability", col=1)
    return with_legend(figure, theme, margin_t=112, y=1.12)
