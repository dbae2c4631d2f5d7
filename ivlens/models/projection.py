"""What attention's output projection does to each head, adapters included, as one matrix for each head."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ivlens.common.precision import FULL, rounding_share
from ivlens.models.boot import TransformerBridge

_SIZE = 10.0  # of random inputs: an adapter that depends on its input shows it


def is_plain(module: nn.Module) -> bool:
    """Whether a projection is its weight and nothing else: no adapter around it."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def head_matrices(model: TransformerBridge, layer: int) -> Float[Tensor, "n_heads d_head d_model"]:
    """`W_O` of every head of one layer, with the adapters that are on it.

    Raises:
        ValueError: an adapter that depends on its input.
    """
    attention = model.blocks[layer].attn
    module = getattr(attention.o, "original_component", attention.o)
    if is_plain(module):
        return attention.W_O.detach()
    return adapted_weight(module, model.cfg.n_heads, model.cfg.d_head, f"the output projection of layer {layer}")


def adapted_weight(module: nn.Module, n_heads: int, d_head: int, label: str) -> Float[Tensor, "n_heads d_head d_model"]:
    """The matrix of a projection with adapters around it, as they are now: merged or not, on or off.

    It is read off the module itself, which is asked for unit vectors, so that any kind of adapter counts as it computes
    (LoRA, DoRA, IA³, VeRA, OFT ...), a copy of the whole module among them. Biases belong to no head.

    Raises:
        ValueError: what the module adds is no matrix: it depends on its input.
    """
    parameter = next(module.parameters())
    exact = _in_float32(module)
    with torch.no_grad():
        unit = torch.eye(n_heads * d_head, dtype=next(exact.parameters()).dtype, device=parameter.device)
        weight = written_by(exact, unit)
        generator = torch.Generator().manual_seed(0)
        probe = _SIZE * torch.randn(4, len(unit), generator=generator).to(unit)
        want = written_by(exact, probe)
        error = float((probe @ weight - want).norm() / want.norm().clamp(min=1e-12))
    if not error <= rounding_share(weight.dtype):  # so that NaN fails
        raise ValueError(
            f"{label} has an adapter ({type(module).__name__}) that depends on its input (off by {error:.2g}), "
            "expected one that is a matrix, so that each head writes by itself; remove it."
        )
    return weight.to(parameter.dtype).unflatten(0, (n_heads, d_head))


def written_by(module: nn.Module, values: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_model"]:
    """What a projection makes of its input, without bias, dropout and hooks, with gradients."""
    call: Any = module.forward  # hooks belong to the model's own passes
    with _without_dropout(module):
        return call(values[None])[0] - call(torch.zeros_like(values[:1])[None])[0]


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _in_float32(module: nn.Module) -> nn.Module:
    """A copy in float32 where the numbers are shorter, so that taking away the bias does not round the rest."""
    if all(parameter.dtype in FULL for parameter in module.parameters()):
        return module
    if not all(parameter.is_floating_point() for parameter in module.parameters()):
        return module  # quantised: it computes as it does
    return copy.deepcopy(module).float()
