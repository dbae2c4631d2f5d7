"""Rehearsal: earlier tasks are kept alive on the inputs of the new one, without any example of theirs.

A prompt of the new task's inputs is asked for an earlier task in one of three ways: by the earlier task's Instruction
Vector, added to a prompt that has no instruction; by the earlier task's instruction (its demonstrations, where it has
none); or by the instruction in the model in training and by the vector in the frozen one. The model in training must
answer as the frozen model before the task does:

    L = kl.weight · T² KL(M⁰(x, j) ‖ M(x, j))  +  heads.weight · Σ_S ‖z(x, j) - z⁰(x, j)‖² / d_head

at the last prompt token, averaged over pairs of an input `x` and an earlier task `j`; the first term also at the tokens
of the frozen model's own greedy answer, where more than its first token is rehearsed. Under a vector the first term
guards how the model *reads* an Instruction Vector; under an instruction the second one guards how its heads *write* it.
The new task's own prompts are not held back. `ivlens.tuning.rehearsed` makes the prompts.

Source: ivlens; the papers hold the new task's prompts only.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ivlens.forward.hooks import Site
from ivlens.tuning.data import IGNORED, TrainingSet, answer_logits, base_model, evaluating, last_column
from ivlens.tuning.losses import SoftTargets, Totals, head_distance, iv_kl
from ivlens.tuning.options import TuneOptions
from ivlens.tuning.processes import current
from ivlens.tuning.sites import Sites
from ivlens.tuning.terms import IVKL, HeadConsistency

REHEARSED = IVKL(weight=1.0, answers=0.0)


@dataclass(frozen=True, eq=False)
class Rehearsal:
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

    def describe(self) -> dict[str, object]:
        """Every option, as it goes into logs."""
        place = None if self.deltas is None else {"layer": self.layer, "site": self.site}
        parts = {name: part and vars(part) for name, part in (("kl", self.kl), ("heads", self.heads))}
        of_its_own = self.teacher is not None
        size = {"n": len(self.prompts), "per_step": self.per_step, "n_tokens": self.n_tokens}
        return {**size, "deltas": place, "teacher": of_its_own, **parts}

    def tensors(self) -> Sequence[Tensor | None]:
        """Everything it consists of that `describe` does not say."""
        asked = [] if self.teacher is None else vars(self.teacher).values()
        return [*vars(self.prompts).values(), self.deltas, *asked]

    def term(
        self, plain: nn.Module, sites: Sites, seed: int, options: TuneOptions | None = None
    ) -> Callable[[int], Iterator[Tensor]]:
        """Ask the model as it is now; how far it is from that in a later step, weighted, a pass at a time.

        A step's prompts are divided into as many passes as the task's own. The hooks of a pass stay until the next one
        is asked for: checkpointed blocks are run again during backward.
        """
        options = options or TuneOptions()
        asked = self if self.n_tokens == 1 else self._answered(plain, sites, options)
        return asked._distance(plain, sites, seed, options)

    def _distance(
        self, plain: nn.Module, sites: Sites, seed: int, options: TuneOptions
    ) -> Callable[[int], Iterator[Tensor]]:
        answers = self.prompts.answers
        soft, before = self._before(plain, sites, options)

        def distance(step: int) -> Iterator[Tensor]:
            generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
            drawn = torch.randint(len(self.prompts), (self.per_step,), generator=generator)
            totals = Totals.of(answers[drawn.to(answers.device)])
            processes = current()
            passes = drawn.tensor_split(min(options.accumulate * processes.size, len(drawn)))
            for part in processes.share(passes):
                with ExitStack() as stack:
                    now, index = self._ask(plain, sites, part, options, stack), part.to(answers.device)
                    terms = []
                    if self.kl is not None and soft is not None:
                        divergence = iv_kl(now.logits, soft.rows(index), answers[index], self.kl, totals)
                        terms.append(self.kl.weight * divergence)
                    if self.heads is not None and before is not None and now.z is not None:
                        terms.append(self.heads.weight * head_distance(now.z, before[index], totals))
                    yield torch.stack(terms).sum()

        return distance

    def _answered(self, plain: nn.Module, sites: Sites, options: TuneOptions) -> "Rehearsal":
        """The same with answers that the model as it is now writes by itself."""
        name = "prompts" if self.teacher is None else "teacher"
        asked: TrainingSet = getattr(self, name)
        end = base_model(plain).config.eos_token_id
        ends = torch.tensor([] if end is None else end, dtype=torch.long, device=asked.tokens.device).reshape(-1)
        written = asked.answers.new_empty(len(asked), 0)
        for _ in range(self.n_tokens):
            # the last column of answers says where one is asked for; it is never read
            with_room = replace(asked, answers=torch.cat([written, written.new_zeros(len(written), 1)], 1))
            likeliest = replace(self, **{name: with_room})._likeliest(plain, sites, options)
            over = (written == IGNORED).any(1) | torch.isin(written[:, -1:], ends).any(1)
            written = torch.cat([written, likeliest.masked_fill(over, IGNORED)[:, None]], 1)
        teacher = None if self.teacher is None else replace(self.teacher, answers=written)
        return replace(self, prompts=replace(self.prompts, answers=written), teacher=teacher)

    def _likeliest(self, plain: nn.Module, sites: Sites, options: TuneOptions) -> Int[Tensor, " n"]:
        """The token that the frozen model's answers go on with."""
        found = []
        with torch.no_grad(), evaluating(plain):
            for part in torch.arange(len(self.prompts)).split(128):
                with ExitStack() as stack:
                    found.append(self._ask(plain, sites, part, options, stack, teacher=True).logits[:, -1].argmax(-1))
        return torch.cat(found)

    def _before(
        self, plain: nn.Module, sites: Sites, options: TuneOptions
    ) -> tuple[SoftTargets | None, Float[Tensor, "n parts width"] | None]:
        """What the model says and what its heads put out for every prompt now."""
        soft, z = [], []
        with torch.no_grad(), evaluating(plain):
            for part in torch.arange(len(self.prompts)).split(128):
                with ExitStack() as stack:
                    answer = self._ask(plain, sites, part, options, stack, teacher=True)
                if self.kl is not None:
                    soft.append(SoftTargets.of(answer.logits, self.kl))
                if answer.z is not None:
                    z.append(answer.z)
        return SoftTargets.joined(soft) if soft else None, torch.cat(z) if z else None

    def _ask(
        self,
        plain: nn.Module,
        sites: Sites,
        drawn: Int[Tensor, " rows"],
        options: TuneOptions,
        stack: ExitStack,
        *,
        teacher: bool = False,
    ) -> "_Answer":
        asked = self.teacher if teacher and self.teacher is not None else self.prompts
        rows = asked.rows(drawn.to(asked.tokens.device))
        column, chosen = last_column(rows), () if self.heads is None else self.heads.heads
        if self.deltas is not None and (teacher or self.teacher is None):
            stack.enter_context(sites.shifted(plain, self.layer, self.site, column, self.deltas[drawn]))
        z = stack.enter_context(sites.head_outputs(plain, sorted({layer for layer, _ in chosen}), column))
        with options.autocast(rows.tokens.device):
            logits = answer_logits(plain, rows)
        return _Answer(logits, None if self.heads is None else sites.held(plain, z, self.heads))


class _Answer(NamedTuple):
    logits: Float[Tensor, "rows 1 d_vocab"]
    z: Float[Tensor, "rows parts width"] | None
