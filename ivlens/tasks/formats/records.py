"""What every reader of a task file gives, and what all of them share: records as text, and the words of errors.

The lowest layer of the readers: it knows no format. For bad content every function here raises a ValueError of one
clear sentence (`wrong`).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ivlens.common.names import shown

# If there are more distinct instructions than this, and more than half as many as rows, they are no paraphrases: each
# row has an instruction of its own.
MAX_PARAPHRASES = 20
MOST_RECORDS = 400_000  # each takes up to 15 microseconds to read
N_NAMED = 12  # names in an error
N_HEAD = 3  # records that are kept as they are, to show what other columns would give

Rows = Sequence[tuple[str, Any]]  # (where in the file, what should be a record)


class Columns(NamedTuple):
    """Names of the columns to read; None: a usual name is looked for, and instructions may be missing."""

    input: str | None = None
    output: str | None = None
    instruction: str | None = None


class Spelled(str):
    """A number of a JSON document as it is spelled there, told by its class from a text of the same letters."""


class Record(NamedTuple):
    """One record as text.

    Attributes:
        input: The text that the task is asked about.
        answers: Its answers; empty where the source has none.
        where: Where the record is in the source, such as "line 3", for errors.
        part: The file or split that it is from, or empty.
        why: Why it has no answers or no input, where its reader knows; it is then left out.
    """

    input: str
    answers: tuple[str, ...]
    where: str
    part: str = ""
    why: str = ""

    @property
    def lacks(self) -> str:
        """Why the record is left out, in words; empty where it is complete."""
        if self.answers and self.input.strip():
            return ""
        return self.why or f"no {'answer' if self.input.strip() else 'input'}"


@dataclass(frozen=True)
class Source:
    """What a reader found: the fields of a `Task` before records are merged or left out, and how they were read.

    Attributes:
        format: How the content was read, in words.
        uses: What was read from which column: pairs such as `("input", "question")`.
        found: The names of all columns that there are.
        head: The first records as the file has them; empty where other columns were not even loaded.
        notes: What the reader had to decide, each in words.
        losses: What was left out of records that are kept, each in words.
    """

    name: str
    source: str
    records: tuple[Record, ...]
    instructions: tuple[str, ...] = ()
    held_out_instructions: tuple[str, ...] = ()
    clozes: tuple[str, ...] = ()
    prose: tuple[str, ...] = ()
    kind: str = ""
    inputs: str = ""
    in_training: bool = False
    fused: bool = False
    demonstrations: tuple[Record, ...] = ()
    format: str = ""
    uses: tuple[tuple[str, str], ...] = ()
    found: tuple[str, ...] = ()
    head: tuple[tuple[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()

    def held_in(self, holder: str) -> "Source":
        """The source, its format named together with what holds the records."""
        return replace(self, format=f"{self.format} in {holder}")

    def without_columns(self, format: str) -> "Source":
        """The source of a format that has no columns to choose from."""
        return replace(self, format=format, uses=(), found=(), head=())


class Row(NamedTuple):
    """One record before it is known whether instruction and input are one text; the input keeps its outer blanks."""

    where: str
    instruction: str
    input: str
    answers: tuple[str, ...]
    why: str = ""


def wrong(subject: object, got: str, expected: str, remedy: str) -> ValueError:
    """The error for bad content, which the caller raises."""
    return ValueError(f"{shown(subject)}: {got}, expected {expected}; {remedy}.")


def listed(names: Iterable[object]) -> str:
    """The first twelve names in one line, for an error."""
    first = [f"{name!r:.60}" for name in islice(names, N_NAMED + 1)]
    return ", ".join([*first[:N_NAMED], *["..."] * (len(first) > N_NAMED)])


# --- values as texts -------------------------------------------------------------------------------------------------


def texts_of(value: Any, where: str) -> tuple[str, ...]:
    """One value, or a list of values, as distinct, stripped texts that are not empty.

    Args:
        value: The value as the source has it; None and NaN are left out.
        where: Where it is in the source, for errors.
    """
    if type(value) is str and value.isascii():  # most values, and so in a line of their own
        text = value.strip()
        return (text,) if text else ()
    values = value if isinstance(value, list | tuple) else [value]
    texts = []
    for item in values:
        if item is None or (isinstance(item, float) and not math.isfinite(item)):
            continue
        if not isinstance(item, str | int | float | Decimal):
            remedy = "flatten it" if isinstance(item, dict | list | tuple) else "write it as text"
            raise wrong(where, f"got a {type(item).__name__}", "text, a number, or a flat list of them", remedy)
        texts.append(_spelling(item).strip())
        if not texts[-1].isascii() and any("\ud800" <= char <= "\udfff" for char in texts[-1]):
            raise wrong(where, "holds half a surrogate pair", "valid Unicode", "write the character out in UTF-8")
    return tuple(dict.fromkeys(filter(None, texts)))


def text_of(value: Any, where: str, strip: bool = True) -> str:
    """One value as a text, empty where it is missing; a list is refused."""
    if isinstance(value, list | tuple):
        raise wrong(where, "got a list", "one text", "merge it, or name another column")
    texts = texts_of(value, where)
    return "" if not texts else texts[0] if strip else _spelling(value)


def _spelling(value: str | int | float | Decimal) -> str:
    """A value as a JSON file spells it: `true`, where Python's own text would be `True`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def answers_of(value: Any, where: str) -> tuple[str, ...]:
    """Accepted answers: a text, a list of texts, or SQuAD's `{"text": [...]}` and TriviaQA's `{"value", "aliases"}`."""
    if isinstance(value, dict):
        held = {key.lower(): one for key, one in value.items()}  # TriviaQA's own files have capitals
        if "text" in held:
            return texts_of(held["text"], where)
        if "value" in held:
            aliases = held.get("aliases") or ()
            return texts_of([held["value"], *(aliases if isinstance(aliases, list | tuple) else [aliases])], where)
    if isinstance(value, list | tuple) and value and all(isinstance(one, dict) and "text" in one for one in value):
        return texts_of([one["text"] for one in value], where)
    return texts_of(value, where)


