"""From a task to tokens: templates, corruptions, answer tokens.

Every draw depends on the seed, the task's name and the input alone, so a prompt is the same in any batch, and a
corrupted prompt is the clean one with one thing changed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from ivlens._tokens import Encoder, pad_token
from ivlens.tasks import Task, TaskExample, load_bank
from ivlens.templates import TEMPLATES, PromptTemplate, Renderer, find_template

__all__ = ["CORRUPTIONS", "TEMPLATES", "Corruption", "PromptBatch", "PromptTemplate", "build_prompts"]

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

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def last(self) -> Int[Tensor, " batch"]:
        """Column of the last prompt token of each row: the last one."""
        return torch.full((len(self),), self.tokens.shape[1] - 1, device=self.tokens.device)

    def to(self, device: str | torch.device) -> "PromptBatch":
        """The same batch on another device."""
        foils = None if self.foil_tokens is None else self.foil_tokens.to(device)
        return replace(
            self,
            tokens=self.tokens.to(device),
            attention_mask=self.attention_mask.to(device),
            answer_tokens=self.answer_tokens.to(device),
            foil_tokens=foils,
        )

    def rows(self, index: slice | Iterable[int]) -> "PromptBatch":
        """Some of the rows, in the order asked for; columns stay as they are."""
        chosen = list(range(len(self))[index] if isinstance(index, slice) else index)
        at = torch.tensor(chosen, dtype=torch.long, device=self.tokens.device)
        return replace(
            self,
            tokens=self.tokens[at],
            attention_mask=self.attention_mask[at],
            answer_tokens=self.answer_tokens[at],
            foil_tokens=None if self.foil_tokens is None else self.foil_tokens[at],
            **{
                name: tuple(getattr(self, name)[row] for row in chosen)
                for name in ("alternatives", "texts", "examples", "corruptions", "instructions")
            },
        )

    def expanded(self) -> tuple["PromptBatch", Int[Tensor, " rows"]]:
        """One row for every accepted answer, and the row of this batch that each was made from."""
        source = [row for row, answers in enumerate(self.alternatives) for _ in answers]
        answers = [answer for row in self.alternatives for answer in row]
        wide = replace(
            self.rows(source),
            answer_tokens=_padded(answers, -100, left=False).to(self.tokens.device),
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
        examples: What to ask; their answers are tokenised together with the prompt.
        template: `plain`, `after` (instruction after the input), `qa`, `chat` (the tokenizer's chat template), or one
            of your own.
        instruction: A text; a sequence to draw from; None to draw from the task's; `""` for none (few-shot only).
        n_shots: Number of demonstrations; the queried input is never among them.
        corruption: None for clean prompts. `counterfactual`: the instruction of another task with another first answer
            token, or `drop` where there is none; `drop`: no instruction; `shuffle`: demonstrations with permuted
            answers; `none`: the clean prompt without demonstrations.
        others: Tasks that a counterfactual instruction may come from; by default the built-in ones.
        seed: For every draw, and for the split that demonstrations come from.

    Raises:
        TypeError: No usable tokenizer.
        ValueError: No examples; a corruption this task cannot have; too few demonstrations; an answer that the
            tokenizer cannot spell.
    """
    if not examples:
        raise ValueError(f"build_prompts got no examples of task {task.name!r}, expected at least one.")
    request = _Request(task, find_template(template), instruction, n_shots, corruption, others, seed)
    maker = _Maker(Encoder(tokenizer), request)
    return _batch([maker.row(example) for example in examples], corruption, tokenizer)


def _batch(rows: Sequence[_Row], corruption: str | None, tokenizer: Any) -> PromptBatch:
    tokens = _padded([row.prompt for row in rows], pad_token(tokenizer), left=True)
    mask = _padded([[1] * len(row.prompt) for row in rows], 0, left=True)
    return PromptBatch(
        tokens=tokens,
        attention_mask=mask,
        answer_tokens=_padded([row.answers[0] for row in rows], -100, left=False),
        foil_tokens=torch.tensor([row.foil for row in rows]) if corruption == "counterfactual" else None,
        alternatives=tuple(tuple(tuple(answer) for answer in row.answers) for row in rows),
        texts=tuple(row.text for row in rows),
        examples=tuple(row.example for row in rows),
        corruptions=tuple(row.corruption for row in rows),
        instructions=tuple(row.instruction for row in rows),
    )


def _padded(rows: Sequence[Sequence[int]], value: int, *, left: bool) -> Int[Tensor, "batch width"]:
    out = torch.full((len(rows), max(len(row) for row in rows)), value)
    for filled, row in zip(out, rows, strict=True):
        filled[out.shape[1] - len(row) if left else 0 :][: len(row)] = torch.tensor(row)
    return out


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
        foil = -100
        if self.corruption == "shuffle":
            shots = self._shuffled(example, shots)
        if self.corruption == "counterfactual":
            instruction, foil = self._counterfactual(example, self.render(instruction, shots, example.input))
            used = "counterfactual" if instruction else "drop"
        if self.corruption == "drop":
            instruction = None
        text, separator = self.render(instruction, shots, example.input)
        prompt, answers = self._answers(example, text, separator)
        return _Row(example, text, instruction, used, prompt, answers, foil)

    def _answers(self, example: TaskExample, text: str, separator: str) -> tuple[list[int], list[list[int]]]:
        prompt, answers = self.encoder.split(text, [separator + answer for answer in example.answers])
        if self.encoder.unknown(answers[0]):
            raise ValueError(
                f"answer {example.answer!r} of task {self.task.name!r} is not in the tokenizer's vocabulary (it "
                "becomes the unknown token), so no model can give it; leave the example out."
            )
        return prompt, [answers[0], *(answer for answer in answers[1:] if not self.encoder.unknown(answer))]

    def _counterfactual(self, example: TaskExample, rendered: tuple[str, str]) -> tuple[str | None, int]:
        """Another task's instruction for the same input, and the first token of its answer."""
        text, separator = rendered
        _, answers = self._answers(example, text, separator)
        firsts = {answer[0] for answer in answers}
        random = self._random(example, "counterfactual")
        for other in random.sample(self.others, len(self.others)):
            found = other.find(example.input)
            if found is None:
                continue
            _, (foil,) = self.encoder.split(text, [separator + found.answer])
            if foil[0] not in firsts:
                return random.choice(other.instructions), foil[0]
        return None, -100

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
