"""Corrects a wrapped model where the attention of transformer_lens differs from that of the model's family.

`mend` is applied only to a model that the self-check refuses; the model is then checked again. `bound_masks` is
applied to every model, and only prevents NaN.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ivlens.common.precision import HALF


def mend(model: nn.Module) -> None:
    """Correct the causal mask and the dtype of rotated queries and keys in every block, in place."""
    dtype = next(model.parameters()).dtype
    for block in getattr(model, "blocks", ()):
        attention = getattr(block, "attn", None)
        apply = getattr(attention, "_apply_reconstruct_attention_mask", None)
        if apply is not None:
            # set on this one module, because other families share its class
            object.__setattr__(attention, "_apply_reconstruct_attention_mask", partial(_with_causal_mask, apply))
        if attention is not None and dtype in HALF:
            for name, point in attention.named_children():
                if name.endswith(("rot_q", "rot_k")):  # the hook points after the rotation of queries and keys
                    object.__setattr__(point, "forward", partial(_in_dtype, dtype))


def bound_masks(model: nn.Module) -> None:
    """Keep masked attention scores finite in every block, in place, where the softmax uses another dtype.

    A query at a padding token sees no key: all its scores are the lowest finite number, and the softmax gives an
    average. In float64, and under autocast, this number is minus infinity in the softmax, which then gives NaN, and NaN
    spreads to the real tokens of the row.
    """
    for block in getattr(model, "blocks", ()):
        attention = getattr(block, "attn", None)
        apply = getattr(attention, "_apply_reconstruct_attention_mask", None)
        if apply is not None:
            object.__setattr__(attention, "_apply_reconstruct_attention_mask", partial(_bounded, apply))


def _bounded(apply: Callable[..., Tensor], *args: Any, **given: Any) -> Tensor:
    """The masked scores of `apply`, bounded from below."""
    scores = apply(*args, **given)
    if scores.dtype == torch.float64 or torch.is_autocast_enabled(scores.device.type):
        # half of the lowest number, so that adding something to it stays finite
        kind = torch.float32 if scores.dtype == torch.float64 else scores.dtype
        scores = scores.clamp(min=torch.finfo(kind).min / 2)
    return scores


def _with_causal_mask(apply: Callable[..., Tensor], **given: Any) -> Tensor:
    """The masked scores of `apply`, with the causal mask added where the given mask covers padding alone.

    GPT-1 gives its blocks a mask for padding only, with one row for all queries, and applies the causal mask inside
    attention. transformer_lens takes any mask of four dimensions as complete, so that tokens would see later ones.
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
    """Rotated queries or keys in the model's dtype: OLMo's rotary tables turn half precision into float32."""
    return rotated.to(dtype)
