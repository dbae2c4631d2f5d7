"""The matrix `W_O` of each head, read from attention's output projection with any adapters on it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ivlens.common.precision import FULL, rounding_share
from ivlens.models.attention import attention_of, without_heads
from ivlens.models.boot import TransformerBridge

_SIZE = 10.0  # size of random inputs; large, so that an adapter that is not linear shows it


def is_plain(module: nn.Module) -> bool:
    """Whether a projection is an ordinary linear layer, without an adapter around it."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def head_matrices(model: TransformerBridge, layer: int) -> Float[Tensor, "n_heads d_head d_model"]:
    """`W_O` of every head of one layer, with the effect of active adapters.

    Raises:
        ValueError: the layer has no attention heads, or an adapter whose effect is not linear in its input.
    """
    attention = attention_of(model.blocks[layer])
    if attention is None:
        raise ValueError(without_heads(model, layer))
    module: Any = attention.projection
    if is_plain(module) and attention.is_wrapped:
        return model.blocks[layer].attn.W_O.detach()
    if is_plain(module):
        return module.weight.detach().T.unflatten(0, (model.cfg.n_heads, model.cfg.d_head))
    return adapted_weight(module, model.cfg.n_heads, model.cfg.d_head, f"the output projection of layer {layer}")


def adapted_weight(module: nn.Module, n_heads: int, d_head: int, label: str) -> Float[Tensor, "n_heads d_head d_model"]:
    """The matrix of a projection with adapters around it, in their present state: merged or not, on or off.

    The module is applied to unit vectors, so that any kind of adapter is included as it computes (LoRA, DoRA, IA³,
    VeRA, OFT, a trained copy of the module ...). Biases are left out, because they belong to no head.

    Args:
        module: The projection.
        n_heads: Number of heads.
        d_head: Width of a head's output.
        label: The projection, as the error names it.

    Raises:
        ValueError: the module without its bias is not linear, so that it is no matrix.
    """
    parameter = next(module.parameters())
    exact = _in_float32(module)
    with torch.no_grad():
        unit = torch.eye(n_heads * d_head, dtype=next(exact.parameters()).dtype, device=parameter.device)
        weight = written_by(exact, unit)
        # for random inputs, the matrix gives the same output only if the module is linear
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
    """The output of a projection without bias, dropout and hooks; gradients are kept."""
    call: Any = module.forward  # not module(...), which runs hooks that belong to the model's passes
    with _without_dropout(module):
        # the output for zeros is the bias, whatever module it comes from
        return call(values[None])[0] - call(torch.zeros_like(values[:1])[None])[0]


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    """In the body, the module and its parts are in eval mode; afterwards each is in its earlier mode."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _in_float32(module: nn.Module) -> nn.Module:
    """The module, copied to float32 if it is in half precision, where subtracting the bias would round the result."""
    if all(parameter.dtype in FULL for parameter in module.parameters()):
        return module
    if not all(parameter.is_floating_point() for parameter in module.parameters()):
        return module  # quantised weights cannot be converted like this
    return copy.deepcopy(module).float()
