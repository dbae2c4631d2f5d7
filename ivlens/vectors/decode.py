"""The tokens that a vector points to: those of largest logit if the residual stream holds only the vector."""

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.common.checks import check_count
from ivlens.forward.unembedding import full_logits
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.tokens import token_text


def top_tokens(theta: Float[Tensor, " d_model"], model: TransformerBridge, k: int) -> list[tuple[str, float]]:
    """The `k` tokens of largest logit, with their logits, where the residual stream is nothing but `theta`.

    Raises:
        ValueError: the model has no tokenizer.
    """
    check_count("k", k, 1)
    if model.tokenizer is None:
        raise ValueError("decode got a model without a tokenizer; give load_model one (tokenizer=...).")
    parameter = next(model.parameters())
    with torch.no_grad(), full_logits(model):  # float32 logits, also of a model in half precision
        stream = theta.to(parameter.device, parameter.dtype)[None, None]
        logits = model.unembed(model.ln_final(stream))[0, 0].float()
    top = logits.topk(min(k, len(logits)))
    return [
        (token_text(model.tokenizer, token), value)
        for token, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
