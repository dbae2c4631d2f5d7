"""Rehearsal: old tasks are kept alive on the inputs of the new one, without any old example.

A prompt of the new task's inputs is asked for an old task in one of two ways: by the old task's Instruction Vector,
added to a prompt that has no instruction, or by the old task's instruction. The model in training must answer as the
frozen model before the task does:

    L = kl.weight · T² KL(M⁰(x, j) ‖ M(x, j))  +  heads.weight · Σ_S ‖z(x, j) - z⁰(x, j)‖² / d_head

at the last prompt token, averaged over pairs of an input `x` and an old task `j`. Under a vector the first term guards
how the model *reads* an Instruction Vector; under an instruction the second one guards how its heads *write* it. The
new task's own prompts are not held back.

Source: ivlens; the papers hold the new task's prompts only.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ivlens.models import TransformerBridge
from ivlens.prompts import PromptTemplate, build_prompts
from ivlens.tasks import Task, TaskExample
from ivlens.tuning.data import IGNORED, TrainingSet, answer_logits, as_training_set, last_column
from ivlens.tuning.guidance import IVKL, HeadConsistency
from ivlens.tuning.losses import SoftTargets, head_distance, iv_kl
from ivlens.tuning.options import TuneOptions
from ivlens.tuning.sites import Sites
from ivlens.tuning.teacher import chosen_heads

REHEARSED = IVKL(weight=1.0, answers=0.0)


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """What is rehearsed.

    Attributes:
        prompts: New inputs, asked for old tasks. Of the answers nothing is read.
        deltas: What is added to each of them at its last token, `α θ_j`; None: nothing.
        layer, site: Where.
        kl: The first term; None leaves it out.
        heads: The second term; None leaves it out.
        per_step: Prompts in every step.
    """

    prompts: TrainingSet
    deltas: Float[Tensor, "n d_model"] | None
    layer: int = 0
    site: str = "resid_post"
    kl: IVKL | None = REHEARSED
    heads: HeadConsistency | None = None
    per_step: int = 32

    def __post_init__(self) -> None:
        if self.kl is None and self.heads is None:
            raise ValueError("Rehearsal got neither kl nor heads, expected at least one of its terms.")

    def describe(self) -> dict[str, object]:
        """Every option, as it goes into logs."""
        place = None if self.deltas is None else {"layer": self.layer, "site": self.site}
        parts = {name: part and vars(part) for name, part in (("kl", self.kl), ("heads", self.heads))}
        return {"n": len(self.prompts), "deltas": place, **parts, "per_step": self.per_step}

    def term(
        self, plain: nn.Module, sites: Sites, seed: int, options: TuneOptions | None = None
    ) -> Callable[[int, ExitStack], Tensor]:
        """Ask the model as it is now; how far it is from that in a later step, weighted, all in one pass.

        The hooks of that pass are left on the stack: checkpointed blocks are run again during backward.
        """
        options = options or TuneOptions()
        was_training = plain.training
        plain.eval()
        with torch.no_grad():
            parts = torch.arange(len(self.prompts)).split(128)
            answers = []
            for part in parts:
                with ExitStack() as stack:
                    answers.append(self._ask(plain, sites, part, options, stack))
        plain.train(was_training)
        soft = None if self.kl is None else SoftTargets.joined([SoftTargets.of(one.logits, self.kl) for one in answers])
        before = None if self.heads is None else torch.cat([one.z for one in answers if one.z is not None])

        def distance(step: int, stack: ExitStack) -> Tensor:
            generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
            drawn = torch.randint(len(self.prompts), (self.per_step,), generator=generator)
            now, index = self._ask(plain, sites, drawn, options, stack), drawn.to(self.prompts.tokens.device)
            terms = []
            if self.kl is not None and soft is not None:
                nothing = torch.full(now.logits.shape[:2], IGNORED, device=index.device)
                terms.append(self.kl.weight * iv_kl(now.logits, soft.rows(index), nothing, self.kl))
            if self.heads is not None and before is not None and now.z is not None:
                terms.append(self.heads.weight * head_distance(now.z, before[index]))
            return torch.stack(terms).sum()

        return distance

    def _ask(
        self, plain: nn.Module, sites: Sites, drawn: Int[Tensor, " rows"], options: TuneOptions, stack: ExitStack
    ) -> "_Answer":
        rows = self.prompts.rows(drawn.to(self.prompts.tokens.device))
        column, chosen = last_column(rows), () if self.heads is None else self.heads.heads
        if self.deltas is not None:
            stack.enter_context(sites.shifted(plain, self.layer, self.site, column, self.deltas[drawn]))
        z = stack.enter_context(sites.head_outputs(plain, sorted({layer for layer, _ in chosen}), column))
        with options.autocast(rows.tokens.device):
            logits = answer_logits(plain, rows)
        return _Answer(logits, chosen_heads(z, chosen) if chosen else None)


class _Answer(NamedTuple):
    logits: Float[Tensor, "rows 1 d_vocab"]
    z: Float[Tensor, "rows heads d_head"] | None


def vector_rehearsal(
    model: TransformerBridge,
    examples: Sequence[TaskExample],
    task: Task,
    deltas: Float[Tensor, "n_vectors d_model"],
    *,
    layer: int = 0,
    site: str = "resid_post",
    n: int = 800,
    kl: IVKL | None = REHEARSED,
    heads: HeadConsistency | None = None,
    template: str | PromptTemplate = "plain",
    seed: int = 0,
) -> Rehearsal:
    """Inputs of `task` without instruction, each with one of the vectors.

    Args:
        deltas: `α θ_j` of every old task.
        n: Pairs of input and vector, drawn with the seed.
    """
    batch = build_prompts(model.tokenizer, task, list(examples), template=template, instruction="", seed=seed)
    prompts = _first_token(as_training_set(model, batch))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(prompts), (n,), generator=generator).to(prompts.tokens.device)
    chosen = torch.randint(len(deltas), (n,), generator=generator)
    given = deltas[chosen].to(prompts.tokens.device)
    return Rehearsal(prompts.rows(drawn), given, layer, site, kl, heads)


def instruction_rehearsal(
    model: TransformerBridge,
    examples: Sequence[TaskExample],
    task: Task,
    earlier: Sequence[Task],
    *,
    n: int = 800,
    kl: IVKL | None = REHEARSED,
    heads: HeadConsistency | None = None,
    template: str | PromptTemplate = "plain",
    seed: int = 0,
) -> Rehearsal:
    """Inputs of `task` with the instructions of `earlier` tasks, and no vector: what a vector has to be as good as."""
    share = -(-n // len(earlier))
    generator = torch.Generator().manual_seed(seed)
    sets = []
    for number, old in enumerate(earlier):
        drawn = [examples[i] for i in torch.randint(len(examples), (share,), generator=generator).tolist()]
        batch = build_prompts(
            model.tokenizer, task, drawn, template=template, instruction=old.instructions, seed=seed + number
        )
        sets.append(_first_token(as_training_set(model, batch)))
    return Rehearsal(TrainingSet.joined(sets), None, kl=kl, heads=heads)


def _first_token(data: TrainingSet) -> TrainingSet:
    """The last prompt token alone is looked at."""
    return TrainingSet(data.tokens, data.attention_mask, data.answers[:, :1])
