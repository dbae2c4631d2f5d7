"""`Before`: effects, heads and vectors that guidance needs of the model before a task, each measured once."""

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


def effects_before(model: TransformerBridge, task: Task, recipe: PromptRecipe, n_prompts: int) -> HeadEffects:
    """The head effects of a task before a training, as guidance measures them."""
    # no check of accuracy: the task is judged along the training anyway
    return head_effects(model, task, recipe=recipe, n_prompts=n_prompts, options=EffectOptions(n_check_prompts=0))


@dataclass
class Before:
    """The model before a task, in which terms of guidance measure effects, heads and vectors.

    Attributes:
        model: The model before the task.
        task: The task that will be trained.
        recipe: How prompts of the task are made; earlier tasks have instructions or demonstrations of their own.
        earlier: Tasks that the model should not forget.
        inputs: Examples whose inputs are used in rehearsals.
        layer, site: The layer where vectors are added, and the place in that layer.
        alpha: The strength of vectors.
        k: Number of heads in every vector, and in `S`, the heads that are held.
        n_prompts: Number of prompts on which effects are measured.
        known: Effects of earlier tasks by name, measured at any earlier stage of the model; only `S` is chosen by them.
        seed: Draws the pairs of inputs and earlier tasks that are rehearsed.
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
    _found: dict[str, HeadEffects] = field(default_factory=dict)  # by task: several terms ask for the same effects

    def effects(self, task: Task) -> HeadEffects:
        """The head effects of a task in this model, on prompts with the task's own instruction or demonstrations."""
        if task.name not in self._found:
            recipe = self.recipe if task.name == self.task.name else self.recipe.for_other_tasks()
            self._found[task.name] = effects_before(self.model, task, recipe, self.n_prompts)
        return self._found[task.name]

    def vector(self, task: Task) -> Float[Tensor, " d_model"]:
        """The Instruction Vector `θ` of a task in this model."""
        return InstructionVector.from_effects(self.effects(task), self.k, model=self.model).theta

    def heads(self) -> tuple[tuple[int, int], ...]:
        """`S`: the `k` heads with the largest effect averaged over earlier tasks; without any, over the new task."""
        tasks = self.earlier or [self.task]
        # effects from an earlier stage of the model save a measurement, and come from a model that knew the task well
        return choose_heads([self._known_of(one) or self.effects(one) for one in tasks], self.k)

    def _known_of(self, task: Task) -> HeadEffects | None:
        """Effects of this task that were measured earlier, or None.

        Raises:
            ValueError: they are of another task with the same name.
        """
        found = self.known.get(task.name)
        if found is not None:
            found.check_task(task)
        return found

    def deltas(self) -> Float[Tensor, "n_earlier d_model"]:
        """The vector `α θ_j` of every earlier task `j`, in order."""
        return self.alpha * torch.stack([self.vector(one) for one in self.earlier])
