"""The edits of a pass: a vector is added to the residual stream, or given outputs replace those of heads or join them.

Formulas: docs/method.md, 6 Intervention and its controls.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.forward.hooks import patched_heads
from ivlens.models.boot import TransformerBridge
from ivlens.vectors.heads import Heads
from ivlens.vectors.vector import InstructionVector

Where = Callable[[], Tensor]  # bool [batch, pos]: the positions of the current pass that are edited
Positions = Literal["prompt", "every", "all"]
POSITIONS: tuple[Positions, ...] = ("prompt", "every", "all")


@runtime_checkable
class RowEdit(Protocol):
    """An edit that is not the same in every row, since it depends on the prompt and on the tokens given after it."""

    def of_rows(
        self, where: Where, prompts: Int[Tensor, " rows"], given: Int[Tensor, "rows given"]
    ) -> AbstractContextManager[None]:
        """A context in which a pass over these rows is edited.

        Args:
            where: Tells which positions of the pass are edited: the last ones of each row, as many in every row.
            prompts: The number of each row's prompt, counted through all portions of the trials.
            given: The tokens after the prompt.
        """
        ...


@dataclass(frozen=True, eq=False)
class HeadOutputs:
    """One output for each of several heads, which takes the place of the head's own output or is added to it.

    Attributes:
        heads: The heads, as `(layer, head)`.
        values: The output of each, before the output projection.
    """

    heads: Heads
    values: Float[Tensor, "k d_head"]

    @classmethod
    def of(cls, iv: InstructionVector) -> "HeadOutputs":
        """The vector's heads with their means."""
        return cls(iv.heads, iv.head_means)

    @classmethod
    def chosen(
        cls, heads: Sequence[tuple[int, int]], values: Float[Tensor, "n_layers n_heads d_head"]
    ) -> "HeadOutputs":
        """These heads, with their outputs among those of all heads."""
        layers, numbers = (list(part) for part in zip(*heads, strict=True))
        return cls(tuple(heads), values[layers, numbers].detach().float().cpu())

    def patching(self, model: TransformerBridge, edit: Callable[[Tensor, int], Tensor]) -> AbstractContextManager[None]:
        """A context in which `edit` is applied to head outputs in the layers of these heads."""
        # wide where a head of a recurrent mixer is among them: outputs then have the width of the wider kind
        is_wide = self.values.shape[-1] != model.cfg.d_head or any(head >= model.cfg.n_heads for _, head in self.heads)
        return patched_heads(model, edit, self.layers, mixers=is_wide)

    @property
    def layers(self) -> list[int]:
        """The layers that hold these heads."""
        return sorted({layer for layer, _ in self.heads})

    def of_layer(self, layer: int, like: Tensor) -> tuple[list[int], Float[Tensor, "some d_head"]]:
        """The heads of one layer with their outputs, on the device and in the precision of another tensor."""
        rows = [row for row, (at, _) in enumerate(self.heads) if at == layer]
        return [self.heads[row][1] for row in rows], self.values[rows].to(like.device, like.dtype)


def addition(delta: Float[Tensor, "*rows d_model"], where: Where) -> Callable[[Tensor], Tensor]:
    """The edit `resid -> resid + delta` at the chosen positions; `delta` is one vector, or one for each row."""

    def edit(resid: Tensor) -> Tensor:
        # `torch.where` instead of adding 0 elsewhere: a delta that overflows would make NaN of the other positions
        moved = resid + (delta if delta.ndim == 1 else delta[:, None]).to(resid.device, resid.dtype)
        return torch.where(where()[..., None].to(resid.device), moved, resid)

    return edit


def replacement(outputs: HeadOutputs, alpha: float | int, where: Where) -> Callable[[Tensor, int], Tensor]:
    """The edit `z -> z + alpha (v - z)` for these heads at the chosen positions; alpha 1 gives exactly `v`."""

    def edit(z: Tensor, layer: int) -> Tensor:
        heads, values = outputs.of_layer(layer, z)
        moved = z.clone()
        # `lerp` is exact at both ends; z + 1 · (v - z) would be off by rounding
        moved[:, :, heads] = torch.lerp(z[:, :, heads], values.expand_as(z[:, :, heads]), alpha)
        return torch.where(where()[..., None, None].to(z.device), moved, z)

    return edit


def head_addition(outputs: HeadOutputs, alpha: float | int, where: Where) -> Callable[[Tensor, int], Tensor]:
    """The edit `z -> z + alpha v` for these heads at the chosen positions."""

    def edit(z: Tensor, layer: int) -> Tensor:
        heads, values = outputs.of_layer(layer, z)
        moved = z.clone()
        moved[:, :, heads] += alpha * values
        return torch.where(where()[..., None, None].to(z.device), moved, z)

    return edit
