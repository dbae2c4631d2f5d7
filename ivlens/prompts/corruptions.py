"""What corrupted prompts lack: each corruption takes away what tells the prompt its task, and leaves input and cue.

To add one: a name in `Corruption`, and a function in `CORRUPT` that says what a prompt is told instead.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

from ivlens.tasks.task import Task, TaskExample

Corruption = Literal["counterfactual", "counterfactual_inputs", "shuffle", "drop", "none"]
CORRUPTIONS: tuple[str, ...] = get_args(Corruption)

Shot = tuple[str, str]
NO_FOIL = -100


@dataclass(frozen=True)
class Told:
    """What tells one prompt its task.

    Attributes:
        instruction: None: the prompt has none.
        shots: Input and answer of each demonstration.
        kind: The corruption that made it, `clean` for none; another one than asked for where that was not possible.
        foil: The token that stands for the other task's answer to the same input where the first answer token is
            scored; -100 where there is none, or where it begins as the answer does.
        other: Name of the task it was taken from.
        kept: Share of demonstration answers that a permutation left where they were; None without one.
    """

    instruction: str | None
    shots: tuple[Shot, ...] = ()
    kind: str = "clean"
    foil: int = NO_FOIL
    other: str | None = None
    kept: float | None = None


@dataclass(frozen=True)
class Case:
    """One clean prompt, and what a corruption may ask about it.

    Attributes:
        task: The task that is asked.
        example: The example that is asked about.
        told: What tells the clean prompt its task.
        others: Tasks that something else may be taken from.
        prefers_trained: Whether those of the built-in model's training come first.
        draw: A random generator of its own for each purpose, the same for the same seed, task and input.
        tokens: Tokens of another answer from where the accepted answers begin; None where the tokenizer cannot spell
            it, or where it does not begin there.
        answers: Tokens of the accepted answers.
        blanks: Those of their first tokens that are white space alone, and so no part of the answer.
    """

    task: Task
    example: TaskExample
    told: Told
    others: Sequence[Task]
    prefers_trained: bool
    draw: Callable[[str], Random]
    tokens: Callable[[str], tuple[int, ...] | None]
    answers: frozenset[tuple[int, ...]]
    blanks: frozenset[int]

    def shuffled_others(self, random: Random) -> list[Task]:
        """The other tasks in an order of this prompt's own."""
        order = random.sample(self.others, len(self.others))
        return sorted(order, key=lambda other: self.prefers_trained and not other.in_training)


def _counterfactual(case: Case) -> Told:
    """Another task on the same input: its instruction, and its answers to the same demonstration inputs.

    One whose answer begins with another token comes first. Where all begin with a blank of its own (numbers, with some
    tokenizers), one whose answer is another one does, without a foil: only the whole answer tells them apart.
    """
    random = case.draw("counterfactual")
    firsts = {answer[0] for answer in case.answers}
    alike: tuple[Task, tuple[Shot, ...]] | None = None
    for other in case.shuffled_others(random):
        shots = _answered_by(other, case.told.shots)
        found = other.find(case.example.input)
        if found is None or shots is None:
            continue
        tokens = case.tokens(found.answer)
        if tokens is not None and tokens[0] not in firsts:
            return Told(_instruction_of(other, case, random), shots, "counterfactual", tokens[0], other.name)
        if tokens is not None and tokens[0] in case.blanks and tokens not in case.answers and alike is None:
            alike = other, shots
    if alike is not None:
        other, shots = alike
        return Told(_instruction_of(other, case, random), shots, "counterfactual", other=other.name)
    return _counterfactual_inputs(case) if case.told.shots else _drop(case)


def _counterfactual_inputs(case: Case) -> Told:
    """Another task's demonstrations, of inputs of its own, and its instruction."""
    random = case.draw("counterfactual inputs")
    n_shots = len(case.told.shots)
    for other in case.shuffled_others(random):
        pool = [one for one in other.examples if one.input != case.example.input]
        if len(pool) >= n_shots:
            shots = tuple((one.input, one.answer) for one in random.sample(pool, n_shots))
            return Told(_instruction_of(other, case, random), shots, "counterfactual_inputs", other=other.name)
    return _drop(case)


def _instruction_of(other: Task, case: Case, random: Random) -> str | None:
    return random.choice(other.instructions) if case.told.instruction is not None else None


def _answered_by(other: Task, shots: Sequence[Shot]) -> tuple[Shot, ...] | None:
    """The same inputs in the same order with another task's answers; None where it lacks one."""
    found = [(input, other.find(input)) for input, _ in shots]
    return tuple((input, one.answer) for input, one in found if one is not None) if all(x for _, x in found) else None


def _shuffle(case: Case) -> Told:
    """The demonstrations with their answers permuted, and no instruction.

    Of a few drawn permutations, the one that gives the most demonstrations a wrong answer.
    """
    shots = case.told.shots
    answers = [answer for _, answer in shots]
    if len(set(answers)) < 2:
        raise ValueError(
            f"task {case.task.name!r}: all demonstrations have the answer {answers[0]!r}, so shuffling changes "
            "nothing; use another corruption."
        )
    random = case.draw("shuffle")
    drawn = [random.sample(answers, len(answers)) for _ in range(20)]
    best = max(drawn, key=lambda order: sum(a != b for a, b in zip(order, answers, strict=True)))
    if best == answers:  # two demonstrations, and twenty times the same order
        best = answers[::-1]
    kept = sum(a == b for a, b in zip(best, answers, strict=True)) / len(answers)
    permuted = tuple((input, answer) for (input, _), answer in zip(shots, best, strict=True))
    return Told(None, permuted, "shuffle", kept=kept)


def _drop(case: Case) -> Told:
    """Neither instruction nor demonstrations: the bare input with its cue."""
    return Told(None, (), "drop")


def _none(case: Case) -> Told:
    """The clean prompt, nothing taken away."""
    return Told(case.told.instruction, case.told.shots, "none")


CORRUPT: Mapping[str, Callable[[Case], Told]] = {
    "counterfactual": _counterfactual,
    "counterfactual_inputs": _counterfactual_inputs,
    "shuffle": _shuffle,
    "drop": _drop,
    "none": _none,
}


def check_corruption(corruption: str | None, task: Task, n_texts: int, n_shots: int) -> None:
    """Refuse a corruption that takes nothing away from these prompts, or needs what they do not have.

    Raises:
        ValueError: no such corruption; nothing to take away; `shuffle` with fewer than two demonstrations;
            `counterfactual_inputs` without any.
    """
    if corruption is not None and corruption not in CORRUPTIONS:
        raise ValueError(
            f"corruption is {corruption!r:.60}, expected one of {', '.join(CORRUPTIONS)}, or None for clean."
        )
    if corruption == "shuffle" and n_shots < 2:
        raise ValueError(f"corruption 'shuffle' got n_shots = {n_shots}, expected 2 or more demonstrations to shuffle.")
    if corruption == "counterfactual_inputs" and not n_shots:
        raise ValueError(
            "corruption 'counterfactual_inputs' got no demonstrations, expected some whose inputs are replaced; "
            "give the recipe n_shots, or use 'counterfactual'."
        )
    if corruption in (None, "none") or n_texts or n_shots:
        return
    if task.fused:
        raise ValueError(
            f"corruption {corruption!r} got task {task.name!r}, which has its instruction and input in one text; use "
            "'none', or give the recipe n_shots."
        )
    raise ValueError(
        f"corruption {corruption!r} got prompts of task {task.name!r} with neither an instruction nor demonstrations, "
        "expected something to take away; give the recipe an instruction or n_shots."
    )
