"""Finds attention in the blocks of a wrapped model: which layers have heads, and where the heads' outputs meet.

Hybrid models have attention in some layers only. The others mix tokens by a recurrence or a convolution, and some have
an MLP alone. Such a layer has no attention heads, so that nothing is measured in it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn


@dataclass(frozen=True, eq=False)
class Attention:
    """Attention of one block, as modules of the plain model.

    Attributes:
        module: Attention itself.
        projection: Its output projection, whose input is the outputs of all heads side by side.
        is_wrapped: Whether the bridge has hook points for its heads. It has none where a family calls all its mixers by
            one name (Nemotron-H), and wrong ones for latent attention; then hooks go on these modules.
    """

    module: nn.Module
    projection: nn.Module
    is_wrapped: bool


_MIXERS = ("linear_attn", "mixer", "mamba", "conv")  # what TransformerLens calls parts that mix tokens without heads

# found by looking through all modules of a model, so done once; numbers only, which keep no model alive
_LAYERS: WeakKeyDictionary[Any, tuple[int, ...]] = WeakKeyDictionary()


def attention_layers(model: Any) -> tuple[int, ...]:
    """The layers that have attention heads, in ascending order: all of them, except in hybrid models."""
    if model not in _LAYERS:
        _LAYERS[model] = tuple(layer for layer, block in enumerate(model.blocks) if attention_of(block) is not None)
    return _LAYERS[model]


def has_every_head(model: Any) -> bool:
    """Whether every layer has attention heads."""
    return len(attention_layers(model)) == model.cfg.n_layers


def all_heads(model: Any) -> list[tuple[int, int]]:
    """Every attention head of the model, as `(layer, head)`."""
    return [(layer, head) for layer in attention_layers(model) for head in range(model.cfg.n_heads)]


def present_sites(model: Any, layers: Iterable[int], sites: Sequence[str]) -> list[tuple[int, str]]:
    """All pairs of these layers and sites, without `attn_out` in layers that have no attention.

    Raises:
        ValueError: no pair is left.
    """
    chosen = [*layers]
    places = [(layer, site) for layer in chosen for site in sites]
    places = [(layer, site) for layer, site in places if site != "attn_out" or layer in attention_layers(model)]
    if not places:
        raise ValueError(f"{without_heads(model, chosen[0])} Site 'resid_post' is in every layer.")
    return places


def attention_of(block: Any) -> Attention | None:
    """Attention of a wrapped block; None where the block has none."""
    wrapped = getattr(block, "attn", None)
    if wrapped is not None:
        projection = getattr(wrapped, "o", wrapped)
        # latent attention: the bridge takes its heads to be as wide as keys, and values may be narrower
        is_latent = hasattr(_plain(wrapped), "kv_lora_rank")
        return Attention(_plain(wrapped), _plain(projection), is_wrapped=not is_latent)
    for module in getattr(block, "original_component", block).modules():
        # by what modules hold, since families call them by many names: gated delta nets have these projections too,
        # and a decay (`A_log`) that attention does not have
        if {"q_proj", "k_proj", "v_proj", "o_proj"} <= module._modules.keys() and not hasattr(module, "A_log"):
            return Attention(module, _plain(module.o_proj), is_wrapped=False)
    return None


def mixer_name(block: Any) -> str:
    """What a block without attention mixes tokens by, as its class is called, or the parts it has."""
    parts = {name: part for name, part in block.named_children() if not name.startswith(("_", "hook"))}
    kinds = [type(_plain(part)).__name__ for name, part in parts.items() if name in _MIXERS]
    return kinds[0] if kinds else ", ".join([*parts][:4]) or type(_plain(block)).__name__


def without_heads(model: Any, layer: int) -> str:
    """The message for a layer that has no attention, and so no heads."""
    layers = attention_layers(model)
    some = ", ".join(map(str, layers[:8])) + (", ..." if len(layers) > 8 else "")
    return (
        f"layer {layer} has no attention heads (it has {mixer_name(model.blocks[layer])}), expected a layer that has; "
        f"here that is {some}."
    )


def _plain(module: Any) -> Any:
    """The module of the plain model that the bridge has wrapped; the module itself where it is not wrapped."""
    return getattr(module, "original_component", None) or module
