"""One prompt for any text, whole or in pieces: what the lab shows and completes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ivlens.prompts.build import Maker
from ivlens.prompts.corruptions import Told
from ivlens.prompts.parts import Piece
from ivlens.prompts.recipe import PromptRecipe
from ivlens.prompts.rendering import Renderer
from ivlens.prompts.tokens import Encoder
from ivlens.tasks.task import Task


def prompt_text(
    tokenizer: Any,
    task: Task,
    text: str,
    recipe: PromptRecipe,
    *,
    shots: Sequence[tuple[str, str]] | None = None,
    seed: int | None = None,
) -> str:
    """The text of one clean prompt, for any input, which need not be one of the task's.

    Args:
        shots: Inputs and answers of the demonstrations; None: drawn as the recipe says.
        seed: Draws instruction and demonstrations; None: the recipe's seed. The splits are those of the recipe's seed.

    Raises:
        TypeError: no usable tokenizer.
        ValueError: too few demonstrations, demonstrations for a template without them, or an instruction for a task
            whose inputs carry their own.
    """
    render, told = _one(tokenizer, task, text, recipe, shots, seed)
    return render(told.instruction, told.shots, text)[0]


def prompt_pieces(
    tokenizer: Any,
    task: Task,
    text: str,
    recipe: PromptRecipe,
    *,
    shots: Sequence[tuple[str, str]] | None = None,
    seed: int | None = None,
) -> list[Piece]:
    """The same prompt as `prompt_text` gives, in pieces.

    Raises:
        TypeError, ValueError: as `prompt_text`; ChatRefused: the tokenizer's chat template hides where the parts stand.
    """
    render, told = _one(tokenizer, task, text, recipe, shots, seed)
    return render.pieces(told.instruction, told.shots, text)


def prompt_shots(
    tokenizer: Any, task: Task, text: str, recipe: PromptRecipe, *, seed: int | None = None
) -> tuple[tuple[str, str], ...]:
    """Input and answer of each demonstration that is drawn for the same prompt.

    Raises:
        TypeError, ValueError: as `prompt_text`.
    """
    return _one(tokenizer, task, text, recipe, None, seed)[1].shots


def _one(
    tokenizer: Any,
    task: Task,
    text: str,
    recipe: PromptRecipe,
    shots: Sequence[tuple[str, str]] | None,
    seed: int | None,
) -> tuple[Renderer, Told]:
    """What renders one prompt, and what it tells."""
    if shots is not None:
        recipe = replace(replace(recipe, n_shots=len(shots)), n_shots=0)  # the first checks that the template has some
    maker = Maker(Encoder(tokenizer), task, recipe, None, None, seed)
    told = maker.told(text)
    return maker.render, told if shots is None else replace(told, shots=tuple((x, y) for x, y in shots))
