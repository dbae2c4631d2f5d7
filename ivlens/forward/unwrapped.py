"""Runs blocks as Hugging Face wrote them, without the hook points of the bridge.

A hook point costs a call, and some of the bridge's parts calculate twice to have something to show: its norms make
their scale for a hook, and then call the family's own norm. A pass in which nobody looks inside needs neither.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from ivlens.models.boot import TransformerBridge


@contextmanager
def unwrapped(model: TransformerBridge, layers: Sequence[int]) -> Iterator[dict[int, nn.Module]]:
    """In the body, the parts of these blocks are those of the plain model; gives the plain blocks by layer.

    The blocks themselves stay wrapped where the model calls them; call the plain one instead. Weights are the bridge's
    own: it is the same modules that are called, without their wrappers.
    """
    found = {layer: _original(model.blocks[layer]) for layer in layers}
    plain = {layer: block for layer, block in found.items() if block is not None}
    places = [place for block in plain.values() for place in _wrapped_parts(block)]
    try:
        for parent, name, _, original in places:
            parent._modules[name] = original
        yield plain
    finally:
        for parent, name, wrapper, _ in places:
            parent._modules[name] = wrapper


def _original(module: Any) -> nn.Module | None:
    """What a part of the bridge wraps; None for a module that is no wrapper."""
    return getattr(module, "original_component", None)


def _wrapped_parts(block: nn.Module) -> list[tuple[nn.Module, str, nn.Module, nn.Module]]:
    """Every wrapper inside a plain block: the module that has it, its name there, the wrapper, and what it wraps."""
    found, left = [], [block]
    while left:
        parent = left.pop()
        for name, child in parent._modules.items():
            if child is None:
                continue
            original = _original(child)
            if original is not None:
                found.append((parent, name, child, original))
            left.append(child if original is None else original)
    return found
