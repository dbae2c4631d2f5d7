"""What guidance has to know of the model before a task: effects, heads and vectors, each measured once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.effects.measure import EffectOptions, head_effects
from ivlens.effects.results import HeadEffects
from ivlens.forward.hooks import Site
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.task import Task, TaskExample
from ivlens.vectors.heads import choose_heads
from ivlens.vectors.vector import InstructionVector


@dataclass
class Before:
    """The model before a task, and what terms of guidance measure in it.

    Attributes:
        task: What will be trained.
        recipe: How its prompts are made; earlier tasks are told by instructions or demonstrations of their own.
        earlier: Tasks that shall be kept.
        inputs: Whose inputs are rehearsed on.
        layer, site, alpha: Where vectors enter, and how strongly.
        k: Heads in every vector, and in `S`.
        n_prompts: Prompts that effects are measured on.
        known: Effects of earlier tasks by name, measured before in whatever stage of the model; for `S` alone.
        seed: Draws what is rehearsed.
    """

    model: TransformerBridge
    task: Task
    recipe: PromptRecipe
    earlier: Sequence[Task]
    inputs: Sequence[TaskExample]
    layer: int
    site: Site
    alpha: float
    k: int
    n_prompts: int
    known: Mapping[str, HeadEffects]
    seed: int
    _found: dict[str, HeadEffects] = field(default_factory=dict)

    def effects(self, task: Task) -> HeadEffects:
        """Effects of a task in this model, from its own recipe."""
        if task.name not in self._found:
            recipe = self.recipe if task.name == self.task.name else self.recipe.for_other_tasks()
            # what the model can do is judged along the training
            options = EffectOptions(n_check_prompts=0)
            self._found[task.name] = head_effects(
                self.model, task, recipe=recipe, n_prompts=self.n_prompts, options=options
            )
        return self._found[task.name]

    def vector(self, task: Task) -> Float[Tensor, " d_model"]:
        """`θ` of a task in this model."""
        return InstructionVector.from_effects(self.effects(task), self.k, model=self.model).theta

    def heads(self) -> tuple[tuple[int, int], ...]:
        """`S`: the `k` heads with the largest effect averaged over earlier tasks; without any, those of the task."""
        tasks = self.earlier or [self.task]
        return choose_heads([self._known_of(one) or self.effects(one) for one in tasks], self.k)

    def _known_of(self, task: Task) -> HeadEffects | None:
        """What was measured of a task before, and not of another one of its name."""
        found = self.known.get(task.name)
        if found is not None:
            found.check_task(task)
        return found

    def deltas(self) -> Float[Tensor, "n_earlier d_model"]:
        """`α θ_j` of every earlier task."""
        return self.alpha * torch.stack([self.vector(one) for one in self.earlier])
