"""IV-guided training: what is added to the loss, or to the stream, so that the model's old computation stays alive.

Each part is a small frozen object of `ivlens.tuning.terms`; `Guidance` puts any of them together:

    L = L_LM + IVKL.weight · L_KL + HeadConsistency.weight · L_head,  with  h_l <- h_l + σ g(p) α θ  in the student

Source: arXiv 2406.12227 (progressive intervention and KL), arXiv 2502.11019 (head consistency); docs/method.md,
section 9, names the choices that the papers leave open.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ivlens.forward.hooks import Site
from ivlens.tuning.rehearsal import Rehearsal
from ivlens.tuning.terms import IVKL, HeadConsistency, Progressive


@dataclass(frozen=True, eq=False)
class Guidance:
    """The parts that are in use, and the vector and place that they share.

    Attributes:
        theta: `θ`, as from `InstructionVector.theta`; zeros, or a random vector, for a control.
        layer: where it enters.
        site: `resid_post` or `attn_out`.
        alpha: its strength.
        rehearsal: see `ivlens.tuning.rehearsal`; any number of them.
    """

    theta: Float[Tensor, " d_model"] | None = None
    layer: int = 0
    site: Site = "resid_post"
    alpha: float = 1.0
    progressive: Progressive | None = None
    kl: IVKL | None = None
    heads: HeadConsistency | None = None
    rehearsal: tuple[Rehearsal, ...] = ()

    def __post_init__(self) -> None:
        if self.theta is None and (self.progressive or self.kl):
            raise ValueError(
                "Guidance got no theta, expected the vector that progressive and kl add; or leave both out."
            )
        if self.theta is not None and self.theta.ndim != 1:
            raise ValueError(
                f"theta has shape {tuple(self.theta.shape)}, expected [d_model]; take InstructionVector.theta."
            )
        if self.theta is not None and not bool(self.theta.isfinite().all()):
            raise ValueError("theta contains NaN or infinite values, expected finite ones.")
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha is {self.alpha}, expected a finite number.")

    @property
    def delta(self) -> Float[Tensor, " d_model"]:
        """`α θ`."""
        assert self.theta is not None
        return self.alpha * self.theta

    def tensors(self) -> "Sequence[Tensor | None]":
        """Everything it consists of that `describe` does not say."""
        return [self.theta, *(tensor for part in self.rehearsal for tensor in part.tensors())]

    def describe(self) -> dict[str, object]:
        """Every option, as it goes into logs and tables."""
        parts: Sequence[tuple[str, object]] = (
            ("progressive", self.progressive),
            ("kl", self.kl),
            ("heads", self.heads),
        )
        place = {"layer": self.layer, "site": self.site, "alpha": self.alpha} if self.theta is not None else {}
        rehearsal = [part.describe() for part in self.rehearsal]
        return {**place, **{name: None if part is None else vars(part) for name, part in parts}, "rehearsal": rehearsal}
