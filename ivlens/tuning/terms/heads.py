"""Head consistency: the heads that carry earlier tasks go on writing what they wrote.

Source: arXiv 2502.11019; docs/method.md, section 9, names the choices that the paper leaves open.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.tuning.terms.measuring import Before
from ivlens.tuning.terms.term import ChangeHeads, Term, check_weight
from ivlens.tuning.training.asking import Answer, InTraining, Student
from ivlens.tuning.training.losses import Totals
from ivlens.tuning.training.sites import Sites


@dataclass(frozen=True)
class HeadConsistency(Term):
    """`Σ_{(l,h) ∈ S} ‖z_{l,h} - z⁰_{l,h}‖² / d_head` at the last prompt token, averaged over examples.

    `z⁰` is the frozen model before the task, without the vector. In total weight `|S|` counts: a set twice as large
    weighs twice as much at the same `weight`.

    With `as_vector` the heads are free, and the vector that they write together is held instead:
    `‖Σ_S z_{l,h} W_O^{l,h} - Σ_S z⁰_{l,h} W_O^{l,h}‖² / d_model`.

    Attributes:
        heads: `S`; None: those that `iv_guidance` measures.
        weight: `β_head`.
        as_vector: Hold what the heads write together, not each of them.
    """

    name: ClassVar[str] = "heads"
    flags: ClassVar = {"heads_weight": "weight"}
    lacks: ClassVar[str] = "no heads to hold"

    heads: tuple[tuple[int, int], ...] | None = None
    weight: float = 30.0
    as_vector: bool = False

    def __post_init__(self) -> None:
        if self.heads is not None and not self.heads:
            raise ValueError("HeadConsistency got no heads, expected at least one (layer, head).")
        check_weight("weight", self.weight)

    @property
    def needs_heads(self) -> bool:
        """Whether `made` chooses them."""
        return self.heads is None

    def made(self, before: Before) -> "HeadConsistency":
        """With the heads of earlier tasks, where none were named."""
        return self if self.heads is not None else replace(self, heads=before.heads())

    def with_heads(self, change: ChangeHeads) -> "HeadConsistency":
        """With other heads."""
        return change(self)

    def check(self, sites: Sites) -> None:
        """Raise ValueError where the model has no such heads, or none were chosen."""
        sites.check_heads(self.chosen)

    @property
    def chosen(self) -> tuple[tuple[int, int], ...]:
        """`S`.

        Raises:
            ValueError: none were chosen yet.
        """
        if self.heads is None:
            raise ValueError(
                "HeadConsistency has no heads yet, expected (layer, head) pairs; name them, or let iv_guidance choose."
            )
        return self.heads

    @property
    def layers_read(self) -> Sequence[int]:
        """Layers of the heads."""
        return sorted({layer for layer, _ in self.chosen})

    def read(self, answer: Answer, model: InTraining) -> Float[Tensor, "rows parts width"]:
        """What is held, side by side: the outputs of the heads, or the one vector that they write together."""
        return model.sites.held(model.plain, answer.z, self.chosen, as_vector=self.as_vector)

    def ask(self, frozen: InTraining) -> "HeldOutputs":
        """What the frozen model's heads put out for every example, without the vector."""
        return HeldOutputs(
            torch.cat(frozen.ask(frozen.own, lambda answer: self.read(answer, frozen), layers=self.layers_read))
        )

    def loss(self, student: Student, asked: Any, model: InTraining) -> Float[Tensor, ""]:
        """`weight · L_head` of one pass."""
        before = asked.rows(student.index).z
        return self.weight * head_distance(self.read(student.answer, model), before, student.totals)


@dataclass(frozen=True, eq=False)
class HeldOutputs:
    """What the frozen model's heads put out for every example: `4 |S| d_head` bytes each."""

    z: Float[Tensor, "n parts width"]

    def rows(self, index: Int[Tensor, " rows"]) -> "HeldOutputs":
        """Those of some examples."""
        return HeldOutputs(self.z[index])

    @property
    def n_bytes(self) -> int:
        """What they take in memory."""
        return self.z.nbytes


def head_distance(
    z: Float[Tensor, "batch parts width"], before: Float[Tensor, "batch parts width"], totals: Totals | None = None
) -> Float[Tensor, ""]:
    """`Σ ‖z - z⁰‖² / width` over the parts (heads, or the vector they write), averaged over the batch."""
    return (z.float() - before.float()).square().mean(-1).sum() / (len(z) if totals is None else totals.rows)
