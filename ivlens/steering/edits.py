"""The two ways a vector changes a pass: added to the residual stream, or put in the place of its heads' outputs."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.vectors.vector import InstructionVector

Where = Callable[[], Tensor]  # bool [batch, pos]: the positions of the pass under way that are meant
Positions = Literal["prompt", "every"]
POSITIONS: tuple[Positions, ...] = ("prompt", "every")


def addition(delta: Float[Tensor, "*rows d_model"], where: Where) -> Callable[[Tensor], Tensor]:
    """`resid -> resid + delta` at the chosen positions; `delta` is one vector, or one per row."""

    def edit(resid: Tensor) -> Tensor:
        moved = resid + (delta if delta.ndim == 1 else delta[:, None]).to(resid.device, resid.dtype)
        return torch.where(where()[..., None].to(resid.device), moved, resid)

    return edit


def replacement(iv: InstructionVector, alpha: float | int, where: Where) -> Callable[[Tensor, int], Tensor]:
    """`z -> z + alpha (z̄ - z)` for the heads of `iv` at the chosen positions; alpha 1 puts exactly `z̄` there."""

    def edit(z: Tensor, layer: int) -> Tensor:
        chosen = [index for index, (at, _) in enumerate(iv.heads) if at == layer]
        heads = [iv.heads[index][1] for index in chosen]
        means = iv.head_means[chosen].to(z.device, z.dtype)
        moved = z.clone()
        moved[:, :, heads] = torch.lerp(z[:, :, heads], means.expand_as(z[:, :, heads]), alpha)
        return torch.where(where()[..., None, None].to(z.device), moved, z)

    return edit


def layers_of(iv: InstructionVector) -> list[int]:
    """The layers that hold heads of `iv`."""
    return sorted({layer for layer, _ in iv.heads})
