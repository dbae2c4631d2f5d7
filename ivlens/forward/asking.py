"""Builds prompts for one model; an error for too long ones says how many demonstrations would fit."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ivlens.forward.inputs import check_length
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.build import build_prompts
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.task import Task, TaskExample


def prompts_for(
    model: TransformerBridge,
    task: Task,
    examples: Sequence[TaskExample],
    recipe: PromptRecipe,
    *,
    corruption: str | None = None,
    others: Sequence[Task] | Mapping[str, Task] | None = None,
    n_answer: int | None = None,
) -> PromptBatch:
    """The prompts of `build_prompts`, checked to fit the model's context.

    Args:
        n_answer: How many answer tokens have to fit after the prompt; None: those of the longest accepted answer.

    Raises:
        TypeError, ValueError: as `build_prompts`; or a prompt does not fit with its answer, and the message says how
            many demonstrations would.
    """
    batch = build_prompts(model.tokenizer, task, examples, recipe, corruption=corruption, others=others)
    check_fits(model, batch, task, recipe, n_answer)
    return batch


def check_fits(
    model: TransformerBridge, batch: PromptBatch, task: Task, recipe: PromptRecipe, n_answer: int | None = None
) -> None:
    """Refuse prompts of `task` that are, with their answers, longer than the model's context.

    Raises:
        ValueError: a prompt is too long; the message names the largest number of demonstrations that fits.
    """
    n_shots = recipe.shots(task)

    # a function: the search for the number builds prompts again, and is needed only where the check fails
    def remedy() -> str:
        if not n_shots:
            return "use shorter inputs, or another model"
        most = most_shots(model, task, batch.examples, recipe, n_answer)
        if most is None:
            return f"task {task.name!r} does not fit without demonstrations either; use another model"
        return f"n_shots is {n_shots}, and at most n_shots = {most} fits; ask for that, or use another model"

    check_length(model, batch.attention_mask, n_answer or longest_answer(batch), remedy)


def most_shots(
    model: TransformerBridge,
    task: Task,
    examples: Sequence[TaskExample],
    recipe: PromptRecipe,
    n_answer: int | None = None,
) -> int | None:
    """The largest number of demonstrations with which all clean prompts fit; None where not even 0 does.

    It is at most the recipe's own number.
    """

    def fits(n_shots: int) -> bool:
        batch = build_prompts(model.tokenizer, task, examples, replace(recipe, n_shots=n_shots))
        return int(batch.attention_mask.sum(1).max()) + (n_answer or longest_answer(batch)) - 1 <= model.cfg.n_ctx

    low, high = -1, recipe.shots(task) + 1  # the largest number known to fit, the smallest known not to
    if fits(high - 1):
        return high - 1
    while high - low > 1:  # bisection: with more demonstrations a prompt only gets longer
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return None if low < 0 else low


def longest_answer(batch: PromptBatch) -> int:
    """Tokens of the longest accepted answer."""
    return max(len(answer) for answers in batch.alternatives for answer in answers)
