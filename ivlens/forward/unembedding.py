"""From the last stream to logits: at fewer positions, and in float32 where the model is in half precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ivlens.common.precision import HALF
from ivlens.models.boot import TransformerBridge

_NUMBERS_AT_ONCE = 2**24


@contextmanager
def full_logits(model: TransformerBridge) -> Iterator[None]:
    """Passes in the body give the logits that float32 makes of the last stream, where a model is in half precision.

    A logit of 20 is rounded to steps of 0.125 in bfloat16: more than most heads change it. What the family does to the
    logits afterwards (a scale, a softcap) is done in float32 as well. Others, and those whose unembedding is no plain
    linear layer (adapted, quantised, offloaded), are left as they are.
    """
    linear: Any = getattr(model.unembed, "original_component", None)
    is_plain = type(linear) is nn.Linear and linear.weight.dtype in HALF and linear.weight.device.type != "meta"
    if not is_plain or "forward" in linear.__dict__:  # accelerate brings offloaded weights in there
        yield
        return
    linear.__dict__["forward"] = lambda stream: _in_full(stream, linear)
    try:
        yield
    finally:
        del linear.__dict__["forward"]


def _in_full(stream: Float[Tensor, "*rows d_model"], linear: nn.Linear) -> Float[Tensor, "*rows d_vocab"]:
    bias = None if linear.bias is None else linear.bias.float()
    with torch.autocast(stream.device.type, enabled=False):
        # some rows at a time: the whole matrix in float32 would be the largest tensor there is
        parts = linear.weight.split(max(1, _NUMBERS_AT_ONCE // linear.in_features))
        logits = torch.cat([nn.functional.linear(stream.float(), part.float()) for part in parts], -1)
        return logits if bias is None else logits + bias


@contextmanager
def last_logits_only(model: TransformerBridge) -> Iterator[None]:
    """Only the last position reaches the unembedding: logits of all would be by far the largest tensor."""
    handle = model.unembed.register_forward_pre_hook(lambda module, given: (given[0][:, -1:], *given[1:]))
    try:
        yield
    finally:
        handle.remove()
