"""From a task to tokens: clean and corrupted prompts, and the tokens of their answers.

Every draw depends on the seed, the task's name and the input alone, so a prompt is the same in any batch, and a
corrupted prompt is the clean one with one thing changed.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import torch

from ivlens.common.arguments import checked
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.corruptions import CORRUPT, Case, Told, check_corruption
from ivlens.prompts.recipe import PromptRecipe
from ivlens.prompts.rendering import Renderer
from ivlens.prompts.templates import find_template
from ivlens.prompts.tokens import Encoder, pad_token, padded
from ivlens.tasks.bank import load_bank
from ivlens.tasks.task import Task, TaskExample, tasks_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Row:
    """One prompt before and after tokenisation."""

    example: TaskExample
    text: str
    told: Told
    prompt: list[int]
    answers: list[list[int]]


@checked
def build_prompts(
    tokenizer: Any,
    task: Task,
    examples: Sequence[TaskExample],
    recipe: PromptRecipe | None = None,
    *,
    corruption: str | None = None,
    others: Sequence[Task] | Mapping[str, Task] | None = None,
) -> PromptBatch:
    """Prompts that ask `task` of each example, all ending in the same cue.

    Args:
        tokenizer: The model's own.
        task: Gives instructions, and demonstrations from its `fit` split.
        examples: What to ask; their answers are tokenised together with the prompt. One whose answer the tokenizer
            cannot spell (it becomes the unknown token) is left out, with a line in the log.
        recipe: How clean prompts are made; None: the task's instruction in the template `plain`.
        corruption: What is taken away; None for clean prompts.

            - `counterfactual`: the instruction of another task with another first answer token (or, where all begin
              with a lone space, another answer), and that task's answers to the same demonstration inputs; where there
              is none, `counterfactual_inputs` if there are demonstrations, otherwise `drop`. Each row records which.
            - `counterfactual_inputs`: another task's instruction, and demonstrations of its own inputs.
            - `shuffle`: demonstrations with permuted answers, and no instruction.
            - `drop`: neither instruction nor demonstrations.
            - `none`: the clean prompt.
        others: Tasks that a counterfactual may come from; by default the built-in ones, where for a task of the
            built-in model's training those of its training come first: other instructions are noise to it.

    Raises:
        TypeError: No usable tokenizer.
        ValueError: No examples; a corruption that takes nothing away from these prompts; too few demonstrations; no
            answer that the tokenizer can spell.

    Source: docs/method.md, section 2.
    """
    if not examples:
        raise ValueError(f"build_prompts got no examples of task {task.name!r}, expected at least one.")
    maker = _Maker(Encoder(tokenizer), task, recipe or PromptRecipe(), corruption, others)
    return _batch(_spelled(maker, examples), corruption, tokenizer)


def sampled_prompts(
    tokenizer: Any, task: Task, examples: Sequence[TaskExample], recipe: PromptRecipe, *, n: int, seed: int
) -> PromptBatch:
    """Clean prompts of the first `n` examples that can be spelled (or of fewer); of what comes after them none is made.

    Instructions and demonstrations are drawn with `seed`; splits stay those of the recipe's seed.

    Raises:
        TypeError, ValueError: as `build_prompts`.
    """
    maker = _Maker(Encoder(tokenizer), task, recipe, None, None, seed)
    return _batch(_spelled(maker, examples, n), None, tokenizer)


def _spelled(maker: "_Maker", examples: Sequence[TaskExample], at_most: int | None = None) -> list[_Row]:
    """The rows whose answers the tokenizer can spell."""
    rows: list[_Row] = []
    unknown: list[str] = []
    for example in examples:
        if len(rows) == at_most:
            break
        row = maker.row(example)
        if maker.encoder.unknown(row.answers[0]):
            unknown.append(example.answer)
        else:
            rows.append(row)
    if unknown:
        _report_unknown(maker.task, unknown, len(rows))
    return rows


def prompt_text(tokenizer: Any, task: Task, text: str, recipe: PromptRecipe) -> str:
    """The text of one clean prompt, for an input that need not be one of the task's.

    Raises:
        TypeError: no usable tokenizer.
        ValueError: too few demonstrations, or an instruction for a task that is one text with its own.
    """
    maker = _Maker(Encoder(tokenizer), task, recipe, None, None)
    told = maker.told(text)
    return maker.render(told.instruction, told.shots, text)[0]


def _report_unknown(task: Task, answers: Sequence[str], n_left: int) -> None:
    about = f"task {task.name!r}: {len(answers)} of {len(answers) + n_left} examples have an answer that is not in the "
    about += f"tokenizer's vocabulary and becomes the unknown token (first: {answers[0]!r})"
    if not n_left:
        raise ValueError(f"{about}, expected at least one that has; use a model that can spell them.")
    logger.warning("%s: left out.", about)


def _batch(rows: Sequence[_Row], corruption: str | None, tokenizer: Any) -> PromptBatch:
    tokens = padded([row.prompt for row in rows], pad_token(tokenizer), left=True)
    mask = padded([[1] * len(row.prompt) for row in rows], 0, left=True)
    return PromptBatch(
        tokens=tokens,
        attention_mask=mask,
        answer_tokens=padded([row.answers[0] for row in rows], -100, left=False),
        foil_tokens=torch.tensor([row.told.foil for row in rows]) if corruption == "counterfactual" else None,
        alternatives=tuple(tuple(tuple(answer) for answer in row.answers) for row in rows),
        texts=tuple(row.text for row in rows),
        examples=tuple(row.example for row in rows),
        corruptions=tuple(row.told.kind for row in rows),
        instructions=tuple(row.told.instruction for row in rows),
        counterfactuals=tuple(row.told.other for row in rows),
        kept_answers=tuple(row.told.kept for row in rows),
    )


class _Maker:
    """Makes the rows of one batch."""

    def __init__(
        self,
        encoder: Encoder,
        task: Task,
        recipe: PromptRecipe,
        corruption: str | None,
        others: Sequence[Task] | Mapping[str, Task] | None,
        seed: int | None = None,
    ) -> None:
        self.encoder, self.task, self.corruption = encoder, task, corruption
        self.seed = recipe.seed if seed is None else seed
        self.render = Renderer(find_template(recipe.template), encoder.tokenizer, fused=task.fused)
        self.texts, self.n_shots = recipe.texts(task), recipe.shots(task)
        check_corruption(corruption, task, len(self.texts), self.n_shots)
        self.pool = task.split("fit", recipe.seed) if self.n_shots else ()
        self.others = self._others(others) if str(corruption).startswith("counterfactual") else []
        self.prefers_trained = others is None and task.in_training

    def _others(self, others: Sequence[Task] | Mapping[str, Task] | None) -> list[Task]:
        tasks = load_bank().values() if others is None else tasks_of("others", others, beside=[self.task])
        own = set(self.texts)
        return [
            other
            for other in sorted(tasks, key=lambda task: task.name)
            if other.name != self.task.name
            and (other.instructions or not own)
            and not other.fused
            and own.isdisjoint(other.instructions)
        ]

    def _random(self, input: str, what: str) -> Random:
        return Random(f"{self.seed}\0{self.task.name}\0{what}\0{input}")

    def told(self, input: str) -> Told:
        """What tells a clean prompt its task."""
        return Told(self._random(input, "instruction").choice(self.texts) if self.texts else None, self._shots(input))

    def row(self, example: TaskExample) -> _Row:
        told = self.told(example.input)
        if self.corruption is not None:
            told = CORRUPT[self.corruption](self._case(example, told))
        text, separator = self.render(told.instruction, told.shots, example.input)
        prompt, answers = self._answers(example, text, separator)
        return _Row(example, text, told, prompt, answers)

    def _answers(self, example: TaskExample, text: str, separator: str) -> tuple[list[int], list[list[int]]]:
        prompt, answers = self.encoder.split(text, [separator + answer for answer in example.answers])
        return prompt, [answers[0], *(answer for answer in answers[1:] if not self.encoder.unknown(answer))]

    def _case(self, example: TaskExample, told: Told) -> Case:
        text, separator = self.render(told.instruction, told.shots, example.input)
        prompt, answers = self._answers(example, text, separator)
        return Case(
            self.task,
            example,
            told,
            self.others,
            self.prefers_trained,
            lambda what: self._random(example.input, what),
            partial(self._tokens_of_another, text + separator, prompt),
            frozenset(map(tuple, answers)),
            frozenset(ids[0] for ids in answers if self.encoder.is_blank(ids[0])),
        )

    def _tokens_of_another(self, text: str, prompt: list[int], answer: str) -> tuple[int, ...] | None:
        """Tokens of an answer after `text`, whose own are `prompt`; None where it does not begin there."""
        ids = self.encoder.ids(text + answer)
        # another answer may run into the cue where this one does not: its first token is not predicted here
        begins_here = ids[: len(prompt)] == prompt and len(ids) > len(prompt)
        return tuple(ids[len(prompt) :]) if begins_here and not self.encoder.unknown(ids[len(prompt) :]) else None

    def _shots(self, input: str) -> tuple[tuple[str, str], ...]:
        if not self.n_shots:
            return ()
        pool = [shot for shot in self.pool if shot.input != input]
        if len(pool) < self.n_shots:
            raise ValueError(
                f"n_shots is {self.n_shots}, but task {self.task.name!r} has {len(pool)} examples to demonstrate with "
                f"(its fit split without the query); ask for at most n_shots = {len(pool)}, or bring more examples."
            )
        random = self._random(input, "demonstrations")
        chosen = random.sample(pool, self.n_shots)
        if len(chosen) > 1 and len({shot.answer for shot in chosen}) == 1:
            # demonstrations that all have one answer show nothing, and cannot be shuffled
            different = [shot for shot in pool if shot.answer != chosen[0].answer]
            chosen[-1:] = [random.choice(different)] if different else chosen[-1:]
        return tuple((shot.input, shot.answer) for shot in chosen)
