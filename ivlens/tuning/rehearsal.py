"""Rehearsal: old tasks are kept alive on the inputs of the new one, without any old example.

A prompt of the new task's inputs is asked for an old task in one of two ways: by the old task's Instruction Vector,
added to a prompt that has no instruction, or by the old task's instruction. The model in training must answer as the
frozen model before the task does:

    L = weight · T² KL(M⁰(x; θ_j) ‖ M(x; θ_j))   at the last prompt token, averaged over pairs of input x and old task j

Under the vector this guards how the model *reads* an Instruction Vector; the new task's own prompts, which carry an
instruction and no vector, are not held back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ivlens.models import TransformerBridge
from ivlens.prompts import PromptTemplate, build_prompts
from ivlens.tasks import Task, TaskExample
from ivlens.tuning.data import IGNORED, TrainingSet, answer_logits, as_training_set, last_column
from ivlens.tuning.guidance import IVKL
from ivlens.tuning.losses import SoftTargets, iv_kl
from ivlens.tuning.sites import Sites

REHEARSED = IVKL(weight=1.0, answers=0.0)


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """What is rehearsed.

    Attributes:
        prompts: New inputs, asked for old tasks. Of the answers nothing is read.
        deltas: What is added to each of them at its last token, `α θ_j`; None: nothing.
        layer, site: Where.
        kl: Weight and temperature.
        per_step: Prompts in every step.
    """

    prompts: TrainingSet
    deltas: Float[Tensor, "n d_model"] | None
    layer: int = 0
    site: str = "resid_post"
    kl: IVKL = REHEARSED
    per_step: int = 32

    def describe(self) -> dict[str, object]:
        """Every option, as it goes into logs."""
        place = None if self.deltas is None else {"layer": self.layer, "site": self.site}
        return {"n": len(self.prompts), "deltas": place, "kl": vars(self.kl), "per_step": self.per_step}

    def term(self, plain: nn.Module, sites: Sites, seed: int) -> Callable[[int], Tensor]:
        """Ask the model as it is now; what its divergence from that is in a later step, weighted."""
        was_training = plain.training
        plain.eval()
        with torch.no_grad():
            parts = torch.arange(len(self.prompts)).split(128)
            targets = SoftTargets.joined([SoftTargets.of(self._logits(plain, sites, part), self.kl) for part in parts])
        plain.train(was_training)

        def divergence(step: int) -> Tensor:
            generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
            index = torch.randint(len(self.prompts), (self.per_step,), generator=generator)
            logits = self._logits(plain, sites, index)
            nothing = torch.full(logits.shape[:2], IGNORED, device=logits.device)
            return self.kl.weight * iv_kl(logits, targets.rows(index.to(logits.device)), nothing, self.kl)

        return divergence

    def _logits(self, plain: nn.Module, sites: Sites, index: Tensor) -> Float[Tensor, "rows 1 d_vocab"]:
        rows = self.prompts.rows(index.to(self.prompts.tokens.device))
        if self.deltas is None:
            return answer_logits(plain, rows)
        with sites.shifted(plain, self.layer, self.site, last_column(rows), self.deltas[index]):
            return answer_logits(plain, rows)


def vector_rehearsal(
    model: TransformerBridge,
    examples: Sequence[TaskExample],
    task: Task,
    deltas: Float[Tensor, "n_vectors d_model"],
    *,
    layer: int = 0,
    site: str = "resid_post",
    n: int = 800,
    kl: IVKL = REHEARSED,
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
    return Rehearsal(prompts.rows(drawn), given, layer, site, kl)


def instruction_rehearsal(
    model: TransformerBridge,
    examples: Sequence[TaskExample],
    task: Task,
    earlier: Sequence[Task],
    *,
    n: int = 800,
    kl: IVKL = REHEARSED,
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
    return Rehearsal(TrainingSet.joined(sets), None, kl=kl)


def _first_token(data: TrainingSet) -> TrainingSet:
    """The last prompt token alone is looked at."""
    return TrainingSet(data.tokens, data.attention_mask, data.answers[:, :1])
