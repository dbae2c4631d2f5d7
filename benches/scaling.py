"""How the engine's cost grows with the length of the prompt and with depth, beside the law it should follow.

    python benches/scaling.py [--write]

The unit is one plain forward pass over the same prompt, with last-position logits. The law counts tokens that pass
through blocks, `1 + (n_layers + 1) n_heads / 2T`, and adds the unembedding of one row per head.
"""

import argparse
from functools import partial
from pathlib import Path

import plotly.graph_objects as go
import ways
from common import gpt2_small, machine_line, random_request, seconds, table, write_section
from plotly.subplots import make_subplots

from ivlens.show.figures.theme import write_figure

LENGTHS = (16, 32, 64, 128, 256, 512, 1024)
DEPTHS = (2, 4, 6, 8, 12)
AT = {"n_layers": 12, "n_tokens": 64}
PICTURE = Path(__file__).parent / "scaling"

Point = tuple[int, float, float]  # what varies, measured, law


def ratio(model, n_tokens: int) -> tuple[float, float]:
    """Passes that all head effects of one prompt cost: measured, and by the law."""
    request = random_request(model, 1, n_tokens)
    found = seconds(
        {"plain": partial(ways.plain, model, request, last=True), "exact": partial(ways.engine, model, request)}, 7
    )
    return found["exact"] / found["plain"], law(model, n_tokens)


def law(model, n_tokens: int) -> float:
    cfg = model.cfg
    per_token = cfg.n_layers * (4 * cfg.d_model**2 + 2 * cfg.d_model * cfg.d_mlp)
    n_heads = cfg.n_layers * cfg.n_heads
    blocks = n_tokens * per_token + (cfg.n_layers + 1) * cfg.n_heads / 2 * per_token
    unembedding = cfg.d_model * cfg.d_vocab
    return (blocks + (1 + n_heads) * unembedding) / (n_tokens * per_token + unembedding)


def measure() -> tuple[list[Point], list[Point]]:
    model = gpt2_small(AT["n_layers"])
    lengths = [(n_tokens, *ratio(model, n_tokens)) for n_tokens in LENGTHS]
    depths = [(n_layers, *ratio(gpt2_small(n_layers), AT["n_tokens"])) for n_layers in DEPTHS]
    return lengths, depths


def draw(lengths: list[Point], depths: list[Point]) -> go.Figure:
    figure = make_subplots(1, 2, shared_yaxes=False, horizontal_spacing=0.14)
    for column, points in enumerate((lengths, depths), 1):
        x, measured, expected = zip(*points, strict=True)
        shown = {"showlegend": column == 1}
        figure.add_scatter(
            x=x,
            y=expected,
            name="law",
            mode="lines",
            line={"color": "#767676", "dash": "dash"},
            row=1,
            col=column,
            **shown,
        )
        figure.add_scatter(
            x=x,
            y=measured,
            name="measured",
            mode="markers",
            marker={"color": "#0072B2", "size": 9},
            row=1,
            col=column,
            **shown,
        )
    figure.update_xaxes(title=f"prompt tokens T, {AT['n_layers']} layers", type="log", tickvals=LENGTHS, col=1)
    figure.update_xaxes(title=f"layers, T = {AT['n_tokens']}", tickvals=DEPTHS, col=2)
    figure.update_yaxes(title="cost of all head effects,<br>in plain forward passes", rangemode="tozero", col=1)
    figure.update_yaxes(rangemode="tozero", col=2)
    return figure.update_layout(
        template="plotly_white",
        width=760,
        height=300,
        margin={"l": 70, "r": 10, "t": 10, "b": 50},
        legend={"x": 0.3, "y": 0.98},
        font={"size": 13},
    )


def report(lengths: list[Point], depths: list[Point]) -> str:
    def rows(points: list[Point]) -> list[list[str]]:
        return [
            [str(x), f"{measured:.2f}", f"{expected:.2f}", f"{measured / expected:.2f}"]
            for x, measured, expected in points
        ]

    return "\n".join(
        [
            "## Scaling (`python benches/scaling.py --write`)\n",
            f"{machine_line()} Cost of all head effects of one prompt in plain forward passes (last-position logits), "
            "GPT-2-small width.\n",
            "![measured cost and law](scaling.png)\n",
            table(["T, 12 layers", "measured", "law", "ratio"], rows(lengths)),
            table(["layers, T = 64", "measured", "law", "ratio"], rows(depths)),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="tables into benches/RESULTS.md, picture beside it")
    options = parser.parse_args()
    points = measure()
    print(report(*points))
    if options.write:
        write_section("scaling", report(*points))
        write_figure(draw(*points), PICTURE.with_suffix(".png"))


if __name__ == "__main__":
    main()
