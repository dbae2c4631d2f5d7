"""Attention of copies to the tokens before them and to themselves alone, without a mask over all the other copies.

In one sequence of copies a mask hides from each copy all others, so that scores are computed, masked and exponentiated
that count for nothing: as many as there are copies, for each copy. Here the block's attention runs as Hugging Face
wrote it, up to its attention function, which is this one:

    softmax([q K_shared^T | q K_own^T] * scaling + mask) [V_shared ; V_own]

`K_shared` are the keys before the last prompt token, the same for all copies of a prompt, and `K_own` the `answer_len`
keys of one copy. Families whose attention does not call such a function, or gives it what is not known here, keep the
mask over all copies.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface

from ivlens.effects.request import Unsuitable
from ivlens.models.attention import Attention, attention_of
from ivlens.models.boot import TransformerBridge

_NAME = "ivlens_copies"

# what a family may tell its attention function, and which is no part of what it computes for copies: windows are in the
# mask, dropout is 0 in eval mode, and the others are for kernels of other kinds
_WITHOUT_EFFECT = frozenset(
    "dropout sliding_window position_ids cache_position use_cache output_attentions output_hidden_states output_router_"
    "logits is_causal position_embeddings past_key_values logits_to_keep return_dict token_type_ids".split()
)
OUTSIDE = "its attention function is called outside of a measurement"


@dataclass
class _Shared:
    """The keys and values that all copies of a prompt see, and whether an attention has read them."""

    keys: Float[Tensor, "batch n_key_heads shared d_head"]
    values: Float[Tensor, "batch n_key_heads shared d_value"]
    n_own: int
    was_read: bool = False


_SHARED: ContextVar[_Shared | None] = ContextVar("ivlens_shared_keys", default=None)


@contextmanager
def own_attention(model: TransformerBridge, layer: int, keys: Tensor, values: Tensor, n_own: int) -> Iterator[None]:
    """In the body, the attention of one block is that of copies with `n_own` tokens each, which see `keys` as well.

    Raises:
        Unsuitable: the family's attention takes no other attention function, or tells it what is not known here.
    """
    found, config = with_function(model, layer, _NAME)
    original = found.module
    # what the bridge has wrapped calculates attention itself, unless it is given the plain module's forward
    attention = model.blocks[layer].attn if found.is_wrapped else None
    shared, before = _Shared(keys, values, n_own), original.config
    token = _SHARED.set(shared)
    try:
        # through `__dict__`: the bridge's own setattr would hand the name on to the module that it wraps
        if attention is not None:
            attention.__dict__["forward"] = original.forward
        original.config = config
        yield
    finally:
        original.config = before
        if attention is not None:
            attention.__dict__.pop("forward", None)
        _SHARED.reset(token)
    if not shared.was_read:
        raise Unsuitable("its attention did not call the attention function that it was given")


def with_function(model: TransformerBridge, layer: int, name: str) -> tuple[Attention, Any]:
    """Attention of a block, and the configuration with which it calls the attention function of this name.

    The configuration is a new one: other models, which run in other threads, may have the same object.

    Raises:
        Unsuitable: the family's attention takes no other attention function.
    """
    found = attention_of(model.blocks[layer])
    config: Any = None if found is None else getattr(found.module, "config", None)
    if found is None or getattr(config, "_attn_implementation", None) != "eager":
        raise Unsuitable("its attention takes no other attention function")
    config = copy.copy(config)
    config._attn_implementation_internal = name  # the property would change sub-configurations, which are shared
    return found, config


def check_told(mask: Tensor | None, shape: tuple[int, int], others: Mapping[str, Any]) -> Tensor:
    """The mask that an attention function is told, which must be of this shape and hold numbers to add.

    Args:
        others: What it is told under names of which it has no parameters.

    Raises:
        Unsuitable: another mask, or something that the numbers may depend on.
    """
    unknown = [name for name, told in others.items() if told is not None and name not in _WITHOUT_EFFECT]
    if unknown or mask is None or not mask.is_floating_point():
        raise Unsuitable(f"its attention function is told {', '.join(unknown) or 'no mask'}, which is not known here")
    if mask.shape[-2:] != shape:
        raise Unsuitable(f"its attention is told a mask of shape {tuple(mask.shape)}")
    return mask


def _attend(
    module: nn.Module,
    query: Float[Tensor, "batch n_heads copied d_head"],
    key: Float[Tensor, "batch n_key_heads copied d_head"],
    value: Float[Tensor, "batch n_key_heads copied d_value"],
    attention_mask: Float[Tensor, "batch 1 own seen"] | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " n_heads"] | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "batch copied n_heads d_value"], None]:
    """What Hugging Face's eager attention gives for each copy (see the formula above)."""
    shared = _SHARED.get()
    if shared is None:
        raise Unsuitable(OUTSIDE)
    mask = check_told(attention_mask, (shared.n_own, shared.keys.shape[-2] + shared.n_own), others)
    shared.was_read = True
    batch, n_heads, n_copied, d_head = query.shape
    n_keys, n_own = key.shape[1], shared.n_own
    # heads that share keys stand side by side, as rows of one product; so keys are not repeated
    grouped = query.reshape(batch, n_keys, -1, d_head) * (d_head**-0.5 if scaling is None else scaling)
    before = (grouped @ shared.keys.mT).unflatten(2, (-1, n_copied // n_own, n_own))
    copies, keys, values = (
        each.unflatten(-2, (-1, n_own)) for each in (grouped.unflatten(2, (-1, n_copied)), key, value)
    )
    scores = torch.cat(
        [before, products(copies, keys.unsqueeze(2))], -1
    )  # [batch, n_key_heads, group, copies, own, seen]
    del before
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores += mask[:, :, None, None]
    if s_aux is not None:
        sinks = s_aux.reshape(1, n_keys, -1, 1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks.to(scores)], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    del scores  # the largest tensors here
    n_before = shared.keys.shape[2]
    found = weights[..., :n_before].flatten(2, 4) @ shared.values
    of_own = weights[..., n_before : n_before + n_own]
    values = values.unsqueeze(2)
    found = found + (of_own * values if n_own == 1 else of_own @ values).flatten(2, 4)
    return found.reshape(batch, n_heads, n_copied, -1).transpose(1, 2), None


def products(queries: Float[Tensor, "*rows own d_head"], keys: Float[Tensor, "*same_rows own d_head"]) -> Tensor:
    """`q . k` of each query with each key of its own copy."""
    if queries.shape[-2] == 1:  # as one product of numbers: a matrix product for each copy takes far longer
        return (queries * keys).sum(-1, keepdim=True)
    return queries @ keys.mT


AttentionInterface.register(_NAME, _attend)
