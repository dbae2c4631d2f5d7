"""The forms in which a task can be asked of one model.

A form is a template, a number of demonstrations, and whether the instruction is there. Forms that give the same text
count once.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from ivlens.forward.asking import most_shots, rows_that_fit
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.build import build_prompts, sampled_prompts
from ivlens.prompts.chats import ChatRefused
from ivlens.prompts.recipe import TASK, PromptRecipe
from ivlens.prompts.templates import TEMPLATES, PromptTemplate, find_template
from ivlens.tasks.task import SplitName, Task, TaskExample, split_of

logger = logging.getLogger(__name__)

Template = str | PromptTemplate
DEFAULT_SHOTS_TRIED = (0, 5, 10)


@dataclass(frozen=True, eq=False)
class Form:
    """One form, with its prompts for the examples that it is tried on.

    Attributes:
        recipes: All recipes that make these prompts; the first one is the form's name in tables.
        clean: The prompts, with instruction and demonstrations as the recipes say.
        bare: Prompts of the same inputs without instruction and demonstrations. Forms with equal bare prompts share one
            object, so that these are asked once.
        n_tokens: Mean number of tokens of a clean prompt: what asking in this form costs.
    """

    recipes: tuple[PromptRecipe, ...]
    clean: PromptBatch
    bare: PromptBatch
    n_tokens: float


def told_by(recipe: PromptRecipe) -> str:
    """The kind of a recipe's instruction, in the words of the command line: `task`, `none` or `own`."""
    return "task" if recipe.instruction is TASK else "none" if recipe.instruction is None else "own"


def templates_of(tokenizer: Any, given: Template | Sequence[Template] | None) -> list[Template]:
    """The given templates; by default the built-in ones, `chat` only where the tokenizer has a chat template.

    Raises:
        ValueError, FileNotFoundError: no templates, or one that does not exist.
    """
    if given is None:
        has_chat = bool(getattr(tokenizer, "chat_template", None))
        return [name for name, template in TEMPLATES.items() if has_chat or not template.chat]
    if isinstance(given, str | PromptTemplate):
        given = [given]
    if not given:
        raise ValueError("templates is empty, expected at least one; None tries the built-in ones.")
    return [find_template(each) for each in given]


def tried_examples(model: TransformerBridge, task: Task, n_prompts: int, seed: int) -> tuple[TaskExample, ...]:
    """*select* examples whose answers the tokenizer can spell, in an order drawn with the seed.

    A task so small that no example falls into *select* is asked on *fit*, and the log says so. *test* is never used.

    Raises:
        ValueError: both splits are empty, or no answer can be spelled.
    """
    side: SplitName = "select"
    if not any(split_of(example.input, seed) == side for example in task.examples):
        side = "fit"
        logger.warning(
            f"None of the {len(task)} examples of {task.name} is in the split 'select' with seed {seed}: "
            "its prompts are chosen on 'fit'. About 50 examples make all three splits useful."
        )
    examples = list(task.split(side, seed))
    Random(f"{seed}\0{task.name}\0forms").shuffle(examples)
    # bare prompts are the cheapest to build, and whether an answer can be spelled does not depend on the form
    bare = PromptRecipe(instruction=None, n_shots=0, seed=seed)
    return sampled_prompts(model.tokenizer, task, examples, bare, n=n_prompts, seed=seed).examples


