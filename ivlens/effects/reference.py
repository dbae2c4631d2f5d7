"""The reference engine: one hooked forward pass for every head. Slow, and obviously right."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens._inputs import Inputs, forced, row_slices
from ivlens.effects.request import EffectRequest
from ivlens.hooks import model_lock, patched_heads
from ivlens.models import TransformerBridge
from ivlens.scoring import score_answers


def measure(
    model: TransformerBridge, request: EffectRequest
) -> tuple[Float[Tensor, "batch n_layers n_heads"], Float[Tensor, " batch"]]:
    """CIE of each asked head on each prompt (NaN for the others), and the scores of the unpatched prompts."""
    shape = (len(request.tokens), model.cfg.n_layers, model.cfg.n_heads)
    dtype = torch.promote_types(request.mean_z.dtype, torch.float32)
    cie = torch.full(shape, torch.nan, device=request.tokens.device, dtype=dtype)
    base = cie[:, 0, 0].clone()
    for rows in row_slices(shape[0], request.n_rows):
        inputs = forced(request.tokens[rows], request.attention_mask[rows], request.answers[rows])
        with model_lock(model):
            base[rows] = _score(model, inputs, request, rows)
            for layer in request.layers:
                for head in request.heads:
                    with patched_heads(model, _patch(request, head, inputs.last), [layer]):
                        cie[rows, layer, head] = _score(model, inputs, request, rows) - base[rows]
                    request.on_head()
    return cie, base


def _score(model: TransformerBridge, inputs: Inputs, request: EffectRequest, rows: slice) -> Float[Tensor, " batch"]:
    foils = None if request.foils is None else request.foils[rows]
    return score_answers(request.score, inputs.logits(model), request.answers[rows], foils)


def _patch(request: EffectRequest, head: int, last: int) -> Callable[[Tensor, int], Tensor]:
    def edit(z: Tensor, layer: int) -> Tensor:
        z = z.clone()
        if request.mode == "replace":
            z[:, last, head] = request.mean_z[layer, head]
        else:
            z[:, last, head] += request.mean_z[layer, head]
        return z

    return edit
