"""Corruptions: each removes from a prompt what tells the model its task, and leaves the input and the cue.

To add a corruption, add a name to `Corruption`, and to `CORRUPT` a function that makes the `Told` of such prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

from ivlens.tasks.task import Task, TaskExample

Corruption = Literal["counterfactual", "counterfactual_inputs", "shuffle", "drop", "none"]
CORRUPTIONS: tuple[str, ...] = get_args(Corruption)

Shot = tuple[str, str]
NO_FOIL = -100  # no token has this number


@dataclass(frozen=True)
class Told:
    """What one prompt tells the model about its task: an instruction, demonstrations, or both.

    Attributes:
        instruction: The instruction; None: the prompt has none.
        shots: Input and answer of each demonstration.
        kind: The corruption that was used, which differs from the one asked for where that was not possible; `clean`:
            none.
        foil: The first token of the other task's answer to the same input; -100 where there is no such answer, or
            where it begins with the same token as the right one.
        other: The name of the other task, None where there is none.
        kept: The share of demonstration answers that `shuffle` left in their places; None for other corruptions.
    """

    instruction: str | None
    shots: tuple[Shot, ...] = ()
    kind: str = "clean"
    foil: int = NO_FOIL
    other: str | None = None
    kept: float | None = None


@dataclass(frozen=True)
class Case:
    """One clean prompt, and what a corruption needs to change it.

    Attributes:
        task: The task that is asked.
        example: The example that is asked about.
        told: The instruction and the demonstrations of the clean prompt.
        others: Tasks that another instruction or other answers may be taken from.
        prefers_trained: Whether tasks that the built-in model was trained on come first among the others.
        draw: Gives a random generator for a purpose, the same for the same seed, task, input and purpose.
        tokens: Gives the tokens of another answer from the position where the accepted answers begin; None where the
            tokenizer cannot write it, or where it does not begin at that position.
        answers: The tokens of each accepted answer.
        blanks: First tokens of accepted answers that are white space alone, and so tell nothing about the answer.
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
        """The other tasks in a random order, with those to be preferred first."""
        order = random.sample(self.others, len(self.others))
        # sorting keeps the random order among equals
        return sorted(order, key=lambda other: self.prefers_trained and not other.in_training)


def _counterfactual(case: Case) -> Told:
    """Another task's instruction, and its answers to the same demonstration inputs.

    The task is the first whose answer to the same input begins with another token. Where there is none because answers
    begin with a token of white space (numbers, with some tokenizers), a task whose whole answer differs is taken. It
    gives no foil, as the first tokens are the same. See docs/method.md, 2 Prompts and corruptions.
    """
    random = case.draw("counterfactual")
    firsts = {answer[0] for answer in case.answers}
    alike: tuple[Task, tuple[Shot, ...]] | None = None
    for other in case.shuffled_others(random):
        shots = _answered_by(other, case.told.shots)
        found = other.find(case.example.input)
        if found is None or shots is None:
            continue  # this task cannot be asked about all of these inputs
        if case.told.instruction is None and shots == case.told.shots:
            continue  # its answers are the same here: the prompt would stay as it is
        tokens = case.tokens(found.answer)
        if tokens is not None and tokens[0] not in firsts:
            return Told(_instruction_of(other, case, random), shots, "counterfactual", tokens[0], other.name)
        # kept for the case that no task has another first token
        if tokens is not None and tokens[0] in case.blanks and tokens not in case.answers and alike is None:
            alike = other, shots
    if alike is not None:
        other, shots = alike
        return Told(_instruction_of(other, case, random), shots, "counterfactual", other=other.name)
    return _counterfactual_inputs(case) if case.told.shots else _drop(case)


def _counterfactual_inputs(case: Case) -> Told:
    """Another task's instruction, and demonstrations of that task with inputs of its own."""
    random = case.draw("counterfactual inputs")
    n_shots = len(case.told.shots)
    for other in case.shuffled_others(random):
        pool = [one for one in other.examples if one.input != case.example.input]
        if len(pool) >= n_shots:
            shots = tuple((one.input, one.answer) for one in random.sample(pool, n_shots))
            return Told(_instruction_of(other, case, random), shots, "counterfactual_inputs", other=other.name)
    return _drop(case)


def _instruction_of(other: Task, case: Case, random: Random) -> str | None:
    """One of the other task's instructions; None where the clean prompt has none either."""
    return random.choice(other.instructions) if case.told.instruction is not None else None


def _answered_by(other: Task, shots: Sequence[Shot]) -> tuple[Shot, ...] | None:
    """The same demonstrations with another task's answers; None where that task lacks one of the inputs."""
    found = [(input, other.find(input)) for input, _ in shots]
    return tuple((input, one.answer) for input, one in found if one is not None) if all(x for _, x in found) else None


def _shuffle(case: Case) -> Told:
    """The demonstrations with permuted answers, and no instruction.

    Of 20 random permutations it takes the one that gives most demonstrations a wrong answer.
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
    if best == answers:  # two demonstrations, drawn twenty times in their own order
        best = answers[::-1]
    kept = sum(a == b for a, b in zip(best, answers, strict=True)) / len(answers)
    permuted = tuple((input, answer) for (input, _), answer in zip(shots, best, strict=True))
    return Told(None, permuted, "shuffle", kept=kept)


def _drop(case: Case) -> Told:
    """Neither an instruction nor demonstrations: the bare input with its cue."""
    return Told(None, (), "drop")


def _none(case: Case) -> Told:
    """The clean prompt, from which nothing is taken away."""
    return Told(case.told.instruction, case.told.shots, "none")


CORRUPT: Mapping[str, Callable[[Case], Told]] = {
    "counterfactual": _counterfactual,
    "counterfactual_inputs": _counterfactual_inputs,
    "shuffle": _shuffle,
    "drop": _drop,
    "none": _none,
}


def check_corruption(corruption: str | None, task: Task, n_texts: int, n_shots: int) -> None:
    """Refuse a corruption that takes nothing away from these prompts, or that needs demonstrations they do not have.

    Args:
        corruption: Its name; None for clean prompts.
        task: The task that is asked.
        n_texts: How many instructions the prompts may carry.
        n_shots: How many demonstrations each prompt has.

    Raises:
        ValueError: no such corruption, nothing to take away, `shuffle` with fewer than two demonstrations, or
            `counterfactual_inputs` without any.
    """
    if corruption is not None and corruption not in CORRUPTIONS:
        raise ValueError(
            f"corruption is {corruption!r:.60}, expected one of {', '.join(CORRUPTIONS)}, or None for clean."
        )
    if corruption == "shuffle" and n_shots < 2:
        raise ValueError(
            f"corruption 'shuffle' got n_shots = {n_shots}, expected 2 or more demonstrations to shuffle; give the "
            f"recipe n_shots, or bring more examples: task {task.name!r} has {len(task)}, and about half of them can "
            "be demonstrations."
        )
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
