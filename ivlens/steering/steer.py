"""`steer`: runs a live model with an Instruction Vector added to its residual stream."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

from ivlens.common.arguments import checked
from ivlens.forward.hooks import SITES, Site, check_layers, check_site
from ivlens.forward.writes import added_to_stream
from ivlens.models.boot import TransformerBridge
from ivlens.steering.edits import HeadOutputs, addition, replacement
from ivlens.steering.positions import Chosen, check_positions
from ivlens.steering.prompt_ends import followed
from ivlens.steering.summary import Setting
from ivlens.vectors.vector import InstructionVector, check_belongs

Mode = Literal["vector", "heads"]


@contextmanager
@checked
def steer(
    model: TransformerBridge,
    iv: InstructionVector,
    *,
    at: Setting | None = None,
    layer: int | None = None,
    alpha: float | int | None = None,
    site: Site | None = None,
    positions: Chosen = "prompt",
    mode: Mode = "vector",
) -> Iterator[None]:
    """Run the body with the vector added to the residual stream: `h_layer <- h_layer + alpha * theta`.

    Generations: the vector is added in `generate`, `hf_generate`, `generate_stream` and Hugging Face's own `generate`.
    The prompt is all tokens that the call was given. It does not matter whether these tokens are read at once or in
    chunks, whether they continue a cache, or which model drafts tokens. Ways of decoding that cannot be followed are
    refused before a token is written (a table is in `docs/guide/production.md`). Batches are padded on the left.

    Single passes: outside a generation the prompt is the whole row, padded on either side (pass the attention mask).
    Tokens that follow a cache count as generated.

    Contexts on one model nest, and their vectors add up. A context belongs to the thread or asyncio task that opened it
    and to the tasks that are started inside. Another thread waits until the context is left; another task of the same
    thread gets an error, and so does a pass that another thread runs inside the context.

    Example:
        >>> import ivlens
        >>> from ivlens.forward.completions import complete
        >>> model, task = ivlens.load_model("pocket"), ivlens.load_task("antonym")
        >>> iv = ivlens.InstructionVector.from_effects(ivlens.head_effects(model, task, n_prompts=8), k=10)
        >>> with ivlens.steer(model, iv, layer=1, alpha=4, site="attn_out"):  # or at=evaluation.best
        ...     complete(model, ["Input: big\\nOutput:"], max_new_tokens=1)  # or model.generate
        ['small']

    Args:
        at: Layer, strength and site together, such as `Evaluation.best`; instead, each can be given alone.
        layer: The layer at which the vector is added; not for `mode="heads"`, whose heads have layers of their own.
        alpha: Strength, 1 by default; a negative one subtracts. With `mode="heads"` it is the share of the way from a
            head's output to its mean.
        site: `resid_post` (output of the block, the default) or `attn_out` (what attention adds); not used by
            `mode="heads"`.
        positions: `prompt` (last prompt token, once), `every` (each generated token as well), `all` (every token of
            prompt and answer; those that a cache already holds stay as they are), a slice of the prompt's tokens
            (`slice(-3, None)` is its last three; padding is not counted), or a mask `[batch, pos]` of the prompt's
            columns, padding included.
        mode: `vector`, or `heads`: replace the outputs of the vector's heads by their means instead of adding the sum.

    Raises:
        ValueError: a vector of another model (see `InstructionVector.for_model`); no such layer, site, positions or
            mode; a layer missing, or given with `mode="heads"`; `at` together with a part of it; `mode="heads"` for a
            vector without heads (one computed from others). In the body: a way of decoding, a padding or a cache that
            cannot be followed.
        RuntimeError: the body ran no forward pass, or ran passes from two threads; another task of this thread has a
            context open.

    Source: docs/method.md, 6 Intervention and its controls.
    """
    check_belongs(iv, model)
    layer, strength, place = _place(at, layer, alpha, site)
    _check_options(iv, strength, positions, mode)
    if mode == "heads":
        if layer is not None:
            raise ValueError(
                f'steer got layer={layer} with mode="heads", whose heads have their own layers; leave layer out.'
            )
        means = HeadOutputs.of(iv)
        with (
            followed(model) as ends,
            means.patching(model, replacement(means, strength, lambda: ends.columns(positions))),
        ):
            yield
        return
    if layer is None:
        raise ValueError(
            'steer(mode="vector") got no layer, expected one; sweep_settings and evaluate_intervention find a good one.'
        )
    # a wrong layer is refused at once: to open the contexts may take long, if another thread has the model
    check_layers(model, [layer])
    check_site(place)
    # `ends` is asked during each pass, since where the prompt ends is known only then
    with (
        followed(model) as ends,
        added_to_stream(
            model,
            layer,
            place,
            # strength 0 gives the bits of the plain model, also for a vector that is not finite
            addition(strength * iv.theta, lambda: ends.columns(positions)) if strength else torch.clone,
        ),
    ):
        yield


def _place(
    at: Setting | None, layer: int | None, alpha: float | int | None, site: str | None
) -> tuple[int | None, float | int, str]:
    """Layer, strength and site, from `at` or from those that were given alone."""
    if at is None:
        return layer, 1.0 if alpha is None else alpha, SITES[0] if site is None else site
    # None, not the defaults, stands for "not given": so that `at` beside an explicit default is refused as well
    given = [name for name, value in (("layer", layer), ("alpha", alpha), ("site", site)) if value is not None]
    if given:
        raise ValueError(f"steer got at={tuple(at)} and {', '.join(given)}, expected one of the two; leave one out.")
    return Setting(*at)


def _check_options(iv: InstructionVector, alpha: float | int, positions: Chosen, mode: str) -> None:
    """Refuse values of the right type that make no sense."""
    if not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha}, expected a finite number; 0.5 to 8 are usual.")
    check_positions(positions)
    if mode not in get_args(Mode):
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(get_args(Mode))}.")
    if mode == "heads" and not iv.heads:
        raise ValueError(f'vector {iv.task!r} has no heads, so mode="heads" cannot replace any; use mode="vector".')
