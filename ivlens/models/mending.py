"""What transformer_lens' attention does otherwise than some models, put right on one wrapped model.

`mend` is applied only to a model that the self-check refused without it, and the check decides again afterwards;
`bound_masks` to all, where it changes nothing but NaN.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ivlens.common.precision import HALF


def mend(model: nn.Module) -> None:
    """Change the attention of every block, in place, where it has the parts in question."""
    dtype = next(model.parameters()).dtype
    for block in getattr(model, "blocks", ()):
        attention = getattr(block, "attn", None)
        apply = getattr(attention, "_apply_reconstruct_attention_mask", None)
        if apply is not None:
            # as an attribute of this one module: the class serves all families
            object.__setattr__(attention, "_apply_reconstruct_attention_mask", partial(_with_causal_mask, apply))
        if attention is not None and dtype in HALF:
            for name, point in attention.named_children():
                if name.endswith(("rot_q", "rot_k")):  # what queries and keys pass after their rotation
                    object.__setattr__(point, "forward", partial(_in_dtype, dtype))


def bound_masks(model: nn.Module) -> None:
    """Keep what attention masks finite, in place, where a model computes in more or fewer digits than its softmax.

    A query of padding sees nothing. In float32 all its scores are the lowest number, and it gets some average; in
    float64, and under autocast, that number is minus infinity to the softmax: NaN, which padded rows hand on.
    """
    for block in getattr(model, "blocks", ()):
        attention = getattr(block, "attn", None)
        apply = getattr(attention, "_apply_reconstruct_attention_mask", None)
        if apply is not None:
            object.__setattr__(attention, "_apply_reconstruct_attention_mask", partial(_bounded, apply))


def _bounded(apply: Callable[..., Tensor], *args: Any, **given: Any) -> Tensor:
    scores = apply(*args, **given)
    if scores.dtype == torch.float64 or torch.is_autocast_enabled(scores.device.type):
        # half of it, so that adding to it stays finite
        kind = torch.float32 if scores.dtype == torch.float64 else scores.dtype
        scores = scores.clamp(min=torch.finfo(kind).min / 2)
    return scores


def _with_causal_mask(apply: Callable[..., Tensor], **given: Any) -> Tensor:
    """GPT-1 hands its blocks a mask of padding alone, one row for all queries, and hides the future inside attention.

    transformer_lens takes every mask of four dimensions for a whole one, and would let tokens see what follows them.
    """
    mask, scores = given["attention_mask"], given["attn_scores"]
    n_queries, n_keys = scores.shape[-2:]
    if mask is not None and mask.ndim == 4 and mask.shape[-2] == 1 < n_queries:
        seen = torch.ones(n_queries, n_keys, dtype=torch.bool, device=scores.device).tril(n_keys - n_queries)
        lowest = torch.finfo(scores.dtype).min
        if mask.dtype == torch.bool:
            mask = mask & seen
        else:
            mask = mask.to(scores.dtype).masked_fill(~seen, lowest)
        given["attention_mask"] = mask
    return apply(**given)


def _in_dtype(dtype: torch.dtype, rotated: Tensor) -> Tensor:
    """OLMo's rotary tables are float32 in a model of half precision; queries and keys go back to its precision."""
    return rotated.to(dtype)
