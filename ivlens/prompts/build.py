"""From a task to tokens: templates, corruptions, answer tokens.

Every draw depends on the seed, the task's name and the input alone, so a prompt is the same in any batch, and a
corrupted prompt is the clean one with one thing changed.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from ivlens.prompts.templates import TEMPLATES, PromptTemplate, Renderer, find_template
from ivlens.prompts.tokens import Encoder, pad_token, padded
from ivlens.tasks.bank import load_bank
from ivlens.tasks.task import Task, TaskExample

__all__ = ["CORRUPTIONS", "TEMPLATES", "Corruption", "PromptBatch", "PromptTemplate", "build_prompts"]

logger = logging.getLogger(__name__)

Corruption = Literal["counterfactual", "drop", "shuffle", "none"]
CORRUPTIONS: tuple[str, ...] = get_args(Corruption)


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """Tokenised prompts, left-padded, with the tokens of their answers.

    Attributes:
        tokens: Left-padded, so the last prompt token is in the last column of every row.
        attention_mask: 1 for tokens, 0 for padding.
        answer_tokens: Tokens of the first listed answer, padded on the right with -100.
        foil_tokens: First answer token of the counterfactual task, -100 where there is none; None elsewhere.
        alternatives: Tokens of every accepted answer of each row, *the* answer first.
        texts: The prompts.
        examples: The example of each row.
        corruptions: What was done to each row; a counterfactual that could not be found is a `drop`. `clean`: nothing.
        instructions: The instruction each prompt carries, None where it carries none.
        counterfactuals: Name of the task whose instruction a counterfactual row carries, None elsewhere;
            may be left empty in a batch made by hand.
    """

    tokens: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    answer_tokens: Int[Tensor, "batch answer_len"]
    foil_tokens: Int[Tensor, " batch"] | None
    alternatives: tuple[tuple[tuple[int, ...], ...], ...]
    texts: tuple[str, ...]
    examples: tuple[TaskExample, ...]
    corruptions: tuple[str, ...]
    instructions: tuple[str | None, ...]
    counterfactuals: tuple[str | None, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def to(self, device: str | torch.device) -> "PromptBatch":
        """The same batch on another device."""
        return self._with_tensors(lambda tensor: tensor.to(device))

    def rows(self, index: slice | Iterable[int]) -> "PromptBatch":
        """Some of the rows, in the order asked for; columns stay as they are."""
        chosen = list(range(len(self))[index] if isinstance(index, slice) else index)
        at = torch.tensor(chosen, dtype=torch.long, device=self.tokens.device)
        names = ("alternatives", "texts", "examples", "corruptions", "instructions", "counterfactuals")
        listed = {name: tuple(each[row] for row in chosen) for name in names if (each := getattr(self, name))}
        return replace(self._with_tensors(lambda tensor: tensor[at]), **listed)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "PromptBatch":
        names = ("tokens", "attention_mask", "answer_tokens", "foil_tokens")
        tensors = {name: change(tensor) for name in names if (tensor := getattr(self, name)) is not None}
        return replace(self, **tensors)

    def expanded(self) -> tuple["PromptBatch", Int[Tensor, " rows"]]:
        """One row for every accepted answer, and the row of this batch that each was made from."""
        source = [row for row, answers in enumerate(self.alternatives) for _ in answers]
        answers = [answer for row in self.alternatives for answer in row]
        wide = replace(
            self.rows(source),
            answer_tokens=padded(answers, -100, left=False).to(self.tokens.device),
            alternatives=tuple((answer,) for answer in answers),
        )
        return wide, torch.tensor(source, device=self.tokens.device)


@dataclass(frozen=True)
class _Row:
    """One prompt before and after tokenisation."""

    example: TaskExample
    text: str
    instruction: str | None
    corruption: str
    prompt: list[int]
    answers: list[list[int]]
    foil: int = -100
    counterfactual: str | None = None


def build_prompts(
    tokenizer: Any,
    task: Task,
    examples: Sequence[TaskExample],
    *,
    template: str | PromptTemplate = "plain",
    instruction: str | Sequence[str] | None = None,
    n_shots: int = 0,
    corruption: str | None = None,
    others: Sequence[Task] | Mapping[str, Task] | None = None,
    seed: int = 0,
) -> PromptBatch:
    """Prompts that ask `task` of each example, all ending in the same cue.

    Args:
        tokenizer: The model's own.
        task: Gives instructions, and demonstrations from its `fit` split.
        examples: What to ask; their answers are tokenised together with the prompt. One whose answer the tokenizer
            cannot spell (it becomes the unknown token) is left out, with a line in the log.
        template: `plain`, `after` (instruction after the input), `qa`, `chat` (the tokenizer's chat template), or one
            of your own.
        instruction: A text; a sequence to draw from; None to draw from the task's; `""` for none (few-shot only).
        n_shots: Number of demonstrations; the queried input is never among them.
        corruption: None for clean prompts. `counterfactual`: the instruction of another task with another first answer
            token, or `drop` where there is none; `drop`: no instruction; `shuffle`: demonstrations with permuted
            answers; `none`: the clean prompt without demonstrations.
        others: Tasks that a counterfactual instruction may come from; by default the built-in ones, where for a task
            of the built-in model's training those of its training come first: other instructions are noise to it.
        seed: For every draw, and for the split that demonstrations come from.

    Raises:
        TypeError: No usable tokenizer.
        ValueError: No examples; a corruption this task cannot have; too few demonstrations; no answer that the
            tokenizer can spell.
    """
    if not examples:
        raise ValueError(f"build_prompts got no examples of task {task.name!r}, expected at least one.")
    request = _Request(task, find_template(template), instruction, n_shots, corruption, others, seed)
    maker = _Maker(Encoder(tokenizer), request)
    rows, unknown = [], []
    for row in map(maker.row, examples):
        (unknown if maker.encoder.unknown(row.answers[0]) else rows).append(row)
    if unknown:
        _report_unknown(task, [row.example.answer for row in unknown], len(rows))
    return _batch(rows, corruption, tokenizer)


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
        foil_tokens=torch.tensor([row.foil for row in rows]) if corruption == "counterfactual" else None,
        alternatives=tuple(tuple(tuple(answer) for answer in row.answers) for row in rows),
        texts=tuple(row.text for row in rows),
        examples=tuple(row.example for row in rows),
        corruptions=tuple(row.corruption for row in rows),
        instructions=tuple(row.instruction for row in rows),
        counterfactuals=tuple(row.counterfactual for row in rows),
    )


@dataclass(frozen=True)
class _Request:
    task: Task
    template: PromptTemplate
    instruction: str | Sequence[str] | None
    n_shots: int
    corruption: str | None
    others: Sequence[Task] | Mapping[str, Task] | None
    seed: int


class _Maker:
    """Makes the rows of one batch."""

    def __init__(self, encoder: Encoder, request: _Request) -> None:
        task, given = request.task, request.instruction
        self.encoder, self.task, self.seed = encoder, task, request.seed
        self.n_shots, self.corruption = request.n_shots, request.corruption
        self.render = Renderer(request.template, encoder.tokenizer, fused=task.fused)
        texts = task.instructions if given is None else [given] if isinstance(given, str) else given
        self.instructions = () if task.fused else tuple(text for text in texts if text)
        _check_request(task, self.instructions, self.n_shots, self.corruption)
        self.shots = task.split("fit", self.seed) if self.n_shots and self.corruption != "none" else ()
        self.others = self._others(request.others) if self.corruption == "counterfactual" else []
        self.prefers_trained = request.others is None and task.in_training

    def _others(self, others: Sequence[Task] | Mapping[str, Task] | None) -> list[Task]:
        given = load_bank() if others is None else others
        tasks = given.values() if isinstance(given, Mapping) else given
        own = set(self.instructions)
        return [
            other
            for other in sorted(tasks, key=lambda task: task.name)
            if other.name != self.task.name
            and other.instructions
            and not other.fused
            and own.isdisjoint(other.instructions)
        ]

    def _random(self, example: TaskExample, what: str) -> Random:
        return Random(f"{self.seed}\0{self.task.name}\0{what}\0{example.input}")

    def row(self, example: TaskExample) -> _Row:
        instruction = None
        if self.instructions:
            instruction = self._random(example, "instruction").choice(self.instructions)
        shots = [] if self.corruption == "none" else self._shots(example)
        used = self.corruption or "clean"
        foil, other = -100, None
        if self.corruption == "shuffle":
            shots = self._shuffled(example, shots)
        if self.corruption == "counterfactual":
            instruction, foil, other = self._counterfactual(example, self.render(instruction, shots, example.input))
            used = "counterfactual" if instruction else "drop"
        if self.corruption == "drop":
            instruction = None
        text, separator = self.render(instruction, shots, example.input)
        prompt, answers = self._answers(example, text, separator)
        return _Row(example, text, instruction, used, prompt, answers, foil, other)

    def _answers(self, example: TaskExample, text: str, separator: str) -> tuple[list[int], list[list[int]]]:
        prompt, answers = self.encoder.split(text, [separator + answer for answer in example.answers])
        return prompt, [answers[0], *(answer for answer in answers[1:] if not self.encoder.unknown(answer))]

    def _counterfactual(self, example: TaskExample, rendered: tuple[str, str]) -> tuple[str | None, int, str | None]:
        """Another task's instruction for the same input, the first token of its answer, and its name."""
        text, separator = rendered
        _, answers = self._answers(example, text, separator)
        firsts = {answer[0] for answer in answers}
        random = self._random(example, "counterfactual")
        order = random.sample(self.others, len(self.others))
        for other in sorted(order, key=lambda other: self.prefers_trained and not other.in_training):
            found = other.find(example.input)
            if found is None:
                continue
            _, (foil,) = self.encoder.split(text, [separator + found.answer])
            if foil[0] not in firsts and not self.encoder.unknown(foil):
                return random.choice(other.instructions), foil[0], other.name
        return None, -100, None

    def _shots(self, example: TaskExample) -> list[tuple[str, str]]:
        pool = [shot for shot in self.shots if shot.input != example.input]
        if len(pool) < self.n_shots:
            raise ValueError(
                f"task {self.task.name!r} has {len(pool)} examples to demonstrate with (its fit split without the "
                f"query), expected n_shots = {self.n_shots}; ask for fewer, or bring more examples."
            )
        random = self._random(example, "demonstrations")
        chosen = random.sample(pool, self.n_shots)
        if len(chosen) > 1 and len({shot.answer for shot in chosen}) == 1:
            # demonstrations that all have one answer show nothing, and cannot be shuffled
            different = [shot for shot in pool if shot.answer != chosen[0].answer]
            chosen[-1:] = [random.choice(different)] if different else chosen[-1:]
        return [(shot.input, shot.answer) for shot in chosen]

    def _shuffled(self, example: TaskExample, shots: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The permutation, of a few drawn ones, that gives the most demonstrations a wrong answer."""
        random = self._random(example, "shuffle")
        answers = [answer for _, answer in shots]
        if len(set(answers)) < 2:
            raise ValueError(
                f"task {self.task.name!r}: all demonstrations have the answer {answers[0]!r}, so shuffling changes "
                "nothing; use another corruption."
            )
        drawn = [random.sample(answers, len(answers)) for _ in range(20)]
        best = max(drawn, key=lambda order: sum(a != b for a, b in zip(order, answers, strict=True)))
        if best == answers:  # two demonstrations, and twenty times the same order
            best = answers[::-1]
        return [(input, answer) for (input, _), answer in zip(shots, best, strict=True)]


def _check_request(task: Task, instructions: Sequence[str], n_shots: int, corruption: str | None) -> None:
    if n_shots < 0:
        raise ValueError(f"n_shots is {n_shots}, expected 0 or more.")
    if corruption is not None and corruption not in CORRUPTIONS:
        raise ValueError(f"corruption is {corruption!r}, expected one of {', '.join(CORRUPTIONS)}, or None for clean.")
    if corruption == "shuffle" and n_shots < 2:
        raise ValueError(f"corruption 'shuffle' got n_shots = {n_shots}, expected 2 or more demonstrations to shuffle.")
    if corruption in ("counterfactual", "drop") and not instructions:
        why = "has its instruction and input in one text" if task.fused else "has no instruction in these prompts"
        raise ValueError(
            f"corruption {corruption!r} got task {task.name!r}, which {why}; use 'none', or 'shuffle' with n_shots."
        )
