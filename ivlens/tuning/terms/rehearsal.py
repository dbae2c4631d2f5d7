"""Rehearsal: earlier tasks are kept alive on the inputs of the new one, without any example of theirs.

A prompt of the new task's inputs is asked for an earlier task in one of three ways: by the earlier task's Instruction
Vector, added to a prompt that has no instruction; by the earlier task's instruction (its demonstrations, where it has
none); or by the instruction in the model in training and by the vector in the frozen one. The model in training must
answer as the frozen model before the task does:

    L = kl.weight · T² KL(M⁰(x, j) ‖ M(x, j))  +  heads.weight · Σ_S ‖z(x, j) - z⁰(x, j)‖² / d_head

at the last prompt token, averaged over pairs of an input `x` and an earlier task `j`; the first term also at the tokens
of the frozen model's own greedy answer, where more than its first token is rehearsed. Under a vector the first term
guards how the model *reads* an Instruction Vector; under an instruction the second one guards how its heads *write* it.
The new task's own prompts are not held back. `rehearsal_prompts.py` makes the prompts.

Source: ivlens; the papers hold the new task's prompts only.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.forward.hooks import Site
from ivlens.tuning.terms.heads import HeadConsistency, head_distance
from ivlens.tuning.terms.kl import IVKL, SoftTargets, iv_kl
from ivlens.tuning.terms.term import ChangeHeads, ChangeVectors, Term
from ivlens.tuning.training.asking import Answer, InTraining, Shift
from ivlens.tuning.training.data import IGNORED, TrainingSet, base_model
from ivlens.tuning.training.losses import Totals
from ivlens.tuning.training.processes import current
from ivlens.tuning.training.sites import Sites

T = TypeVar("T")

REHEARSED = IVKL(weight=1.0, answers=0.0)


@dataclass(frozen=True, eq=False)
class Rehearsal(Term):
    """What is rehearsed.

    Attributes:
        prompts: New inputs, asked for earlier tasks. Of the answers nothing is read.
        deltas: What is added to each of them at its last token, `α θ_j`; None: nothing.
        teacher: What the frozen model is asked, one for each of `prompts`; it alone gets `deltas` then. None: the same.
        layer, site: Where.
        kl: The first term; None leaves it out.
        heads: The second term; None leaves it out.
        per_step: Prompts in every step, in `accumulate` passes.
        n_tokens: Of the frozen model's greedy answers, its end included, that `kl` compares at; 1: the first alone.
    """

    name: ClassVar[str] = "rehearsal"

    prompts: TrainingSet
    deltas: Float[Tensor, "n d_model"] | None
    teacher: TrainingSet | None = None
    layer: int = 0
    site: Site = "resid_post"
    kl: IVKL | None = REHEARSED
    heads: HeadConsistency | None = None
    per_step: int = 32
    n_tokens: int = 1

    def __post_init__(self) -> None:
        if self.n_tokens < 1:
            raise ValueError(f"n_tokens is {self.n_tokens}, expected 1 or more.")
        if self.n_tokens > 1 and (self.kl is None or not self.kl.answers):
            raise ValueError(
                f"n_tokens is {self.n_tokens}, but kl gives the tokens after the first no weight, expected one above "
                "0; use kl=IVKL(answers=1.0), or n_tokens=1."
            )
        if self.kl is None and self.heads is None:
            raise ValueError("Rehearsal got neither kl nor heads, expected at least one of its terms.")
        if self.teacher is not None and len(self.teacher) != len(self.prompts):
            n_asked, n_prompts = len(self.teacher), len(self.prompts)
            raise ValueError(f"Rehearsal got {n_asked} prompts for its teacher, expected {n_prompts}.")
        if self.deltas is not None and len(self.deltas) != len(self.prompts):
            n_deltas, n_prompts = len(self.deltas), len(self.prompts)
            raise ValueError(f"Rehearsal got {n_deltas} deltas, expected {n_prompts}, one for each prompt.")

    # ---- before a training

    def with_vectors(self, change: ChangeVectors) -> "Rehearsal":
        """With other vectors, where it has any."""
        return self if self.deltas is None else replace(self, deltas=change(self.deltas))

    def with_heads(self, change: ChangeHeads) -> "Rehearsal":
        """With other heads, where it holds any."""
        return self if self.heads is None else replace(self, heads=change(self.heads))

    def check(self, sites: Sites) -> None:
        """Raise ValueError where the model has no such place or heads."""
        sites.check(self.layer, self.site)
        if self.heads is not None:
            self.heads.check(sites)

    def describe(self) -> dict[str, Any]:
        """Every option, as it goes into logs."""
        place = None if self.deltas is None else {"layer": self.layer, "site": self.site}
        parts = {name: part and part.describe() for name, part in (("kl", self.kl), ("heads", self.heads))}
        of_its_own = self.teacher is not None
        size = {"n": len(self.prompts), "per_step": self.per_step, "n_tokens": self.n_tokens}
        return {**size, "deltas": place, "teacher": of_its_own, **parts}

    def tensors(self) -> Sequence[Tensor | None]:
        """Everything it consists of that `describe` does not say."""
        asked = [] if self.teacher is None else vars(self.teacher).values()
        return [*vars(self.prompts).values(), self.deltas, *asked]

    # ---- in a training

    def ask(self, frozen: InTraining) -> "Rehearsed":
        """What the frozen model answers to every prompt, and what its heads put out there."""
        told = self if self.n_tokens == 1 else self._answered(frozen)

        def read(answer: Answer) -> tuple[SoftTargets | None, Tensor | None]:
            soft = None if self.kl is None else SoftTargets.of(answer.logits, self.kl)
            return soft, None if self.heads is None else self.heads.read(answer, frozen)

        both = told._ask_frozen(frozen, read)
        soft = [one for one, _ in both if one is not None]
        z = [one for _, one in both if one is not None]
        return Rehearsed(told.prompts, SoftTargets.joined(soft) if soft else None, torch.cat(z) if z else None)

    def passes(self, step: int, asked: Any, model: InTraining) -> Iterator[Float[Tensor, ""]]:
        """How far the student is from the frozen model on prompts drawn for this step.

        They are divided into as many passes as the task's own. The hooks of a pass stay until the next one is asked
        for: checkpointed blocks are run again during backward.
        """
        known: Rehearsed = asked
        generator = torch.Generator().manual_seed((model.seed * 1_000_003 + step) % 2**63)
        drawn = torch.randint(len(known.prompts), (self.per_step,), generator=generator)
        drawn = drawn.to(known.prompts.answers.device)
        totals, processes = Totals.of(known.prompts.answers[drawn]), current()
        parts = drawn.tensor_split(min(model.options.accumulate * processes.size, len(drawn)))
        for index in processes.share(parts):
            with ExitStack() as stack:
                # where the frozen model alone is told by a vector, the student has an instruction instead
                shift = None if self.teacher is not None or self.deltas is None else self._shift(self.deltas[index])
                now = model.answer(known.prompts.rows(index), stack, shift=shift, layers=self.layers_held)
                terms = []
                if self.kl is not None and known.soft is not None:
                    divergence = iv_kl(
                        now.logits, known.soft.rows(index), known.prompts.answers[index], self.kl, totals
                    )
                    terms.append(self.kl.weight * divergence)
                if self.heads is not None and known.z is not None:
                    distance = head_distance(self.heads.read(now, model), known.z[index], totals)
                    terms.append(self.heads.weight * distance)
                yield torch.stack(terms).sum()

    @property
    def layers_held(self) -> Sequence[int]:
        """Layers whose head outputs it reads, on its own prompts."""
        return () if self.heads is None else self.heads.layers_read

    def _shift(self, deltas: Float[Tensor, "n d_model"]) -> Shift:
        return Shift(self.layer, self.site, deltas)

    def _ask_frozen(self, frozen: InTraining, read: Callable[[Answer], T]) -> list[T]:
        shift = None if self.deltas is None else self._shift(self.deltas)
        prompts = self.prompts if self.teacher is None else self.teacher
        return frozen.ask(prompts, read, shift=shift, layers=self.layers_held, batch_size=128)

    def _answered(self, frozen: InTraining) -> "Rehearsal":
        """The same with answers that the frozen model writes by itself."""
        name = "prompts" if self.teacher is None else "teacher"
        asked: TrainingSet = getattr(self, name)
        end = base_model(frozen.plain).config.eos_token_id
        ends = torch.tensor([] if end is None else end, dtype=torch.long, device=asked.tokens.device).reshape(-1)
        written = asked.answers.new_empty(len(asked), 0)
        for _ in range(self.n_tokens):
            # the last column of answers says where one is asked for; it is never read
            with_room = replace(asked, answers=torch.cat([written, written.new_zeros(len(written), 1)], 1))
            likeliest = torch.cat(
                replace(self, **{name: with_room})._ask_frozen(frozen, lambda answer: answer.logits[:, -1].argmax(-1))
            )
            over = (written == IGNORED).any(1) | torch.isin(written[:, -1:], ends).any(1)
            written = torch.cat([written, likeliest.masked_fill(over, IGNORED)[:, None]], 1)
        teacher = None if self.teacher is None else replace(self.teacher, answers=written)
        return replace(self, prompts=replace(self.prompts, answers=written), teacher=teacher)


@dataclass(frozen=True, eq=False)
class Rehearsed:
    """What is rehearsed in one training: prompts with the frozen model's answers, and what it gave for them."""

    prompts: TrainingSet
    soft: SoftTargets | None
    z: Float[Tensor, "n parts width"] | None