# --- sources ---------------------------------------------------------------------------------------------------------


def source_of(rows: Sequence[Row], path: Path | str, *, prompts: bool = False, own: bool = False) -> Source:
    """The source that rows make; decides whether instruction and input are one text.

    Args:
        path: The file, or the name of what is no file.
        prompts: Whether an input without an instruction is a whole prompt.
        own: Whether each row is known to have an instruction of its own. Otherwise that is so where there are very many
            instructions, and where a fifth of the rows has no input and an instruction that no other row has.
    """
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.instruction] = counts.get(row.instruction, 0) + 1
    instructions = tuple(filter(None, counts))
    n_alone = sum(not row.input.strip() and counts[row.instruction] == 1 for row in rows if row.instruction)
    many = len(instructions) > max(MAX_PARAPHRASES, len(rows) // 2) or n_alone > 0 and 5 * n_alone >= len(rows)
    own = bool(instructions) and (own or many)
    fused = own or (prompts and not instructions)
    records = []
    for row in rows:
        input = row.input if fused else row.input.strip()
        input = "\n".join(filter(None, (row.instruction, input))) if own else input
        records.append(Record(input, row.answers, row.where, why=row.why))
    name = Path(path).resolve().stem if isinstance(path, Path) else path
    notes = ("instruction and input are one text: each record has an instruction of its own",) if own else ()
    if fused and not own:
        notes = ("the input is the whole prompt",)
    return Source(name, str(path), tuple(records), () if own else instructions, fused=fused, notes=notes)


def in_part(source: Source, part: str, file: str) -> Source:
    """The source with every record marked as one of this part and this file."""
    if not (part or file):
        return source
    records = tuple(record._replace(part=part, where=f"{file} {record.where}".strip()) for record in source.records)
    marked = {name: tuple(f"{file}: {text}" for text in getattr(source, name)) for name in ("losses",) if file}
    return replace(source, records=records, **marked)


def joined(sources: Sequence[Source], path: Path | str) -> Source:
    """One source with the records and instructions of several parts."""
    if len({source.fused for source in sources}) > 1:
        raise wrong(path, "has parts with and without fused prompts", "the same columns in all", "load one with part=")
    name = path.resolve().name if isinstance(path, Path) else path
    records = tuple(record for source in sources for record in source.records)

    def all_of(read: Callable[[Source], Iterable[Any]]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(text for source in sources for text in read(source)))

    return replace(
        sources[0],
        name=name,
        source=str(path),
        records=records,
        instructions=all_of(lambda source: source.instructions),
        found=all_of(lambda source: source.found),
        notes=all_of(lambda source: source.notes),
        losses=all_of(lambda source: source.losses),
    )


def sample_of(rows: Sequence[tuple[str, Mapping[str, Any]]], most: int = 100) -> dict[str, Any]:
    """What the columns hold: for each the first value among the first rows that is not empty."""
    found: dict[str, Any] = {}
    for _, row in rows[:most]:
        for name, value in row.items():
            if name not in found or found[name] in (None, "", [], {}):
                found[name] = value
    return found
