"""`check_task` says how a task's file was read: its format, its columns, what was left out, what else could be read."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ivlens.common.arguments import checked
from ivlens.common.names import shown
from ivlens.tasks.bank import build_task, source_of_task
from ivlens.tasks.formats.records import Columns, Record, Source, listed
from ivlens.tasks.formats.rows import read_rows
from ivlens.tasks.task import Task

N_EXAMPLES = 3
MOST_COLUMNS = 20  # of which it is said what they would give
_WIDEST = 60  # letters of a text
_OPTIONS = {"input": "--input-column", "output": "--answer-column"}


class Reason(NamedTuple):
    """Why records were left out: how many, why, and where the first of them is."""

    n: int
    why: str
    first: str


class Other(NamedTuple):
    """What another column would give: the option that chooses it, its name, and the first text that would be read.

    The text is None where the column was not loaded.
    """

    option: str
    column: str
    text: str | None


@checked
@dataclass(frozen=True)
class TaskCheck:
    """How a task was read.

    Attributes:
        task: The task, as `load_task` gives it.
        format: The format that was recognised, in words.
        n_records: Records in the source, with those that were left out or merged.
        uses: What was read from which column: pairs such as `("input", "question")`; empty for formats without columns.
        columns: The names of all columns.
        notes: What the reader had to decide, in words.
        left_out: Why records were left out, the most frequent reason first.
        losses: What was left out of records that are kept, in words.
        others: What other columns would give as input or as answer.
    """

    task: Task
    format: str
    n_records: int
    uses: tuple[tuple[str, str], ...]
    columns: tuple[str, ...]
    notes: tuple[str, ...]
    left_out: tuple[Reason, ...]
    losses: tuple[str, ...]
    others: tuple[Other, ...]

    @property
    def unread(self) -> tuple[str, ...]:
        """The columns that are not read, in the order of the file."""
        read = {name for _, name in self.uses}
        return tuple(name for name in self.columns if name not in read)

    @property
    def n_merged(self) -> int:
        """Records whose input had occurred before: their answers were added to it."""
        return self.n_records - len(self.task) - sum(reason.n for reason in self.left_out)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        task = self.task
        yield f"{task.name}: {self.format}"
        if self.uses:
            yield "read: " + ", ".join(f"{what} from {name!r}" for what, name in self.uses)
        if self.unread:
            yield f"not read: {listed(self.unread)}"
        counts = {"record": self.n_records, "example": len(task), "instruction": len(task.instructions)}
        yield ", ".join(f"{n} {what}{'s' * (n != 1)}" for what, n in counts.items())
        yield from (f"note: {note}" for note in self.notes)
        yield "\nfirst examples:"
        for example in task.examples[:N_EXAMPLES]:
            yield f"  {_short(example.input)} -> {' / '.join(map(_short, example.answers[:3]))}"
        yield from self._lines_of_losses()
        if self.others:
            yield "\nother columns:"
            yield from (f"  {told}" for told in map(_told, self.others))
            if len(self.unread) > MOST_COLUMNS:
                yield f"  and {len(self.unread) - MOST_COLUMNS:,} more"

    def _lines_of_losses(self) -> Iterator[str]:
        if self.left_out or self.n_merged or self.losses:
            yield "\nleft out:"
        for reason in self.left_out:
            yield f"  {reason.n} of {self.n_records} records: {reason.why} (first: {reason.first})"
        if self.n_merged:
            yield f"  {self.n_merged} repeated inputs: their answers were added to those of the first"
        yield from (f"  {loss}" for loss in self.losses)

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain JSON values, of the task its name, its instructions and the first examples."""
        examples = [{"input": one.input, "answers": list(one.answers)} for one in self.task.examples[:N_EXAMPLES]]
        return {
            "task": self.task.name,
            "source": self.task.source,
            "format": self.format,
            "n_records": self.n_records,
            "n_examples": len(self.task),
            "n_merged": self.n_merged,
            "instructions": list(self.task.instructions),
            "fused": self.task.fused,
            "uses": dict(self.uses),
            "columns": list(self.columns),
            "unread": list(self.unread),
            "notes": list(self.notes),
            "left_out": [reason._asdict() for reason in self.left_out],
            "losses": list(self.losses),
            "examples": examples,
            "others": [other._asdict() for other in self.others],
        }


@checked
def check_task(
    name_or_path: str | Path,
    *,
    input_column: str | None = None,
    output_column: str | None = None,
    instruction_column: str | None = None,
    part: str | None = None,
    config: str | None = None,
) -> TaskCheck:
    """How a task is read: its format, its columns, three examples, what is left out, what other columns would give.

        >>> print(ivlens.tasks.check_task("questions.jsonl"))

    Args:
        name_or_path: As in `load_task`, and so are all other arguments.

    Raises:
        FileNotFoundError, ValueError: as `load_task`.
    """
    columns = Columns(input_column, output_column, instruction_column)
    source = source_of_task(name_or_path, columns, part=part, config=config)
    return TaskCheck(
        task=build_task(source, quietly=True),
        format=source.format,
        n_records=len(source.records),
        uses=tuple(("answer" if what == "output" else what, name) for what, name in source.uses),
        columns=source.found,
        notes=source.notes,
        left_out=_reasons(source.records),
        losses=source.losses,
        others=tuple(_others(source, columns)),
    )


def _reasons(records: tuple[Record, ...]) -> tuple[Reason, ...]:
    """Why records are incomplete, by the number of records."""
    found: dict[str, list[str]] = {}
    for record in records:
        if why := record.lacks:
            found.setdefault(why, []).append(record.where)
    by_number = sorted(found.items(), key=lambda item: -len(item[1]))
    return tuple(Reason(len(places), why, places[0]) for why, places in by_number)


def _others(source: Source, columns: Columns) -> Iterator[Other]:
    """What each column that is not read yet would give if it were named as the input, or as the answer.

    A text that a question is about counts as not read, and so does its question, which could be read without the text.
    """
    read = {name for what, name in source.uses if what != "context"}
    alone = {name for what, name in source.uses if what == "input" and "context" in dict(source.uses)}
    for what, option in _OPTIONS.items():
        free = [name for name in source.found if name not in read or (what == "input" and name in alone)]
        free = [name for name in free if name.strip()]  # others cannot be named
        for name in free[:MOST_COLUMNS]:
            if not source.head:
                yield Other(option, name, None)
            elif (text := _first_text(source, columns._replace(**{what: name}), what)) is not None:
                yield Other(option, name, text)


def _first_text(source: Source, columns: Columns, what: str) -> str | None:
    """The first text that other columns would give; None where they cannot be read."""
    try:
        record = read_rows(source.head, columns, source.name).records[0]
    except ValueError:
        return None
    return (record.input if what == "input" else next(iter(record.answers), "")) or None


def _told(other: Other) -> str:
    """What another column would give, with the option as it is typed."""
    between = "=" if other.column.startswith("-") else " "
    option = f"{other.option}{between}{shown(shlex.quote(other.column))}"
    if other.text is None:
        return option
    what = "input" if other.option == _OPTIONS["input"] else "answer"
    return f"{option}: the first {what} would be {_short(other.text)}"


def _short(text: str) -> str:
    """A text in quotation marks on one line, cut where it is long."""
    return repr(text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…")
