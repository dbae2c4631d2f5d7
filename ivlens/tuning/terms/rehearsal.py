"""Rehearsal: told to do an earlier task on inputs of the new one, the student must answer as the frozen model does.

No example of an earlier task is needed. The models are told the earlier task in one of three ways:

- `vectors`: the prompt has no instruction, and the earlier task's Instruction Vector is added in both models;
- `instructions`: both models get the earlier task's instruction, or demonstrations of a task without instruction;
- `translations`: the student gets the instruction, the frozen model the vector.

With the frozen model `M⁰`, the student `M`, an input `x` and an earlier task `j`, the loss is

    L = kl.weight · T² KL(M⁰(x, j) ‖ M(x, j))  +  heads.weight · Σ_S ‖z(x, j) - z⁰(x, j)‖² / d_head

at the last prompt token, averaged over pairs `(x, j)`. If more than one token is rehearsed, the KL also counts at the
tokens of the frozen model's own greedy answer. With vectors, the KL protects how the model *reads* an Instruction
Vector; with instructions, the heads' part protects how heads *write* it. The new task's own prompts are left alone.
`rehearsal_prompts.py` makes the prompts. See docs/method.md, section 9 Guided fine-tuning.

Source: ivlens; the papers compare student and frozen model on the new task's prompts only.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float, Int
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

REHEARSED = IVKL(weight=1.0, answers=0.0)  # the KL of a rehearsal by default: at the last prompt token only


@dataclass(frozen=True, eq=False)
class Rehearsal(Term):
    """A rehearsal with its prompts: the student is compared with the frozen model on some of them in every step.

    Attributes:
        prompts: Prompts with inputs of the new task, each for one earlier task. Their answers are never read.
        deltas: For each prompt the vector `α θ_j` that is added at its last token; None: no vectors.
        teacher: Other prompts for the frozen model, one for each of `prompts`; `deltas` are then added in the frozen
            model only. None: both models get `prompts` and `deltas`.
        layer, site: The layer where `deltas` are added, and the place in that layer.
        kl: How answers are compared; None: they are not.
        heads: Heads whose outputs are compared, with their weight; None: no heads are.
        per_step: Number of prompts in every step, divided into `accumulate` passes.
        n_tokens: Number of tokens at which `kl` compares: the first tokens of the frozen model's greedy answer, the
            end-of-text token included. 1: the last prompt token only.
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
        """The rehearsal with its vectors changed, for a control; without vectors, itself."""
        return self if self.deltas is None else replace(self, deltas=change(self.deltas))

    def with_heads(self, change: ChangeHeads) -> "Rehearsal":
        """The rehearsal with its heads changed, for a control; without heads, itself."""
        return self if self.heads is None else replace(self, heads=change(self.heads))

    def check(self, sites: Sites) -> None:
        """Raise ValueError where the model lacks the layer or site of the vectors, or one of the heads."""
        sites.check(self.layer, self.site)
        if self.heads is not None:
            self.heads.check(sites)

    def describe(self) -> dict[str, Any]:
        """Every option as plain values, for logs and for the keys of stored results."""
        place = None if self.deltas is None else {"layer": self.layer, "site": self.site}
        parts = {name: part and part.describe() for name, part in (("kl", self.kl), ("heads", self.heads))}
        of_its_own = self.teacher is not None
        size = {"n": len(self.prompts), "per_step": self.per_step, "n_tokens": self.n_tokens}
        return {**size, "deltas": place, "teacher": of_its_own, **parts}

    def tensors(self) -> Sequence[Tensor | None]:
        """All tensors of the rehearsal: its prompts and vectors, which `describe` leaves out."""
        asked = [] if self.teacher is None else vars(self.teacher).values()
        return [*vars(self.prompts).values(), self.deltas, *asked]

    # ---- in a training

    def ask(self, frozen: InTraining) -> "Rehearsed":
        """The frozen model's answers to the prompts that the steps draw, and the outputs of its heads there."""
        numbers = torch.cat([self._drawn(step, frozen.seed) for step in range(frozen.options.steps)]).unique()
        told = self._rows(numbers.to(self.prompts.tokens.device))
        told = told if self.n_tokens == 1 else told._answered(frozen)

        # both in one pass over the prompts
        def read(answer: Answer) -> tuple[SoftTargets | None, Tensor | None]:
            soft = None if self.kl is None else SoftTargets.of(answer.logits, self.kl)
            return soft, None if self.heads is None else self.heads.read(answer, frozen)

        both = told._ask_frozen(frozen, read)
        soft = [one for one, _ in both if one is not None]
        z = [one for _, one in both if one is not None]
        answers, outputs = SoftTargets.joined(soft) if soft else None, torch.cat(z) if z else None
        return Rehearsed(told.prompts, told.deltas, numbers, answers, outputs)

    def passes(self, step: int, asked: Any, model: InTraining) -> Iterator[Float[Tensor, ""]]:
        """Yield the weighted distance between student and frozen model on the prompts drawn for this step.

        The prompts are divided into as many passes as the task's own.
        """
        known: Rehearsed = asked
        drawn = torch.searchsorted(known.numbers, self._drawn(step, model.seed)).to(known.prompts.answers.device)
        totals, processes = Totals.of(known.prompts.answers[drawn]), current()
        parts = drawn.tensor_split(min(model.options.accumulate * processes.size, len(drawn)))
        for index in processes.share(parts):
            # hooks stay until the next pass is asked for: gradient checkpointing runs blocks again during backward
            with ExitStack() as stack:
                # where the frozen model has other prompts, it got the vector there, and the student gets an instruction
                shift = None if self.teacher is not None or known.deltas is None else self._shift(known.deltas[index])
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
        """Layers whose head outputs are compared on the rehearsal's own prompts."""
        return () if self.heads is None else self.heads.layers_read

    def _drawn(self, step: int, seed: int) -> Int[Tensor, " per_step"]:
        """The numbers of the prompts in a step."""
        # by the step alone: a resumed training draws the same prompts, and so does every process
        generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
        return torch.randint(len(self.prompts), (self.per_step,), generator=generator)

    def _rows(self, index: Int[Tensor, " rows"]) -> "Rehearsal":
        """The rehearsal of some of the prompts."""
        deltas = None if self.deltas is None else self.deltas[index]
        teacher = None if self.teacher is None else self.teacher.rows(index)
        return replace(self, prompts=self.prompts.rows(index), deltas=deltas, teacher=teacher)

    def _shift(self, deltas: Float[Tensor, "n d_model"]) -> Shift:
        return Shift(self.layer, self.site, deltas)

    def _ask_frozen(self, frozen: InTraining, read: Callable[[Answer], T]) -> list[T]:
        """Run the frozen model on the prompts that are meant for it, and apply `read` to its answers."""
        shift = None if self.deltas is None else self._shift(self.deltas)
        prompts = self.prompts if self.teacher is None else self.teacher
        return frozen.ask(prompts, read, shift=shift, layers=self.layers_held, batch_size=128)

    def _answered(self, frozen: InTraining) -> "Rehearsal":
        """The rehearsal with the frozen model's greedy answers as the answers of its prompts."""
        name = "prompts" if self.teacher is None else "teacher"
        asked: TrainingSet = getattr(self, name)
        end = base_model(frozen.plain).config.eos_token_id
        ends = torch.tensor([] if end is None else end, dtype=torch.long, device=asked.tokens.device).reshape(-1)
        # nothing follows the end of a text: from there on a row is padding, which no term counts
        written = asked.answers.new_full((len(asked), self.n_tokens), IGNORED)
        going_on = torch.arange(len(asked), device=asked.tokens.device)
        for number in range(self.n_tokens):
            # with a column for the token to come, so that there are logits for it; what it holds is never read
            told = replace(self, **{name: replace(asked, answers=written[:, : number + 1])})._rows(going_on)
            likeliest = torch.cat(told._ask_frozen(frozen, lambda answer: answer.logits[:, -1].argmax(-1)))
            written[going_on, number] = likeliest
            going_on = going_on[~torch.isin(likeliest, ends)]
            if not len(going_on):
                break
        teacher = None if self.teacher is None else replace(self.teacher, answers=written)
        return replace(self, prompts=replace(self.prompts, answers=written), teacher=teacher)


@dataclass(frozen=True, eq=False)
class Rehearsed:
    """The prompts of one training's rehearsal, with the frozen model's outputs for them.

    Attributes:
        prompts: Those of the student's prompts that the steps draw, with the frozen model's greedy answers if more than
            one token is rehearsed.
        deltas: The vector of each; None: no vectors.
        numbers: The number of each among all prompts, in ascending order.
        soft: The frozen model's distributions; None where answers are not compared.
        z: Outputs of the frozen model's heads; None where heads are not compared.
    """

    prompts: TrainingSet
    deltas: Float[Tensor, "n d_model"] | None
    numbers: Int[Tensor, " n"]
    soft: SoftTargets | None
    z: Float[Tensor, "n parts width"] | None
