"""What is rehearsed: inputs of the new task, asked for earlier tasks by vectors, instructions or demonstrations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.common.checks import check_counts
from ivlens.forward.hooks import Site
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.build import build_prompts, sampled_prompts
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.task import Task, TaskExample
from ivlens.tuning.terms.heads import HeadConsistency
from ivlens.tuning.terms.kl import IVKL
from ivlens.tuning.terms.rehearsal import REHEARSED, Rehearsal
from ivlens.tuning.training.data import TrainingSet, as_training_set


@dataclass(frozen=True)
class RehearsalOptions:
    """What a rehearsal consists of, beside its prompts' tasks and vectors.

    Attributes:
        n: Prompts in all: pairs of an input and a vector, or of an input and an earlier task.
        layer, site: Where vectors enter.
        kl, heads, n_tokens: As of `Rehearsal`.
        recipe: How prompts are made, of earlier tasks by their own instructions; its seed is that of the splits, from
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
        """Prompts that nothing tells their task."""
        return replace(self.recipe, instruction=None, n_shots=0)

    def rehearsal(
        self,
        prompts: TrainingSet,
        deltas: Float[Tensor, "n d_model"] | None = None,
        teacher: TrainingSet | None = None,
    ) -> Rehearsal:
        """Of these prompts."""
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
    """Inputs of `task` that nothing tells their task, each with one of the vectors.

    Args:
        deltas: `α θ_j` of every earlier task.
        seed: Draws the pairs of input and vector.

    Raises:
        ValueError: options that `Rehearsal` refuses, or prompts that do not fit the model.
    """
    options = options or RehearsalOptions()
    batch = build_prompts(model.tokenizer, task, list(examples), options.bare)
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
    """Inputs of `task` with what tells `earlier` tasks: their instructions, or demonstrations where they have none.

    Args:
        deltas: `α θ_j` of every earlier task: the frozen model gets it in place of the instruction. None: it gets the
            instruction too, which is what a vector has to be as good as.
        options: `n` is rounded up to as many of each earlier task.
        seed: Draws the pairs of input and earlier task, and the instructions.

    Raises:
        ValueError: no earlier tasks, not one of `deltas` for each, options that `Rehearsal` refuses, or prompts that do
            not fit the model.
    """
    if not earlier or (deltas is not None and len(deltas) != len(earlier)):
        raise ValueError(
            f"instruction_rehearsal got {len(earlier)} earlier tasks and {'no' if deltas is None else len(deltas)} "
            "deltas, expected one task or more, and a delta for each or none at all."
        )
    options = options or RehearsalOptions()
    share = -(-options.n // len(earlier))
    generator = torch.Generator().manual_seed(seed)
    sets, bare = [], []
    for number, one in enumerate(earlier):
        drawn = [examples[i] for i in torch.randint(len(examples), (share,), generator=generator).tolist()]
        # under the new task's name, by which every draw goes; its inputs are asked as the earlier task asks
        asked = replace(one, name=task.name, fused=one.fused and task.fused)
        told = options.recipe.for_other_tasks()
        batch = sampled_prompts(model.tokenizer, asked, drawn, told, n=share, seed=seed + number)
        sets.append(_first_token(as_training_set(model, batch)))
        if deltas is not None:
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
    """What the answer is does not matter, and of its tokens the first alone is asked for."""
    return TrainingSet(data.tokens, data.attention_mask, data.answers[:, :1])
