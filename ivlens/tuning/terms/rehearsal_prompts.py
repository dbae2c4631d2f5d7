"""Prompts of a rehearsal: inputs of the new task, with the vector, instruction or demonstrations of an earlier one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.common.checks import check_counts
from ivlens.forward.asking import fitting, prompts_for
from ivlens.forward.hooks import Site
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.build import build_prompts, sampled_prompts
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.task import Task, TaskExample
from ivlens.tuning.terms.heads import HeadConsistency
from ivlens.tuning.terms.kl import IVKL
from ivlens.tuning.terms.rehearsal import REHEARSED, Rehearsal
from ivlens.tuning.training.data import TRAINED, TrainingSet, as_training_set


@dataclass(frozen=True)
class RehearsalOptions:
    """Options of a rehearsal: how many prompts, how they are made, and what is compared on them.

    Attributes:
        n: Number of prompts: pairs of an input and a vector, or of an input and an earlier task.
        layer, site: The layer where vectors are added, and the place in that layer.
        kl, heads, n_tokens: What is compared, as in `Rehearsal`.
        recipe: How prompts are made; earlier tasks have instructions of their own. Its seed divides the splits, from
            which demonstrations come.
    """

    n: int = 800
    layer: int = 0
    site: Site = "resid_post"
    kl: IVKL | None = REHEARSED
    heads: HeadConsistency | None = None
    n_tokens: int = 1
    recipe: PromptRecipe = PromptRecipe()

    def __post_init__(self) -> None:
        check_counts(self, n=1)

    @property
    def bare(self) -> PromptRecipe:
        """The recipe of prompts without instruction and demonstrations."""
        return replace(self.recipe, instruction=None, n_shots=0)

    def rehearsal(
        self,
        prompts: TrainingSet,
        deltas: Float[Tensor, "n d_model"] | None = None,
        teacher: TrainingSet | None = None,
    ) -> Rehearsal:
        """The rehearsal of these prompts, with these options.

        Args:
            deltas: For each prompt the vector `α θ_j`; None: no vectors.
            teacher: Other prompts for the frozen model; None: the same.
        """
        parts = {"kl": self.kl, "heads": self.heads, "n_tokens": self.n_tokens}
        place = {} if deltas is None else {"layer": self.layer, "site": self.site}
        return Rehearsal(prompts, deltas, teacher, **place, **parts)


def vector_rehearsal(
    model: TransformerBridge,
    task: Task,
    examples: Sequence[TaskExample],
    deltas: Float[Tensor, "n_vectors d_model"],
    *,
    options: RehearsalOptions | None = None,
    seed: int = 0,
) -> Rehearsal:
    """A rehearsal by vectors: inputs of `task` without instruction, each with the vector of an earlier task.

    Args:
        examples: Examples of `task` whose inputs are used.
        deltas: The vector `α θ_j` of every earlier task.
        seed: Draws the pairs of input and vector.

    Raises:
        ValueError: options that `Rehearsal` refuses, or prompts that do not fit the model.
    """
    options = options or RehearsalOptions()
    batch = prompts_for(model, task, list(examples), options.bare, room=TRAINED)
    prompts = _first_token(as_training_set(model, batch))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(prompts), (options.n,), generator=generator).to(prompts.tokens.device)
    chosen = torch.randint(len(deltas), (options.n,), generator=generator)
    return options.rehearsal(prompts.rows(drawn), deltas[chosen].to(prompts.tokens.device))


def instruction_rehearsal(
    model: TransformerBridge,
    task: Task,
    examples: Sequence[TaskExample],
    earlier: Sequence[Task],
    *,
    deltas: Float[Tensor, "n_earlier d_model"] | None = None,
    options: RehearsalOptions | None = None,
    seed: int = 0,
) -> Rehearsal:
    """A rehearsal by instructions: inputs of `task` with the instructions, or demonstrations, of `earlier` tasks.

    Args:
        examples: Examples of `task` whose inputs are used.
        earlier: Tasks that the model should not forget.
        deltas: The vector `α θ_j` of every earlier task, which the frozen model gets in place of the instruction. None:
            the frozen model gets the instruction, as the student does.
        options: Options of the rehearsal; `n` is rounded up so that all earlier tasks have equally many prompts.
        seed: Draws the pairs of input and earlier task, and the instructions.

    Raises:
        ValueError: no earlier tasks, another number of `deltas` than of earlier tasks, options that `Rehearsal`
            refuses, or prompts that do not fit the model.
    """
    if not earlier or (deltas is not None and len(deltas) != len(earlier)):
        raise ValueError(
            f"instruction_rehearsal got {len(earlier)} earlier tasks and {'no' if deltas is None else len(deltas)} "
            "deltas, expected one task or more, and a delta for each or none at all."
        )
    options = options or RehearsalOptions()
    share = -(-options.n // len(earlier))  # division, rounded up
    generator = torch.Generator().manual_seed(seed)
    sets, bare = [], []
    for number, one in enumerate(earlier):
        drawn = [examples[i] for i in torch.randint(len(examples), (share,), generator=generator).tolist()]
        # renamed, since draws depend on the task's name: so they are the draws of the new task's own prompts
        asked = replace(one, name=task.name, fused=one.fused and task.fused)
        told = options.recipe.for_other_tasks()
        batch = sampled_prompts(model.tokenizer, asked, drawn, told, n=share, seed=seed + number)
        batch = fitting(model, batch, asked, told, TRAINED)
        sets.append(_first_token(as_training_set(model, batch)))
        if deltas is not None:
            # the same inputs without instruction, in the same order, for the frozen model
            unasked = build_prompts(model.tokenizer, task, batch.examples, options.bare)
            bare.append(_first_token(as_training_set(model, unasked)))
    prompts = TrainingSet.joined(sets)
    if deltas is None:
        return options.rehearsal(prompts)
    sizes = torch.tensor([len(one) for one in sets])
    return options.rehearsal(
        prompts, deltas.repeat_interleave(sizes, 0).to(prompts.tokens.device), TrainingSet.joined(bare)
    )


def _first_token(data: TrainingSet) -> TrainingSet:
    """The same prompts with answers of one token, which are never read: their length says how many logits are made."""
    return TrainingSet(data.tokens, data.attention_mask, data.answers[:, :1])
