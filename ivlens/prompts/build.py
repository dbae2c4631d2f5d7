"""From a task to tokens: clean and corrupted prompts, and the tokens of their answers.

Every draw depends on the seed, the task's name and the input alone. So a prompt is the same in any batch, and its
corrupted form differs from the clean one in nothing but the corruption.
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
    """A batch of prompts that ask `task` about each example, all ending in the same cue.

    Args:
        tokenizer: The model's tokenizer.
        task: Gives the instructions, and the demonstrations (from its `fit` split).
        examples: The examples to ask about; their answers are tokenised together with the prompt. An example whose
            answer the tokenizer cannot write (it becomes the unknown token) is left out, and the log says so.
        recipe: How clean prompts are made; None: the task's instruction in the template `plain`.
        corruption: What is taken away from the prompts; None for clean prompts.

            - `counterfactual`: the prompt has the instruction of another task, and that task's answers to the same
              demonstration inputs. The other task's answer to the input begins with another token; where answers
              begin with a token of white space, the whole answer differs. Where no task fits, the row is made as
              `counterfactual_inputs` if it has demonstrations, otherwise as `drop`; each row records how it was made.
            - `counterfactual_inputs`: the prompt has another task's instruction, and that task's demonstrations.
            - `shuffle`: the demonstrations have permuted answers, and there is no instruction.
            - `drop`: the prompt has neither an instruction nor demonstrations.
            - `none`: the clean prompt.
        others: Tasks that counterfactuals are taken from; None: the built-in ones. If the built-in model was trained
            on `task`, the built-in tasks of that training are tried first, as this model does not understand the
            instructions of other tasks.

    Raises:
        TypeError: no usable tokenizer.
        ValueError: no examples, a corruption that takes nothing away from these prompts, too few demonstrations, or no
            answer that the tokenizer can write.

    Source: docs/method.md, 2 Prompts and corruptions.
    """
    if not examples:
        raise ValueError(f"build_prompts got no examples of task {task.name!r}, expected at least one.")
    maker = Maker(Encoder(tokenizer), task, recipe or PromptRecipe(), corruption, others)
    return _batch(_writable(maker, examples), corruption, tokenizer)


def sampled_prompts(
    tokenizer: Any, task: Task, examples: Sequence[TaskExample], recipe: PromptRecipe, *, n: int, seed: int
) -> PromptBatch:
    """Clean prompts of the first `n` examples whose answers the tokenizer can write, or of all if there are fewer.

    Instructions and demonstrations are drawn with `seed`; the splits stay those of the recipe's seed.

    Raises:
        TypeError: no usable tokenizer.
        ValueError: too few demonstrations, or no answer that the tokenizer can write.
    """
    maker = Maker(Encoder(tokenizer), task, recipe, None, None, seed)
    return _batch(_writable(maker, examples, n), None, tokenizer)


def _writable(maker: "Maker", examples: Sequence[TaskExample], at_most: int | None = None) -> list[_Row]:
    """The rows of the examples whose answers the tokenizer can write; after `at_most` of them no more are made."""
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


def _report_unknown(task: Task, answers: Sequence[str], n_left: int) -> None:
    """Log which answers the tokenizer cannot write; an error if no example is left."""
    about = f"task {task.name!r}: {len(answers)} of {len(answers) + n_left} examples have an answer that is not in the "
    about += f"tokenizer's vocabulary and becomes the unknown token (first: {answers[0]!r})"
    if not n_left:
        raise ValueError(f"{about}, expected at least one that is in it; use a model whose tokenizer can write them.")
    logger.warning("%s: left out.", about)


def _batch(rows: Sequence[_Row], corruption: str | None, tokenizer: Any) -> PromptBatch:
    """The rows as one batch."""
    tokens = padded([row.prompt for row in rows], pad_token(tokenizer), left=True)
    mask = padded([[1] * len(row.prompt) for row in rows], 0, left=True)
    return PromptBatch(
        tokens=tokens,
        attention_mask=mask,
        answer_tokens=padded([row.answers[0] for row in rows], -100, left=False),
        # only answers of another task to the same input can be foils
        foil_tokens=torch.tensor([row.told.foil for row in rows]) if corruption == "counterfactual" else None,
        alternatives=tuple(tuple(tuple(answer) for answer in row.answers) for row in rows),
        texts=tuple(row.text for row in rows),
        examples=tuple(row.example for row in rows),
        corruptions=tuple(row.told.kind for row in rows),
        instructions=tuple(row.told.instruction for row in rows),
        counterfactuals=tuple(row.told.other for row in rows),
        kept_answers=tuple(row.told.kept for row in rows),
        shots=tuple(row.told.shots for row in rows),
    )


class Maker:
    """Makes the rows of one batch, each from its example alone.

    Args:
        encoder: The tokenizer.
        task: The task that is asked.
        recipe: How clean prompts are made.
        corruption: What is taken away, or None.
        others: Tasks that counterfactuals are taken from; None: the built-in ones.
        seed: Seed of the draws; None: the recipe's. The splits are those of the recipe's seed in any case.
    """

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
        # from `fit`, so that what is chosen or judged on the other splits is never demonstrated
        self.pool = task.split("fit", recipe.seed) if self.n_shots else ()
        self.others = self._others(others) if str(corruption).startswith("counterfactual") else []
        # where the caller chose the tasks, none is preferred
        self.prefers_trained = others is None and task.in_training

    def _others(self, others: Sequence[Task] | Mapping[str, Task] | None) -> list[Task]:
        """The tasks that counterfactuals can be taken from, sorted by name so that draws do not depend on their order.

        Left out are the task itself, tasks that share an instruction with it, tasks without an instruction where the
        prompt has one, and tasks whose instruction and input are one text.
        """
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
        """A generator for one purpose and one input: draws for one thing do not change those for another."""
        # NUL is in no name, so two different lists of parts never make the same text
        return Random(f"{self.seed}\0{self.task.name}\0{what}\0{input}")

    def told(self, input: str) -> Told:
        """The instruction and the demonstrations of a clean prompt."""
        return Told(self._random(input, "instruction").choice(self.texts) if self.texts else None, self._shots(input))

    def row(self, example: TaskExample) -> _Row:
        """The prompt for one example, corrupted if that was asked for, with the tokens of its answers."""
        told = self.told(example.input)
        if self.corruption is not None:
            told = CORRUPT[self.corruption](self._case(example, told))
        text, separator = self.render(told.instruction, told.shots, example.input)
        prompt, answers = self._answers(example, text, separator)
        return _Row(example, text, told, prompt, answers)

    def _answers(self, example: TaskExample, text: str, separator: str) -> tuple[list[int], list[list[int]]]:
        """The tokens of a prompt, and those of its answers; the first answer stays even if it cannot be written."""
        prompt, answers = self.encoder.split(text, [separator + answer for answer in example.answers])
        # other accepted answers that cannot be written can never be given, and would only match the unknown token
        return prompt, [answers[0], *(answer for answer in answers[1:] if not self.encoder.unknown(answer))]

    def _case(self, example: TaskExample, told: Told) -> Case:
        """One clean prompt, and what a corruption needs to change it."""
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
        # where another answer shares a token with the cue, its first token is not predicted at this position
        begins_here = ids[: len(prompt)] == prompt and len(ids) > len(prompt)
        return tuple(ids[len(prompt) :]) if begins_here and not self.encoder.unknown(ids[len(prompt) :]) else None

    def _shots(self, input: str) -> tuple[tuple[str, str], ...]:
        """Inputs and answers of the demonstrations in the prompt for one input, never that input itself."""
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
            # demonstrations with one answer only do not show the task, and cannot be shuffled
            different = [shot for shot in pool if shot.answer != chosen[0].answer]
            chosen[-1:] = [random.choice(different)] if different else chosen[-1:]
        return tuple((shot.input, shot.answer) for shot in chosen)
