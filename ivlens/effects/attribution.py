"""Attribution: the effect that a patch of each head would have if the score were linear in the head's output.

    `CIE_{l,h} ≈ ∂s/∂z_{l,h} · (mean_z_{l,h} - z_{l,h})`,  and `∂s/∂z_{l,h} · mean_z_{l,h}` where the mean is added

It takes one forward and one backward pass for all heads, however deep the model. The estimate misses saturation (a
probability near 0 or 1 has almost no gradient) and what later layers do with a change as large as a patch. Compare it
with the exact engine on a few prompts before relying on it.

Source: attribution patching, arXiv 2310.10348, for a whole head output at one position; docs/method.md, 4 Causal
indirect effects.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.effects.chunks import prompt_bytes
from ivlens.effects.request import EffectRequest, Measured
from ivlens.forward.hooks import model_lock, patched_heads
from ivlens.forward.inputs import forced, row_slices
from ivlens.forward.unembedding import full_logits
from ivlens.models.boot import TransformerBridge


def measure(model: TransformerBridge, request: EffectRequest) -> Measured:
    """Estimated CIE of each asked head on each prompt, and the scores of the prompts.

    Progress is counted in prompts.
    """
    found = Measured.nothing_yet(model, request, "attribution")
    n_prompts = len(request.tokens)
    # the backward pass needs the activations of all blocks, not of one at a time
    n_rows = max(1, request.max_memory // (prompt_bytes(model, request) * model.cfg.n_layers))
    found.record["chunk"] = {"n_prompts": n_rows}
    for rows in row_slices(n_prompts, n_rows):
        found.base[rows], slopes, z = _slopes(model, request, rows)
        # how much a patch changes the head's output; with "add" that is the mean itself
        mean = request.mean_z[list(request.layers)].to(z)
        change = mean - z if request.mode == "replace" else mean
        estimate = (slopes * change)[:, :, list(request.heads)].sum(-1)
        found.enter(rows, request.layers, request.heads, estimate)
        request.progress(rows.stop, n_prompts)
    return found


def _slopes(
    model: TransformerBridge, request: EffectRequest, rows: slice
) -> tuple[
    Float[Tensor, " batch"],
    Float[Tensor, "batch layers n_heads d_head"],
    Float[Tensor, "batch layers n_heads d_head"],
]:
    """Scores, their gradients by the head outputs of the asked layers at the last prompt token, and these outputs."""
    inputs = forced(request.tokens[rows], request.attention_mask[rows], request.answers[rows])
    outputs: dict[int, Tensor] = {}
    nudges: dict[int, Tensor] = {}

    def nudged(z: Tensor, layer: int) -> Tensor:
        if layer in outputs:  # attention and a mixer of one layer: each sees zeros where the other one's heads are
            outputs[layer] = outputs[layer] + z[:, inputs.last].detach()
        else:
            outputs[layer] = z[:, inputs.last].detach()
        # adding a zero changes nothing, and its gradient is that of the head's output: no weight needs a gradient
        nudges.setdefault(layer, torch.zeros_like(outputs[layer], requires_grad=True))
        z = z.clone()
        z[:, inputs.last] += nudges[layer]
        return z

    layers = request.layers
    with (
        torch.inference_mode(False),  # the caller may be inside `inference_mode` or `no_grad`
        torch.enable_grad(),
        model_lock(model),
        patched_heads(model, nudged, layers, mixers=request.is_wide),
        full_logits(model),
    ):
        logits = model(
            inputs.tokens,
            attention_mask=inputs.attention_mask,
            use_cache=False,
            logits_to_keep=inputs.n_answer,
        )
        scores = request.scores(logits, rows)
        # rows do not influence each other, so the gradient of the sum holds the gradient of each row
        slopes = torch.autograd.grad(scores.sum(), [nudges[layer] for layer in layers])
    device, dtype = request.tokens.device, torch.promote_types(request.mean_z.dtype, torch.float32)
    slopes, z = (torch.stack([part.to(device, dtype) for part in parts], 1) for parts in (slopes, outputs.values()))
    return scores.detach(), slopes, z
