"""Muon in float32: an optimiser that orthogonalises its momentum, for the matrices of small models on CPUs.

`torch.optim.Muon` orthogonalises in bfloat16. Processors without bfloat16 arithmetic emulate it, and on a model of 6
layers and width 128 the optimiser step then takes several times as long as forward and backward. Here matrices of one
shape are stacked and orthogonalised together in float32.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# as in the source: small singular values rise fast, and the others waver around 1, which is close enough
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrices: Float[Tensor, "n rows cols"], steps: int = 5) -> Float[Tensor, "n rows cols"]:
    """Each matrix with its singular values moved to about 1 (they end near 0.7 to 1.2), its directions kept.

    This is a Newton-Schulz iteration towards the nearest semi-orthogonal matrix.
    """
    # the wide form: its Gram matrix is the smaller of the two
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    # the Frobenius norm bounds every singular value, so all begin at most 1, as the iteration needs
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class StackedMuon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay; the update is scaled by sqrt(max(1, rows / cols))."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all matrices, those of one shape together."""
        for group in self.param_groups:
            stacks: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    stacks[tuple(p.shape)].append(p)
            for params in stacks.values():
                self._step_stack(params, group)

    def _step_stack(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Update matrices of one shape, whose updates are orthogonalised in one stack."""
        update = torch.stack([self._momentum(p, group["momentum"]) for p in params])
        scale = max(1.0, params[0].shape[0] / params[0].shape[1]) ** 0.5
        for p, direction in zip(params, orthogonalised(update), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"] * scale)

    def _momentum(self, p: Tensor, momentum: float) -> Tensor:
        """The direction of a parameter's update: its gradient averaged with the running average (Nesterov)."""
        assert p.grad is not None
        buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        buffer.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(buffer, momentum)
