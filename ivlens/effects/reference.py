"""The reference engine: one hooked forward pass for every head.

It is slow and has no tricks that could be wrong, so the other engines are checked against it.
"""

from jaxtyping import Float, Int
from torch import Tensor

from ivlens.effects.chunks import prompt_bytes
from ivlens.effects.request import EffectRequest, Measured
from ivlens.forward.hooks import model_lock, patched_heads
from ivlens.forward.inputs import Inputs, forced, row_slices
from ivlens.forward.sharing import give_way
from ivlens.models.boot import TransformerBridge

_MOST_ROWS = 64


def measure(model: TransformerBridge, request: EffectRequest) -> Measured:
    """CIE of each asked head on each prompt, and the scores of the unpatched prompts.

    Progress is counted in passes.
    """
    found = Measured.nothing_yet(model, request, "reference")
    n_prompts = len(request.tokens)
    n_rows = max(1, min(_MOST_ROWS, request.max_memory // prompt_bytes(model, request)))
    found.record["chunk"] = {"n_prompts": n_rows}
    done, total = 0, -(-n_prompts // n_rows) * len(request.layers) * len(request.heads)
    for rows in row_slices(n_prompts, n_rows):
        inputs = _inputs(request, rows)
        with model_lock(model):
            found.base[rows] = request.scores(inputs.logits(model), rows)
            for layer in request.layers:
                for head in request.heads:
                    if not request.exists(layer, head):
                        continue
                    patched = request.scores(_patched(model, request, inputs, layer, head), rows)
                    found.cie[rows, layer, head] = patched - found.base[rows]
                    done += 1
                    request.progress(done, total)
                give_way(model)  # between two layers, where no hook is on the model
    return found


def patched_logits(
    model: TransformerBridge, request: EffectRequest, prompts: Int[Tensor, " rows"], layer: int, head: int
) -> Float[Tensor, "rows answer_len d_vocab"]:
    """Logits of some prompts with one head patched."""
    with model_lock(model):
        return _patched(model, request, _inputs(request, prompts), layer, head)


def _inputs(request: EffectRequest, rows: slice | Int[Tensor, " rows"]) -> Inputs:
    """The inputs of a pass over some of the request's prompts."""
    return forced(request.tokens[rows], request.attention_mask[rows], request.answers[rows])


def _patched(
    model: TransformerBridge, request: EffectRequest, inputs: Inputs, layer: int, head: int
) -> Float[Tensor, "rows answer_len d_vocab"]:
    """Logits of a pass with one head patched. The caller holds the model's lock."""

    def edit(z: Tensor, layer: int) -> Tensor:
        z = z.clone()  # in place, the edit would reach whatever else holds this tensor
        z[:, inputs.last, head] = request.patched(z[:, inputs.last, head], request.mean_z[layer, head])
        return z

    with patched_heads(model, edit, [layer], mixers=request.is_wide):
        return inputs.logits(model)
