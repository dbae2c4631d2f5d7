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

_MOST_ROWS = 64


def measure(
    model: TransformerBridge, request: EffectRequest
) -> tuple[Float[Tensor, "batch n_layers n_heads"], Float[Tensor, " batch"]]:
    """CIE of each asked head on each prompt (NaN for the others), and the scores of the unpatched prompts.

    Progress is counted in passes.
    """
    shape = (len(request.tokens), model.cfg.n_layers, model.cfg.n_heads)
    dtype = torch.promote_types(request.mean_z.dtype, torch.float32)
    cie = torch.full(shape, torch.nan, device=request.tokens.device, dtype=dtype)
    base = cie[:, 0, 0].clone()
    n_rows = max(1, min(_MOST_ROWS, request.max_memory // _row_bytes(model, request)))
    done, total = 0, -(-shape[0] // n_rows) * len(request.layers) * len(request.heads)
    for rows in row_slices(shape[0], n_rows):
        inputs = forced(request.tokens[rows], request.attention_mask[rows], request.answers[rows])
        with model_lock(model):
            base[rows] = _score(model, inputs, request, rows)
            for layer in request.layers:
                for head in request.heads:
                    with patched_heads(model, _patch(request, head, inputs.last), [layer]):
                        cie[rows, layer, head] = _score(model, inputs, request, rows) - base[rows]
                    done += 1
                    request.progress(done, total)
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


def _row_bytes(model: TransformerBridge, request: EffectRequest) -> int:
    """Generous estimate of one prompt's activations in one layer, plus its logits."""
    cfg, n_columns = model.cfg, request.tokens.shape[1] + request.answers.shape[1]
    d_mlp = getattr(cfg, "d_mlp", None) or 4 * cfg.d_model
    numbers = n_columns * (8 * cfg.d_model + 4 * cfg.n_heads * cfg.d_head + 4 * d_mlp)
    numbers += 3 * cfg.n_heads * n_columns**2 + 3 * cfg.d_vocab
    return 4 * numbers
