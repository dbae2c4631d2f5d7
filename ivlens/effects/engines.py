"""`causal_indirect_effect`, and the table of engines that can compute it."""

import logging
from collections.abc import Callable, Iterable
from typing import SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.common.arguments import checked
from ivlens.effects import attribution, cached, exact, reference
from ivlens.effects.request import EffectRequest, Measured, PatchOptions, Unsuitable, make_request
from ivlens.models.boot import TransformerBridge

Engine = Callable[[TransformerBridge, EffectRequest], Measured]

METHODS: dict[str, Engine] = {
    "exact": exact.measure,
    "cached": cached.measure,
    "reference": reference.measure,
    "attribution": attribution.measure,
}

# the engine that takes over where one does not suit a model: slower, and closer to a plain hooked pass
_SLOWER = {"exact": "cached", "cached": "reference"}

_log = logging.getLogger("ivlens")


def find_engine(method: str) -> Engine:
    """The engine of this name.

    Raises:
        ValueError: there is none of that name.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r:.60}, expected one of {', '.join(METHODS)}.")
    return METHODS[method]


def run_engine(model: TransformerBridge, request: EffectRequest, method: str) -> Measured:
    """Measure with the engine of that name, or with the next slower one that suits this model.

    Raises:
        ValueError: there is no engine of that name.
    """
    try:
        found = find_engine(method)(model, request)
        # heads that a layer does not have were patched in vain, where others of their numbers do exist
        found.cie[:, request.mean_z.isnan().any(-1).to(found.cie.device)] = torch.nan
        return found
    except Unsuitable as why:
        slower = _SLOWER[method]
        level = logging.DEBUG if why.known else logging.WARNING  # one warning for each reason, not one for each call
        _log.log(level, "%s: method %r cannot be used: %s; using %r.", model.cfg.architecture, method, why, slower)
    # outside the `except`, so that an error of the slower engine is not shown as caused by this one
    return run_engine(model, request, slower)


@checked
def causal_indirect_effect(
    model: TransformerBridge,
    tokens: Tensor,
    attention_mask: Tensor,
    answer_tokens: Tensor,
    mean_z: Tensor,
    *,
    foil_tokens: Tensor | None = None,
    mode: str = "replace",
    layers: Iterable[SupportsIndex] | None = None,
    heads: Iterable[SupportsIndex] | None = None,
    score: str = "prob",
    method: str = "exact",
    max_memory: int | str = "auto",
) -> Float[Tensor, "batch n_layers n_heads"]:
    """The effect on the answer's score of patching one head at the last prompt token, for each head alone.

        `CIE_{l,h}(p) = s(M(p | z_{l,h} := mean_z_{l,h})) - s(M(p))`

    Args:
        model: From `load_model`.
        tokens: `[batch, pos]`, corrupted prompts, padded on either side.
        attention_mask: `[batch, pos]`, 1 for tokens.
        answer_tokens: `[batch, answer_len]`, padded on the right with -100.
        mean_z: `[n_layers, n_heads, d_head]`, see `mean_head_outputs`.
        foil_tokens: `[batch]`, for `logit_diff`: the first answer token to compare with.
        mode: `replace` the head's output by the mean, or `add` the mean to it (as the follow-up's code does).
        layers: Layers to measure; None: all.
        heads: Heads to measure in each of these layers; None: all.
        score: `prob`: probability of the first answer token; `logprob`: log-probability (nats) of all answer tokens,
            teacher-forced; `logit_diff`: logit of the first answer token minus that of the foil (nats).
        method: `exact`: all heads for little more than one forward pass, see `ivlens.effects.exact`. Where a model's
            blocks do not allow it, `cached` takes over (the prompt is run once, its last token once for every head),
            then `reference` (one hooked forward pass for every head), with a warning in the log; all three give the
            same numbers. `attribution`: a first-order estimate from one gradient, see `ivlens.effects.attribution`.
        max_memory: Bytes of activations in a pass, which decide how many prompts and heads it takes; `auto`: a part of
            the memory that the machine has.

    Returns:
        In the unit of the score; NaN for heads that were not asked for.

    Raises:
        TypeError, ValueError: a model that `load_model` did not return; unusable tokens, mask, answers or foils;
            prompts too long for the model; `mean_z` of another shape or not finite; layers or heads that do not exist;
            an unknown mode, score or method.
        RuntimeError: inside a `steer` context, whose vector would be added to answer tokens here.

    Source: docs/method.md, 4 Causal indirect effects; arXiv 2310.15213, equations 3 and 4; arXiv 2406.12227.
    """
    find_engine(method)  # an unknown name is refused before the request is checked, which takes longer
    request = make_request(
        model,
        tokens,
        attention_mask,
        answer_tokens,
        mean_z,
        foil_tokens=foil_tokens,
        options=PatchOptions(mode, layers, heads, score, max_memory),
    )
    return run_engine(model, request, method).cie
