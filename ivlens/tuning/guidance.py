"""`Guidance`: terms in the loss, or vectors in the residual stream, that keep what a model computed before a task.

It combines any terms of `ivlens.tuning.terms`:

    L = L_LM + the sum of the terms,  with  h_l <- h_l + σ g(p) α θ  in the student where one term is `Progressive`

Source: arXiv 2406.12227 (progressive intervention and KL), arXiv 2502.11019 (head consistency); docs/method.md,
section 9 Guided fine-tuning, names the choices that the papers leave open.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from ivlens.common.checks import set_items
from ivlens.forward.hooks import Site
from ivlens.tuning.terms.term import Term
from ivlens.tuning.training.asking import Shift

TermT = TypeVar("TermT", bound=Term)


@dataclass(frozen=True, eq=False)
class Guidance:
    """The terms that guide one training, with the vector that they share and the place where it is added.

        >>> Guidance((IVKL(weight=0.3), HeadConsistency(((5, 1), (6, 3)))), theta=iv.theta, layer=8)

    Attributes:
        terms: The terms, in the order in which they act and stand in the log.
        theta: The vector `θ`, such as `InstructionVector.theta`; zeros or a random vector make a control. None where
            no term uses a vector.
        layer: The layer where `θ` is added.
        site: The place in that layer: `resid_post` or `attn_out`.
        alpha: The strength of `θ`.
    """

    terms: tuple[Term, ...] = ()
    theta: Float[Tensor, " d_model"] | None = None
    layer: int = 0
    site: Site = "resid_post"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        set_items(self, "terms", kind=Term, meant="terms are such as IVKL() or HeadConsistency(heads)")
        # refused here, where the mistake is, and not in the first pass of a training
        users = [term.name for term in self.terms if term.needs_vector]
        if self.theta is None and users:
            raise ValueError(
                f"Guidance got no theta, expected the vector for {' and '.join(users)}; give it, or leave them out."
            )
        if self.theta is not None and not isinstance(self.theta, Tensor):
            raise TypeError(f"theta is {type(self.theta).__name__}, expected a tensor; take InstructionVector.theta.")
        if self.theta is not None and self.theta.ndim != 1:
            raise ValueError(
                f"theta has shape {tuple(self.theta.shape)}, expected [d_model]; take InstructionVector.theta."
            )
        if self.theta is not None and not bool(self.theta.isfinite().all()):
            raise ValueError("theta contains NaN or infinite values, expected finite ones.")
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha is {self.alpha}, expected a finite number.")

    def find(self, kind: type[TermT]) -> TermT | None:
        """The first term of this class; None where there is none."""
        return next((term for term in self.terms if isinstance(term, kind)), None)

    @property
    def delta(self) -> Float[Tensor, " d_model"]:
        """`α θ`, the vector as it is added."""
        assert self.theta is not None
        return self.alpha * self.theta

    @property
    def shift(self) -> Shift | None:
        """`α θ` with its layer and site; None where there is no vector."""
        return None if self.theta is None else Shift(self.layer, self.site, self.delta)

    def tensors(self) -> "Sequence[Tensor | None]":
        """All tensors of the guidance, which `describe` leaves out."""
        return [self.theta, *(tensor for term in self.terms for tensor in term.tensors())]

    def describe(self) -> dict[str, Any]:
        """Every option as plain values, for logs and tables."""
        place = {"layer": self.layer, "site": self.site, "alpha": self.alpha} if self.theta is not None else {}
        return {**place, "terms": [[term.name, term.describe()] for term in self.terms]}
