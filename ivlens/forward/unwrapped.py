"""Runs blocks as Hugging Face wrote them, without the hook points of the bridge.

A hook point costs a call, and some of the bridge's parts calculate twice to have something to show: its norms make
their scale for a hook, and then call the family's own norm. A pass in which nobody looks inside needs neither.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ivlens.models.boot import TransformerBridge


@contextmanager
def unwrapped(model: TransformerBridge, layers: Sequence[int]) -> Iterator[dict[int, nn.Module]]:
    """In the body, the parts of these blocks are those of the plain model; gives the plain blocks by layer.

    The blocks themselves stay wrapped where the model calls them; call the plain one instead. It is the same modules
    that are called, without their wrappers; see `parts_agree` for wrappers with weights of their own.
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


def parts_agree(model: TransformerBridge) -> bool:
    """Whether plain blocks give what wrapped ones give, where the bridge has cut a matrix of the family into several.

    The query matrix of GPT-2 is a part of a larger one. Wrapped blocks calculate with the part, plain blocks with the
    whole. They differ after an edit of one of the two, such as of `model.blocks[0].attn.W_Q` in a GPT-NeoX, and after
    `enable_compatibility_mode`. Each is asked about one random vector, which costs as much as a token in these layers.
    """
    blocks: Any = model.blocks
    plain = [block for block in map(_original, blocks) if block is not None]
    errors = [_difference(whole, parts) for block in plain for whole, parts in _cut_matrices(block)]
    return not errors or bool(torch.stack([error.to(errors[0].device) for error in errors]).max() <= 1)  # False for NaN


def _cut_matrices(block: nn.Module) -> Iterator[tuple[nn.Module | None, list[Any]]]:
    """Each matrix of a plain block that the bridge calculates with in parts, and these; None where it is not found."""
    plain = set(_plain_modules(block))
    for _, _, wrapper, original in _wrapped_parts(block):
        cut = [part for part in map(_original, wrapper._modules.values()) if part not in plain and _numbers(part)]
        if cut:
            n = sum(_numbers(part) for part in cut)
            inside = [_original(module) or module for module in original._modules.values()]
            yield next((module for module in inside if _numbers(module) == n), None), cut


def _numbers(module: Any) -> int:
    """How many numbers the weight of a module has; 0 for one without a weight."""
    weight = getattr(module, "weight", None)
    return weight.numel() if isinstance(weight, Tensor) else 0


def _difference(whole: nn.Module | None, parts: Sequence[Any]) -> Tensor:
    """How far what the whole matrix gives is from what its parts give, as a share of what counts as rounding."""
    weight = parts[0].weight
    if whole is None or weight.ndim != 2:
        return torch.tensor(torch.inf)
    draw = torch.Generator().manual_seed(0)
    vector = torch.randn(1, weight.shape[1], generator=draw).to(weight.device, weight.dtype)
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        # sorted, as families order the rows in ways of their own
        got = torch.cat([part(vector) for part in parts], -1).double().sort().values
        want = whole(vector).double().sort().values
    kind = torch.finfo(weight.dtype)
    return (got - want).abs().max() / (16 * kind.eps * want.abs().max().clamp(min=kind.tiny))  # all may be 0


def _original(module: Any) -> nn.Module | None:
    """What a part of the bridge wraps; None for a module that is no wrapper, or has been given a forward of its own."""
    return None if module is None or "forward" in module.__dict__ else getattr(module, "original_component", None)


def _plain_modules(block: nn.Module) -> Iterator[nn.Module]:
    """A plain block and all modules inside it, without wrappers."""
    yield block
    for child in block._modules.values():
        if child is not None:
            yield from _plain_modules(_original(child) or child)


def _wrapped_parts(block: nn.Module) -> list[tuple[nn.Module, str, nn.Module, nn.Module]]:
    """Every wrapper inside a plain block: the module that has it, its name there, the wrapper, and what it wraps."""
    return [
        (parent, name, child, original)
        for parent in _plain_modules(block)
        for name, child in parent._modules.items()
        if child is not None and (original := _original(child)) is not None
    ]