def all_forms(
    model: TransformerBridge,
    task: Task,
    examples: Sequence[TaskExample],
    templates: Sequence[Template],
    shots: Sequence[int],
    seed: int,
) -> list[Form]:
    """Every form that says what the task is, has enough examples and fits the model; the cheapest form first.

    A form without instruction and demonstrations does not say what the task is, unless the inputs do (`fused`). All
    forms have the same inputs: those of the form in which most fit the model's context. The log counts the others.

    Raises:
        ValueError: there is no such form; the message says what was left out, and why.
    """
    # by what the model sees: the recipes that make it, and the prompts; reasons in a dict, which keeps order
    made: dict[Any, tuple[list[PromptRecipe], PromptBatch]] = {}
    left_out: dict[str, None] = {}
    for recipe in _recipes(task, templates, shots, seed):
        if reason := _too_few(task, recipe):
            left_out[reason] = None
            continue
        try:
            clean = build_prompts(model.tokenizer, task, examples, recipe)
        except ChatRefused as refused:  # a chat template that cannot show demonstrations, or cannot be used at all
            left_out[str(refused).rstrip(".")] = None
            continue
        made.setdefault(_looks(clean), ([], clean))[0].append(recipe)
    rows: list[int] = max((rows_that_fit(model, clean) for _, clean in made.values()), key=len, default=[])
    found: list[Form] = []
    bare: dict[Any, PromptBatch] = {}
    for recipes, clean in made.values():
        some = clean.rows(rows).narrowed() if rows else clean
        if reason := _too_long(model, task, some, recipes[0]):
            left_out[reason] = None
            continue
        # the same text as the corruption `drop` gives, but also for a fused task without demonstrations, for which
        # `drop` is refused
        told = replace(recipes[0], instruction=None, n_shots=0)
        nothing = build_prompts(model.tokenizer, task, some.examples, told)
        nothing = bare.setdefault(_looks(nothing), nothing)
        found.append(Form(tuple(recipes), some, nothing, float(some.attention_mask.sum(1).double().mean())))
    if not found:
        reasons = "; ".join(left_out) or "nothing tells the task: no instruction, and shots are all 0"
        raise ValueError(f"find_prompts has no form to ask task {task.name!r} in ({reasons}); give it other shots.")
    if len(rows) < len(examples):
        n_left = len(examples) - len(rows)
        logger.warning(
            "%s: %d of %d inputs are left out: their prompts are longer than the model's context, at least in the form "
            "in which most inputs fit.", task.name, n_left, len(examples),
        )  # fmt: skip
    for reason in left_out:
        logger.info("%s: left out.", reason)
    return sorted(found, key=lambda form: form.n_tokens)


def _recipes(task: Task, templates: Sequence[Template], shots: Sequence[int], seed: int) -> Iterator[PromptRecipe]:
    """Recipes of all combinations of template, shots and instruction that say what the task is."""
    # of two recipes that make the same prompts the first one names the form: `none` for a task without instructions
    told = (TASK, None) if task.instructions or task.fused else (None, TASK)
    for template in templates:
        for n_shots in shots:
            if n_shots and not find_template(template).demonstrates:
                continue
            for instruction in told:
                recipe = PromptRecipe(template, instruction, n_shots, seed)
                if n_shots or task.fused or recipe.texts(task):
                    yield recipe


def _too_few(task: Task, recipe: PromptRecipe) -> str:
    """Why there are too few examples for the demonstrations, in words; empty where there are enough."""
    n_shots = recipe.n_shots or 0
    # minus 1: effects are measured on queries from *fit* in the same form, and a query never demonstrates itself
    most = sum(split_of(example.input, recipe.seed) == "fit" for example in task.examples) - 1
    if n_shots <= max(most, 0):
        return ""
    return f"n_shots is {n_shots}, but task {task.name!r} has examples for at most n_shots = {max(most, 0)}"


def _too_long(model: TransformerBridge, task: Task, clean: PromptBatch, recipe: PromptRecipe) -> str:
    """Why the prompts do not fit the model's context, in words; empty where they fit."""
    if len(rows_that_fit(model, clean)) == len(clean):
        return ""
    n_answer = max(len(answer) for answers in clean.alternatives for answer in answers)
    n_longest = int(clean.attention_mask.sum(1).max()) + n_answer - 1
    most = most_shots(model, task, clean.examples, recipe)
    fitting = "not even 0 fit" if most is None else f"at most n_shots = {most} fits"
    return (
        f"{recipe}: prompt and answer have up to {n_longest} tokens, but the model's context has {model.cfg.n_ctx} "
        f"({fitting})"
    )


def _looks(batch: PromptBatch) -> tuple[Any, ...]:
    """What makes two forms the same: the text of their prompts, and the tokens of the expected answers."""
    return batch.texts, batch.alternatives
