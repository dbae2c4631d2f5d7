"""How logits are made from the last residual stream: in float32 for half-precision models, and at fewer positions."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ivlens.common.precision import HALF
from ivlens.models.boot import TransformerBridge

_NUMBERS_AT_ONCE = 2**24  # weights of the unembedding that are in float32 at one time (64 MB)


@contextmanager
def full_logits(model: TransformerBridge) -> Iterator[None]:
    """In the body, a model in half precision unembeds its last residual stream in float32.

    A logit of 20 is rounded to steps of 0.125 in bfloat16: more than most heads change it. What the family does to the
    logits afterwards (a scale, a softcap) is then done in float32 as well. Models in full precision are left as they
    are, and so are those whose unembedding is no plain linear layer (adapted, quantised, offloaded).
    """
    linear: Any = getattr(model.unembed, "original_component", None)
    # the exact type: a subclass, as of bitsandbytes, holds weights that cannot be read as they are
    is_plain = type(linear) is nn.Linear and linear.weight.dtype in HALF and linear.weight.device.type != "meta"
    # a `forward` of its own: accelerate's, which fetches offloaded weights, or that of an outer `full_logits`
    if not is_plain or "forward" in linear.__dict__:
        yield
        return
    linear.__dict__["forward"] = lambda stream: _in_full(stream, linear)
    try:
        yield
    finally:
        del linear.__dict__["forward"]


def _in_full(stream: Float[Tensor, "*rows d_model"], linear: nn.Linear) -> Float[Tensor, "*rows d_vocab"]:
    """What the linear layer gives, computed in float32, whatever autocast says."""
    bias = None if linear.bias is None else linear.bias.float()
    with torch.autocast(stream.device.type, enabled=False):
        # some rows of the matrix at a time: all of it in float32 would be the largest tensor there is
        parts = linear.weight.split(max(1, _NUMBERS_AT_ONCE // linear.in_features))
        logits = torch.cat([nn.functional.linear(stream.float(), part.float()) for part in parts], -1)
        return logits if bias is None else logits + bias


@contextmanager
def last_logits_only(model: TransformerBridge) -> Iterator[None]:
    """In the body, only the last position is unembedded: the logits of all positions would be the largest tensor."""
    handle = model.unembed.register_forward_pre_hook(lambda module, given: (given[0][:, -1:], *given[1:]))
    try:
        yield
    finally:
        handle.remove()
