"""Tasks: inputs and their answers, instructions that ask for them, and the splits for choosing and for judging."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

from ivlens.common.arguments import check_fields, checked
from ivlens.common.checks import Texts, as_items, set_items
from ivlens.common.names import set_shown

SplitName = Literal["fit", "select", "test"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskExample:
    """One input with its right answers, the first of which is *the* answer.

    Attributes:
        input: The text the task is asked about.
        answers: At least one. The first is scored; the others count for accuracy only. A text is one answer.
        part: The file or split of the source that it comes from (`train`, `eval`, `test`), or empty.
    """

    input: str
    answers: Texts
    part: str = ""

    def __post_init__(self) -> None:
        if type(self.answers) is not tuple or set(map(type, (self.input, self.part, *self.answers))) != {str}:
            set_items(self, "answers")
            check_fields(self)  # slow, so left out where all types are right, as in files of thousands of examples
        if not self.answers or not all(answer.strip() for answer in self.answers):
            raise ValueError(
                f"TaskExample {self.input!r:.60} has answers {self.answers!r:.60}, expected one or more texts that "
                "are not empty; leave the example out."
            )

    @property
    def answer(self) -> str:
        """The answer that is scored."""
        return self.answers[0]


if TYPE_CHECKING:
    Examples = tuple[TaskExample, ...]
else:  # at run time: what callers may give; it is turned into a tuple
    Examples = TaskExample | Iterable[TaskExample]


@checked
@dataclass(frozen=True)
class Task:
    """A named set of examples, with the instructions that ask for their answers and what else is known about them.

    Attributes:
        name: A short name; where the source has none, the name of the file or folder.
        examples: The examples in the order of the source; no two have the same input.
        instructions: Paraphrases of the instruction, any of which may stand in a prompt; empty where none is known.
        held_out_instructions: Paraphrases that the built-in model has never seen.
        clozes: Beginnings of sentences with `{x}` for the input, which ask for the answer without an instruction.
        prose: Sentences with `{x}` for the input and `{y}` for the answer, which state the answer as a fact.
        kind: lexical, rule, fact, morphology, sequence or choice; empty outside the bank.
        inputs: The name of the group of tasks that share exactly these inputs; empty outside the bank.
        in_training: Whether the built-in model was trained on the task.
        fused: Whether instruction and input are one text (as in TRACE): the prompt is the input as it is.
        source: Where the task was read from.
        skipped: One line for each record that was left out, with the reason.
        demonstrations: Worked examples that the source sets apart (the positive examples of Natural-Instructions).
    """

    name: str
    examples: Examples
    instructions: Texts = ()
    held_out_instructions: Texts = ()
    clozes: Texts = ()
    prose: Texts = ()
    kind: str = ""
    inputs: str = ""
    in_training: bool = False
    fused: bool = False
    source: str = ""
    skipped: Texts = ()
    demonstrations: Examples = ()

    def __post_init__(self) -> None:
        set_shown(self, "name")
        set_items(self, "examples", "demonstrations", kind=TaskExample)
        set_items(self, "instructions", "held_out_instructions", "clozes", "prose", "skipped")
        if not self.examples:
            place = self.source or "where it comes from"
            raise ValueError(f"Task {self.name!r} has no examples, expected at least one; check {place}.")
        for which in ("instructions", "held_out_instructions"):
            if not all(text.strip() for text in getattr(self, which)):
                raise ValueError(f"Task {self.name!r:.60} has empty {which}, expected texts; leave them out.")
        # a repeated input would be in two examples of one split, with different answers
        n_repeated = len(self.examples) - len(self._by_input)
        if n_repeated:
            raise ValueError(
                f"Task {self.name!r} lists {n_repeated} inputs twice, expected distinct inputs; "
                "merge their answers into one TaskExample."
            )

    def __len__(self) -> int:
        return len(self.examples)

    def __repr__(self) -> str:
        return f"Task({self.name!r}, {len(self.examples)} examples, {len(self.instructions)} instructions)"

    def _repr_html_(self) -> str:
        from ivlens.show.tables import task_html

        return task_html(self)

    @cached_property
    def _by_input(self) -> dict[str, TaskExample]:
        """The examples by their inputs."""
        return {example.input: example for example in self.examples}

    def find(self, input: str) -> TaskExample | None:
        """The example with exactly this input, or None."""
        return self._by_input.get(input)

    def split(self, name: SplitName | str, seed: int = 0) -> tuple[TaskExample, ...]:
        """The examples of one split: `fit` has about half of them, `select` and `test` a quarter each.

        The split of an example depends on the seed and the input's text alone, so tasks that share an input have it in
        the same split. `fit` is for choosing heads and for means, `select` for choosing layer and strength, `test` for
        the reported numbers.

        Raises:
            ValueError: an unknown name, or a split without examples.

        Source: docs/method.md, 1 Notation.
        """
        if name not in get_args(SplitName):  # any text may come from a command line
            raise ValueError(f"Split {name!r:.60} is unknown, expected one of {', '.join(get_args(SplitName))}.")
        chosen = tuple(example for example in self.examples if split_of(example.input, seed) == name)
        if not chosen:
            raise ValueError(
                f"Split {name!r} of task {self.name!r} is empty: none of its {len(self.examples)} examples falls there "
                f"with seed {seed}, expected at least one; bring more examples (about 50 make all three useful)."
            )
        return chosen

    def content_hash(self) -> str:
        """SHA-256 (hex) of what enters prompts and scores: examples, instructions, and `fused`.

        The name, the source, clozes and prose do not change it.
        """
        content = [[[example.input, example.answers] for example in self.examples], self.instructions, self.fused]
        return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()

    def full_hash(self) -> str:
        """SHA-256 (hex) of all fields that a measurement can depend on: all but `source` and `skipped`."""
        values = {
            each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("source", "skipped")
        }
        return hashlib.sha256(json.dumps(values, default=asdict, sort_keys=True).encode()).hexdigest()


def split_of(input: str, seed: int = 0) -> SplitName:
    """The split that an input belongs to: `fit` for half of all texts, `select` and `test` for a quarter each."""
    # the NUL keeps seed 1 with input "2x" apart from seed 12 with input "x"
    quarter = hashlib.sha256(f"{seed}\0{input}".encode()).digest()[0] % 4
    return "fit" if quarter < 2 else "select" if quarter == 2 else "test"


def hash_of_tasks(tasks: Iterable[Task]) -> str:
    """SHA-256 (hex) of all properties of these tasks on which the choice of a counterfactual depends.

    They are the name, the content, and whether the built-in model was trained on the task.
    """
    each = sorted((task.name, task.content_hash(), task.in_training) for task in tasks)
    return hashlib.sha256(json.dumps(each).encode()).hexdigest()


def tasks_of(
    name: str, given: "Task | Iterable[Task] | Mapping[str, Task]", *, beside: Iterable[Task] = ()
) -> tuple[Task, ...]:
    """The given tasks, each once, with names that are all different, so that results can be filed under them.

    Args:
        name: What the error calls them.
        given: A task or several.
        beside: Tasks that the caller has already; they are checked as well, but not returned.

    Raises:
        TypeError: something else than tasks.
        ValueError: two different tasks have one name.
    """
    listed = given.values() if isinstance(given, Mapping) else given
    known = {task.name: task for task in beside}
    found = []
    for task in as_items(name, listed, Task, meant="ivlens.load_task opens one by its name"):
        is_new = task.name not in known
        first = known.setdefault(task.name, task)
        if first.full_hash() != task.full_hash():
            raise ValueError(
                f"{name}: two different tasks are called {task.name!r}, expected one task of each name; call one of "
                "them something else: dataclasses.replace(task, name=...)."
            )
        if is_new:
            found.append(task)
    return tuple(found)
