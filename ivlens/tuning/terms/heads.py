"""Head consistency: the heads that carry earlier tasks keep their outputs while the model learns a new task.

Source: arXiv 2502.11019; docs/method.md, section 9 Guided fine-tuning, names the choices that the paper leaves open.
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
    """Squared distance of the heads in `S` from their outputs in the frozen model, at the last prompt token.

    `Σ_{(l,h) ∈ S} ‖z_{l,h} - z⁰_{l,h}‖² / d_head`, averaged over examples. `z⁰` comes from the frozen model before the
    task, without the vector. The sum is not divided by the number of heads: twice as many heads count twice as much.

    With `as_vector`, single heads may change, and only the vector that they write together is held:
    `‖Σ_S z_{l,h} W_O^{l,h} - Σ_S z⁰_{l,h} W_O^{l,h}‖² / d_model`. See docs/method.md, section 9 Guided fine-tuning.

    Attributes:
        heads: The heads `S` as (layer, head); None: `iv_guidance` chooses them.
        weight: Weight of the term in the loss, `β_head`.
        as_vector: Hold the vector that the heads write together instead of each head's output.
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
        """Whether `made` chooses the heads, because none were named."""
        return self.heads is None

    def made(self, before: Before) -> "HeadConsistency":
        """The term with the strongest heads of earlier tasks, if it names no heads itself."""
        return self if self.heads is not None else replace(self, heads=before.heads())

    def with_heads(self, change: ChangeHeads) -> "HeadConsistency":
        """The term with its heads changed, for a control."""
        return change(self)

    def check(self, sites: Sites) -> None:
        """Raise ValueError where the model lacks one of the heads, or no heads were chosen."""
        sites.check_heads(self.chosen)

    @property
    def chosen(self) -> tuple[tuple[int, int], ...]:
        """The heads `S` that are held.

        Raises:
            ValueError: no heads were chosen yet.
        """
        if self.heads is None:
            raise ValueError(
                "HeadConsistency has no heads yet, expected (layer, head) pairs; name them, or let iv_guidance choose."
            )
        return self.heads

    @property
    def layers_read(self) -> Sequence[int]:
        """The layers in which the heads are."""
        # each once: a layer's hook stores all its heads
        return sorted({layer for layer, _ in self.chosen})

    def read(self, answer: Answer, model: InTraining) -> Float[Tensor, "rows parts width"]:
        """The outputs of the heads side by side, or, with `as_vector`, the one vector that they write together."""
        return model.sites.held(model.plain, answer.z, self.chosen, as_vector=self.as_vector)

    def ask(self, frozen: InTraining) -> "HeldOutputs":
        """The outputs of the frozen model's heads for every example that is read, without the vector."""
        return HeldOutputs(
            torch.cat(frozen.ask(frozen.own, lambda answer: self.read(answer, frozen), layers=self.layers_read))
        )

    def loss(self, student: Student, asked: Any, model: InTraining) -> Float[Tensor, ""]:
        """The weighted distance in one pass, `weight · L_head`."""
        before = asked.rows(student.index).z
        return self.weight * head_distance(self.read(student.answer, model), before, student.totals)


@dataclass(frozen=True, eq=False)
class HeldOutputs:
    """The outputs of the frozen model's heads for every example, `4 · parts · width` bytes each in float32."""

    z: Float[Tensor, "n parts width"]

    def rows(self, index: Int[Tensor, " rows"]) -> "HeldOutputs":
        """The outputs for some examples."""
        return HeldOutputs(self.z[index])

    @property
    def n_bytes(self) -> int:
        """The memory that the outputs take, in bytes."""
        return self.z.nbytes


def head_distance(
    z: Float[Tensor, "batch parts width"], before: Float[Tensor, "batch parts width"], totals: Totals | None = None
) -> Float[Tensor, ""]:
    """`Σ ‖z - z⁰‖² / width` over parts (the heads, or the one vector that they write), averaged over examples."""
    # `mean(-1)` divides by the width, `sum` adds heads and examples; passes of a step share the step's count
    return (z.float() - before.float()).square().mean(-1).sum() / (len(z) if totals is None else totals.rows)
