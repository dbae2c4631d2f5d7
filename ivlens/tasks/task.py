"""Tasks: inputs and their answers, the instructions that ask for them, and the splits that keep measurements honest."""

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from ivlens.tasks.readers import open_source, read_bank_file
from ivlens.tasks.records import Columns, Record, Source

SplitName = Literal["fit", "select", "test"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskExample:
    """One input with its right answers, the first of which is *the* answer.

    Attributes:
        input: The text the task is asked about.
        answers: At least one; the others count for accuracy only.
        part: The file or split of the source it comes from (`train`, `eval`, `test`), or empty.
    """

    input: str
    answers: tuple[str, ...]
    part: str = ""

    def __post_init__(self) -> None:
        if not self.answers or not all(answer.strip() for answer in self.answers):
            raise ValueError(
                f"TaskExample {self.input!r:.60} has answers {self.answers!r:.60}, expected one or more texts that "
                "are not empty; leave the example out."
            )

    @property
    def answer(self) -> str:
        """The answer that is scored."""
        return self.answers[0]


@dataclass(frozen=True)
class Task:
    """A named set of examples with everything that can be said about them.

    Attributes:
        name: Short name, the file's or folder's where the source has no better one.
        examples: Distinct inputs, in the order of the source.
        instructions: Paraphrases of the instruction, any of which may stand in a prompt; empty where none is known.
        held_out_instructions: Paraphrases the built-in model never saw.
        clozes: Sentence beginnings with `{x}` that ask for the answer without an instruction.
        prose: Sentences with `{x}` and `{y}` that state the same content.
        kind: lexical, rule, fact, morphology, sequence or choice; empty outside the bank.
        inputs: Name of the group of tasks that share exactly these inputs; empty outside the bank.
        in_training: Whether the built-in model was trained on the task.
        fused: Instruction and input are one text (TRACE): the prompt is the input as it is.
        source: Where it was read from.
        skipped: One line for each record that was left out, with the reason.
        demonstrations: Worked examples that the source sets apart (Natural-Instructions' positive examples).
    """

    name: str
    examples: tuple[TaskExample, ...]
    instructions: tuple[str, ...] = ()
    held_out_instructions: tuple[str, ...] = ()
    clozes: tuple[str, ...] = ()
    prose: tuple[str, ...] = ()
    kind: str = ""
    inputs: str = ""
    in_training: bool = False
    fused: bool = False
    source: str = ""
    skipped: tuple[str, ...] = ()
    demonstrations: tuple[TaskExample, ...] = ()

    def __post_init__(self) -> None:
        if not self.examples:
            place = self.source or "where it comes from"
            raise ValueError(f"Task {self.name!r} has no examples, expected at least one; check {place}.")
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

    @cached_property
    def _by_input(self) -> dict[str, TaskExample]:
        return {example.input: example for example in self.examples}

    def find(self, input: str) -> TaskExample | None:
        """The example with exactly this input, or None."""
        return self._by_input.get(input)

    def split(self, name: SplitName | str, seed: int = 0) -> tuple[TaskExample, ...]:
        """The examples on one side of the 50 / 25 / 25 division into `fit`, `select` and `test`.

        The side depends on the seed and the input's text alone, so tasks that share an input have it on the same side.
        `fit` chooses heads and builds means, `select` chooses layer and strength, `test` judges.

        Raises:
            ValueError: Unknown name, or no example falls on that side.
        """
        if name not in get_args(SplitName):
            raise ValueError(f"Split {name!r} is unknown, expected one of {', '.join(get_args(SplitName))}.")
        chosen = tuple(example for example in self.examples if split_of(example.input, seed) == name)
        if not chosen:
            raise ValueError(
                f"Split {name!r} of task {self.name!r} is empty: none of its {len(self.examples)} examples falls there "
                f"with seed {seed}, expected at least one; bring more examples (about 50 make all three useful)."
            )
        return chosen

    def content_hash(self) -> str:
        """SHA-256 (hex) of what enters prompts and scores: examples, instructions, and whether they are one text.

        Neither the name, nor where the task was read from, nor its clozes and prose.
        """
        content = [[[example.input, example.answers] for example in self.examples], self.instructions, self.fused]
        return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()


def split_of(input: str, seed: int = 0) -> SplitName:
    """The side an input falls on: `fit` for half of all texts, `select` and `test` for a quarter each."""
    quarter = hashlib.sha256(f"{seed}\0{input}".encode()).digest()[0] % 4
    return "fit" if quarter < 2 else "select" if quarter == 2 else "test"


def hash_of_tasks(tasks: Iterable[Task]) -> str:
    """SHA-256 (hex) of what decides which counterfactual a prompt gets: names, contents, and what was trained on."""
    each = sorted((task.name, task.content_hash(), task.in_training) for task in tasks)
    return hashlib.sha256(json.dumps(each).encode()).hexdigest()


def list_tasks(*, group: str | None = None, in_training: bool | None = None) -> list[str]:
    """Names of the built-in tasks, sorted.

    Args:
        group: Only those sharing this group of inputs (`words`, `countries`, ...).
        in_training: Only those the built-in model was trained on (True) or was not (False).

    Raises:
        ValueError: No task has that group.
    """
    bank = load_bank()
    groups = {task.inputs for task in bank.values()}
    if group is not None and group not in groups:
        raise ValueError(f"Group {group!r} is unknown, expected one of {', '.join(sorted(groups))}.")
    return [
        name for name, task in bank.items() if group in (None, task.inputs) and in_training in (None, task.in_training)
    ]


def load_bank() -> dict[str, Task]:
    """All built-in tasks by name, sorted; read once."""
    return {name: _bank_task(name) for name in _bank_names()}


def load_task(
    name_or_path: str | Path,
    *,
    input_column: str | None = None,
    output_column: str | None = None,
    instruction_column: str | None = None,
    part: str | None = None,
    config: str | None = None,
) -> Task:
    """Open a built-in task by name, or anything else by path or Hub name.

    The format is told from the content, never from the file's name: function-vectors lists, Natural-Instructions task
    files, folders of TRACE or of the long-sequence benchmark, `{input: output}` dicts, tables with named columns (CSV,
    TSV, JSON, JSONL, parquet), Hugging Face `datasets` (saved by `save_to_disk`, or on the Hub), the bank's own format.

    A plain string that names a built-in task is that task, whatever lies in the working directory: a result must not
    depend on where it is run. Write `"./antonym"` or `Path("antonym")` for a file of that name. A string that is
    neither is a Hub dataset if it reads `owner/name`, or `hf://name`. A column called `prompt` holds the whole prompt
    (`Task.fused`) unless there is an instruction column; and where that column has an instruction of its own for most
    rows, instruction and input are joined to such a prompt.

    Args:
        name_or_path: Built-in name, path of a file or folder, or name of a dataset on the Hub.
        input_column: Column or key that holds the input; None: guessed among the usual names.
        output_column: The same for the answers.
        instruction_column: The same for instructions; optional in the source.
        part: Only this file of a folder or split of a dataset (`train`, `eval`, `test`); None: all of them.
        config: Configuration of a Hub dataset.

    Returns:
        The task. Records without an answer are left out and listed in `Task.skipped`; repeated inputs are merged, the
        later answers becoming alternatives; numbers become text as spelled in the source.

    Raises:
        FileNotFoundError: No such file, folder or dataset.
        ValueError: No such built-in task, or the content is not usable; the message says where and what to do.
    """
    columns = Columns(input_column, output_column, instruction_column)
    is_name = isinstance(name_or_path, str) and name_or_path in _bank_names()
    if not is_name:
        return _build(open_source(name_or_path, columns, part=part, config=config, known=_bank_names()))
    if any((input_column, output_column, instruction_column, part, config)):
        raise ValueError(
            f"load_task({name_or_path!r}) got column, part or config options, which built-in tasks do not have; "
            f"leave them out, or write './{name_or_path}' for a file of that name."
        )
    return _bank_task(str(name_or_path))


@cache
def _bank_names() -> tuple[str, ...]:
    folder = resources.files("ivlens") / "data" / "bank"
    return tuple(sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")))


@cache
def _bank_task(name: str) -> Task:
    with resources.as_file(resources.files("ivlens") / "data" / "bank" / f"{name}.json") as path:
        # The place differs between installations and would enter what is saved.
        return _build(replace(read_bank_file(path), source=f"ivlens bank: {name}"))


def _build(source: Source) -> Task:
    """Merge repeated inputs, leave out what has no input or no answer, and say so once."""
    merged: dict[str, Record] = {}
    skipped: list[str] = []
    n_merged = 0
    for record in source.records:
        if not record.input.strip() or not record.answers:
            lacks = "answer" if record.input.strip() else "input"
            skipped.append(f"{record.where}: no {lacks} ({(record.input or str(record.answers))[:60]!r})")
            continue
        first = merged.setdefault(record.input, record)
        if first is not record:
            n_merged += 1
            merged[record.input] = replace(first, answers=tuple(dict.fromkeys(first.answers + record.answers)))
    if not merged:
        raise ValueError(
            f"{source.source}: all {len(source.records)} records lack an answer or an input (first: {skipped[0]}), "
            "expected at least one complete record; use the file that has the answers, or name another output_column=."
        )
    if skipped or n_merged:
        logger.warning(
            "Task %r: %d of %d records left out for want of an answer or an input%s, %d repeated inputs merged.",
            source.name, len(skipped), len(source.records), f" (first: {skipped[0]})" if skipped else "", n_merged,
        )  # fmt: skip
    return Task(
        name=source.name,
        examples=tuple(TaskExample(record.input, record.answers, record.part) for record in merged.values()),
        instructions=source.instructions,
        held_out_instructions=source.held_out_instructions,
        clozes=source.clozes,
        prose=source.prose,
        kind=source.kind,
        inputs=source.inputs,
        in_training=source.in_training,
        fused=source.fused,
        source=source.source,
        skipped=tuple(skipped),
        demonstrations=tuple(TaskExample(r.input, r.answers) for r in source.demonstrations if r.input and r.answers),
    )
