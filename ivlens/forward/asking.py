"""Builds prompts for one model: those that do not fit its context are left out, counted, and said in the log.

Where none fits, the error says how many demonstrations would.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, NoReturn

from ivlens.forward.inputs import check_length
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.build import build_prompts
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.task import Task, TaskExample

logger = logging.getLogger(__name__)


class Room(NamedTuple):
    """What has to fit into the model's context behind a prompt.

    Attributes:
        reads: One token, the answer that is scored, or every accepted answer.
        more: Tokens behind that.
    """

    reads: Literal["first", "answer", "all"] = "all"
    more: int = 0


ALL = Room()


def prompts_for(
    model: TransformerBridge,
    task: Task,
    examples: Sequence[TaskExample],
    recipe: PromptRecipe,
    *,
    corruption: str | None = None,
    others: Sequence[Task] | Mapping[str, Task] | None = None,
    n: int | None = None,
    room: Room = ALL,
) -> PromptBatch:
    """The prompts of `build_prompts` that fit the model's context; `n_too_long` counts the others.

    Args:
        n: At most so many prompts: those of the first `n` examples or, if some of these do not fit, of the first that
            do. None: of all examples.
        room: What has to fit behind each prompt.

    Raises:
        TypeError, ValueError: as `build_prompts`; or no prompt fits, and the message says how many demonstrations
            would.
    """

    def built(some: Sequence[TaskExample]) -> PromptBatch:
        return build_prompts(model.tokenizer, task, some, recipe, corruption=corruption, others=others)

    size = len(examples) if n is None else n
    batch = built(examples[:size])
    # others take the place of those that are too long: twice as many are looked at until enough fit
    while n is not None and size < len(examples) and len(rows_that_fit(model, batch, room)) < min(len(batch), n):
        size *= 2
        batch = built(examples[:size])
    batch = fitting(model, batch, task, recipe, room)
    return batch if n is None or len(batch) <= n else batch.rows(slice(n)).narrowed()


def prompt_pairs(
    model: TransformerBridge,
    task: Task,
    examples: Sequence[TaskExample],
    recipe: PromptRecipe,
    *,
    corruption: str | None,
    n: int | None = None,
) -> tuple[PromptBatch, PromptBatch]:
    """Clean prompts and their corrupted versions, in the same order, of the examples of which both fit.

    Raises:
        TypeError, ValueError: as `prompts_for`.
    """
    clean = prompts_for(model, task, examples, recipe, n=n)
    if corruption is None:
        return clean, clean
    return same_examples(clean, prompts_for(model, task, clean.examples, recipe, corruption=corruption))


def same_examples(clean: PromptBatch, changed: PromptBatch) -> tuple[PromptBatch, PromptBatch]:
    """Two batches cut to the examples of the second one, which was made of the examples of the first.

    Both then count the examples that either of them lacks.
    """
    n_too_long = clean.n_too_long + changed.n_too_long
    place = {example.input: row for row, example in enumerate(clean.examples)}
    clean = clean.rows([place[example.input] for example in changed.examples])
    return replace(clean, n_too_long=n_too_long), replace(changed, n_too_long=n_too_long)


def fitting(
    model: TransformerBridge,
    batch: PromptBatch,
    task: Task,
    recipe: PromptRecipe,
    room: Room = ALL,
) -> PromptBatch:
    """The rows of a batch of `task` that fit the model's context, with one line in the log if others do not.

    Raises:
        ValueError: none fits; the message names the largest number of demonstrations that does.
    """
    rows = rows_that_fit(model, batch, room)
    if not rows:
        refuse_all(model, batch, task, recipe, room)
    return without_long(model, batch, task, rows)


def without_long(model: TransformerBridge, batch: PromptBatch, task: Task, rows: Sequence[int]) -> PromptBatch:
    """The given rows of a batch; the others are counted as too long, and the log says how many there are."""
    n_left = len(batch) - len(rows)
    if not n_left:
        return batch
    logger.warning(
        "%s: %d of %d prompts are left out: with their answers they are longer than the model's context (%d tokens).",
        task.name, n_left, len(batch), model.cfg.n_ctx,
    )  # fmt: skip
    return replace(batch.rows(rows).narrowed(), n_too_long=batch.n_too_long + n_left)


def rows_that_fit(model: TransformerBridge, batch: PromptBatch, room: Room = ALL) -> list[int]:
    """The numbers of the rows that fit the model's context together: the longest prompt with the longest answer.

    Each row is a row of a pass, and a pass is as wide as its longest prompt and its longest answer, which may be those
    of two rows. Of all ways to leave rows out, one is taken that keeps as many as possible.
    """
    most = model.cfg.n_ctx + 1 - room.more  # the last answer token is predicted, and takes no position of its own
    prompts, answers = batch.attention_mask.sum(1).tolist(), _answer_lengths(batch, room)
    if max(prompts) + max(answers) <= most:
        return list(range(len(batch)))
    sizes = list(zip(prompts, answers, strict=True))
    found: list[int] = []
    for longest in sorted(set(answers), reverse=True):
        rows = [row for row, (prompt, answer) in enumerate(sizes) if answer <= longest and prompt + longest <= most]
        found = max(found, rows, key=len)  # of equally many the first: that with the longer answers
    return found


def refuse_all(
    model: TransformerBridge,
    batch: PromptBatch,
    task: Task,
    recipe: PromptRecipe,
    room: Room = ALL,
) -> NoReturn:
    """Raise the error for a batch of which no row fits.

    Raises:
        ValueError: always; the message names the largest number of demonstrations that fits.
    """
    n_shots = recipe.shots(task)

    # a function: the search for the number builds prompts again
    def remedy() -> str:
        if not n_shots:
            return "use shorter inputs, or another model"
        most = most_shots(model, task, batch.examples, recipe, room)
        if most is None:
            return f"task {task.name!r} does not fit without demonstrations either; use another model"
        return f"n_shots is {n_shots}, and at most n_shots = {most} fits; ask for that, or use another model"

    shortest = min(range(len(batch)), key=lambda row: int(batch.attention_mask[row].sum()))
    longest = _answer_lengths(batch, room)[shortest] + room.more
    what = f"none of {len(batch)} prompts of task {task.name!r} fits; the shortest: "
    check_length(model, batch.attention_mask[[shortest]], longest, remedy, what=f"{what}prompt {shortest}")
    raise AssertionError("a prompt fits by itself, but was found not to fit")


def most_shots(
    model: TransformerBridge,
    task: Task,
    examples: Sequence[TaskExample],
    recipe: PromptRecipe,
    room: Room = ALL,
) -> int | None:
    """The largest number of demonstrations with which as many clean prompts fit as without any; None where none does.

    It is at most the recipe's own number. Where it would be 0, since some demonstrations are long themselves, it is the
    largest number with which a prompt fits at all.
    """

    def n_fitting(n_shots: int) -> int:
        batch = build_prompts(model.tokenizer, task, examples, replace(recipe, n_shots=n_shots))
        return len(rows_that_fit(model, batch, room))

    n_bare = n_fitting(0)
    if not n_bare:
        return None
    low = 0
    for wanted in (n_bare, 1):
        low, high = 0, recipe.shots(task) + 1  # the largest number known to do, the smallest known not to
        while high - low > 1:  # bisection: with more demonstrations a prompt only gets longer
            middle = (low + high) // 2
            low, high = (middle, high) if n_fitting(middle) >= wanted else (low, middle)
        if low:
            break
    return low


def _answer_lengths(batch: PromptBatch, room: Room) -> list[int]:
    """For each row the tokens of the longest answer that is read."""
    if room.reads == "first":
        return [1] * len(batch)
    if room.reads == "answer":
        return (batch.answer_tokens != -100).sum(1).tolist()
    return [max(map(len, answers)) for answers in batch.alternatives]
