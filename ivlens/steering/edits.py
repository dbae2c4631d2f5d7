"""The two edits of a pass: a vector is added to the residual stream, or its head means replace head outputs.

Formulas: docs/method.md, 6 Intervention and its controls.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.vectors.vector import InstructionVector

Where = Callable[[], Tensor]  # bool [batch, pos]: the positions of the current pass that are edited
Positions = Literal["prompt", "every"]
POSITIONS: tuple[Positions, ...] = ("prompt", "every")


def addition(delta: Float[Tensor, "*rows d_model"], where: Where) -> Callable[[Tensor], Tensor]:
    """The edit `resid -> resid + delta` at the chosen positions; `delta` is one vector, or one for each row."""

    def edit(resid: Tensor) -> Tensor:
        # `torch.where` instead of adding 0 elsewhere: a delta that overflows would make NaN of the other positions
        moved = resid + (delta if delta.ndim == 1 else delta[:, None]).to(resid.device, resid.dtype)
        return torch.where(where()[..., None].to(resid.device), moved, resid)

    return edit


def replacement(iv: InstructionVector, alpha: float | int, where: Where) -> Callable[[Tensor, int], Tensor]:
    """The edit `z -> z + alpha (z̄ - z)` for the heads of `iv` at the chosen positions; alpha 1 gives exactly `z̄`."""

    def edit(z: Tensor, layer: int) -> Tensor:
        chosen = [index for index, (at, _) in enumerate(iv.heads) if at == layer]
        heads = [iv.heads[index][1] for index in chosen]
        means = iv.head_means[chosen].to(z.device, z.dtype)
        moved = z.clone()
        # `lerp` is exact at both ends; z + 1 · (z̄ - z) would be off by rounding
        moved[:, :, heads] = torch.lerp(z[:, :, heads], means.expand_as(z[:, :, heads]), alpha)
        return torch.where(where()[..., None, None].to(z.device), moved, z)

    return edit


def layers_of(iv: InstructionVector) -> list[int]:
    """The layers that hold heads of `iv`."""
    return sorted({layer for layer, _ in iv.heads})
