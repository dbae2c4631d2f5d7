"""Turns the text of a file into records: decoding, JSON and CSV, the choice of columns, answers as text.

The lowest layer of the task readers: it knows no benchmark's format. For bad content every function here raises a
ValueError of one clear sentence (`wrong`).
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ivlens.common.foreign import read_foreign
from ivlens.common.names import shown

# Usual names of columns. The first name is taken if a column has it, another name only if no other column fits.
INPUT_NAMES = ("input", "inputs", "prompt", "sentence", "text", "question", "query", "source", "word", "x")
OUTPUT_NAMES = ("output", "outputs", "answer", "answers", "label", "target", "targets", "completion", "response", "y")
INSTRUCTION_NAMES = ("instruction", "instructions", "definition")
# If there are more distinct instructions than this, and more than half as many as rows, they are no paraphrases: each
# row has an instruction of its own.
MAX_PARAPHRASES = 20
_N_NAMED = 12  # names in an error

LARGEST_FILE = 2**27  # bytes
MOST_RECORDS = 700_000  # each takes about 15 microseconds to read
# Characters that become objects in memory, and how many of them a file may have; plain text has far fewer.
MOST = {
    "lists and records": ("[{", 2 * MOST_RECORDS),
    "fields": (":", 4 * MOST_RECORDS),
    "lines": ("\n", MOST_RECORDS),
    "separators": (",\t;|", 2**22),
}
_MOST_COLUMNS = 10_000

Rows = Sequence[tuple[str, Any]]  # (where in the file, what should be a record)


class Columns(NamedTuple):
    """Names of the columns to read; None: a usual name is looked for, and instructions may be missing."""

    input: str | None = None
    output: str | None = None
    instruction: str | None = None


@dataclass(frozen=True)
class Record:
    """One record as text.

    Attributes:
        input: The text that the task is asked about.
        answers: Its answers; empty where the source has none.
        where: Where the record is in the source, such as "line 3", for errors.
        part: The file or split that it is from, or empty.
    """

    input: str
    answers: tuple[str, ...]
    where: str
    part: str = ""


@dataclass(frozen=True)
class Source:
    """What a reader found: the fields of a `Task`, before records are merged or left out."""

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


def wrong(subject: object, got: str, expected: str, remedy: str) -> ValueError:
    """The error for bad content, which the caller raises."""
    return ValueError(f"{shown(subject)}: {got}, expected {expected}; {remedy}.")


def read_text(path: Path) -> str:
    """The text of a task file, which must be UTF-8, neither empty nor too large."""
    try:
        text = read_foreign(path, LARGEST_FILE).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        got = f"byte {error.start} (0x{error.object[error.start]:02x}) is not UTF-8"
        raise wrong(path, got, "a text file in UTF-8", "save it as UTF-8 or unpack it") from None
    except OSError as error:
        got = f"cannot be read ({error.strerror or error})"
        remedy = "check permissions, or use a part of it"
        raise wrong(path, got, f"a readable file of at most {LARGEST_FILE >> 20} MiB", remedy) from None
    if not text or text.isspace():
        raise wrong(path, "is empty", "records", "check how it was written")
    _check_parts(text, path)
    return text


def _check_parts(text: str, path: Path) -> None:
    """Refuse a file that would fill the memory: `[]`, two bytes in a file, is an object of 56 bytes."""
    counted = {what: sum(map(text.count, marks)) for what, (marks, _) in MOST.items()}
    for what, (_, most) in MOST.items():
        if counted[what] > most:
            raise wrong(path, f"has {counted[what]:,} {what}", f"at most {most:,}", "use a part of it")


def parse_json(text: str, path: Path, line: int | None = None) -> Any:
    """The value of a JSON text: numbers are kept as texts (as spelled), NaN becomes None, repeated keys become lists.

    Args:
        text: The JSON text.
        path: The file, for errors.
        line: The line's number, where `text` is one line of the file.
    """
    try:
        return json.loads(
            text, parse_int=str, parse_float=str, parse_constant=lambda _: None, object_pairs_hook=_collect_pairs
        )
    except json.JSONDecodeError as error:
        got = f"line {line or error.lineno}, column {error.colno} is not JSON ({error.msg})"
        raise wrong(path, got, "a complete JSON document", "it may be cut off: write or download it again") from None
    except RecursionError:
        raise wrong(path, "is nested too deeply", "a list of records or a dict", "flatten it") from None


def _collect_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; where a key is repeated, a list of all its values, not the last one."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    values: dict[str, list[Any]] = {key: [] for key in found}
    for key, value in pairs:
        values[key].append(value)
    return {key: parts[0] if len(parts) == 1 else _flat(parts) for key, parts in values.items()}


def _flat(parts: list[Any]) -> list[Any]:
    """All values, with a list among them replaced by its items."""
    return [item for part in parts for item in (part if isinstance(part, list) else [part])]


def listed(names: Iterable[object]) -> str:
    """The first twelve names in one line, for an error."""
    first = [f"{name!r:.60}" for name in islice(names, _N_NAMED + 1)]
    return ", ".join([*first[:_N_NAMED], *["..."] * (len(first) > _N_NAMED)])


def texts_of(value: Any, where: str) -> tuple[str, ...]:
    """One value, or a list of values, as distinct, stripped texts that are not empty.

    Args:
        value: The value as the source has it; None and NaN are left out.
        where: Where it is in the source, for errors.
    """
    values = value if isinstance(value, list | tuple) else [value]
    texts = []
    for item in values:
        if item is None or (isinstance(item, float) and not math.isfinite(item)):
            continue
        if not isinstance(item, str | int | float):
            raise wrong(where, f"got a {type(item).__name__}", "text, a number, or a flat list of them", "flatten it")
        texts.append(str(item).strip())
        if not texts[-1].isascii() and any("\ud800" <= char <= "\udfff" for char in texts[-1]):
            raise wrong(where, "holds half a surrogate pair", "valid Unicode", "write the character out in UTF-8")
    return tuple(dict.fromkeys(filter(None, texts)))


def text_of(value: Any, where: str, strip: bool = True) -> str:
    """One value as a text, empty where it is missing; a list is refused."""
    if isinstance(value, list | tuple):
        raise wrong(where, "got a list", "one text", "merge it, or name another column")
    texts = texts_of(value, where)
    return "" if not texts else texts[0] if strip else str(value)


def csv_rows(text: str, path: Path) -> Rows:
    """The rows of a table whose first line names its columns; commas, tabs, semicolons or bars separate the cells."""
    first = text.lstrip().partition("\n")[0]
    delimiter = max(",\t;|", key=first.count)  # the most frequent one in the header
    if first.count(delimiter) > _MOST_COLUMNS:
        got = f"has {first.count(delimiter):,} columns"
        raise wrong(path, got, f"at most {_MOST_COLUMNS:,}", "check how it was written")
    reader = csv.reader(io.StringIO(text.lstrip(), newline=""), delimiter=delimiter, strict=True)
    # empty lines above the header are cut off, but count in line numbers
    blank = text[: len(text) - len(text.lstrip())].count("\n")
    rows: list[tuple[str, dict[str, Any]]] = []
    try:
        header = [name.strip() for name in next(reader)]
        for cells in reader:
            where = f"line {reader.line_num + blank}"
            if cells and len(cells) != len(header):
                expected = f"{len(header)} ({', '.join(header[:_N_NAMED]):.400})"
                raise wrong(
                    f"{path}, {where}", f"has {len(cells)} cells", expected, "quote cells that hold the delimiter"
                )
            if cells:
                rows.append((where, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        got = f"line {reader.line_num + blank} is not CSV ({error})"
        raise wrong(path, got, "JSON, or a table with a header", "check its quotes") from None
    if len(header) < 2 or len(set(header)) < len(header):
        expected = "JSON, or a table with two or more distinct columns named in its first line"
        raise wrong(path, f"has the columns {', '.join(header[:_N_NAMED])!r:.200}", expected, "add a header line")
    return rows


def guess_column(found: Iterable[str], given: str | None, names: Sequence[str]) -> str | None:
    """The column to use, or None: the given one, the most usual name, or the only column with a usual name.

    Args:
        found: The columns that there are.
        given: The column that the caller asked for, or None.
        names: The usual names, the most usual first.
    """
    found = list(found)
    if given is not None:
        return given if given in found else None
    by_lower = {name.strip().lower(): name for name in reversed(found)}
    present = [by_lower[name] for name in names if name in by_lower]
    return present[0] if present and (len(present) == 1 or names[0] in by_lower) else None


def pick_columns(columns: Columns, found: Sequence[str], subject: object) -> Columns:
    """The columns to read, chosen among those found; refused where one is missing or chosen twice."""
    picked = []
    usual = (INPUT_NAMES, OUTPUT_NAMES, INSTRUCTION_NAMES)
    for what, given, names in zip(Columns._fields, columns, usual, strict=True):
        name = guess_column(found, given, names)
        if name is None and (given is not None or what != "instruction"):
            got = f"has the columns {listed(found)}"
            expected = f"{given!r:.60}" if given else f"exactly one usual name for the {what} ({', '.join(names)})"
            raise wrong(subject, got, expected, f"name it with {what}_column=")
        if name is not None and name in picked:
            raise wrong(subject, f"got {name!r} for two columns", "distinct ones", "name the others")
        picked.append(name)
    return Columns(*picked)


def from_rows(rows: Rows, columns: Columns, path: Path | str) -> Source:
    """The records in rows; every row must have the columns that are read."""
    if not rows:
        raise wrong(path, "holds no records", "at least one", "check how it was written")
    for where, row in rows:
        if not isinstance(row, dict):
            got = f"{where} is {'null' if row is None else f'a {type(row).__name__}'}"
            raise wrong(path, got, "a record with named columns such as {input, output}", "check the file's format")
    picked = pick_columns(columns, list(rows[0][1]), path)
    for where, row in rows:
        missing = [name for name in picked if name is not None and name not in row]
        if missing:
            got = f"{where} has the keys {listed(row)}"
            expected = f"also {listed(missing)} as in the first record"
            raise wrong(path, got, expected, "complete it or take it out")
    return from_columns(rows, picked, path)


def from_columns(rows: Rows, picked: Columns, path: Path | str) -> Source:
    """The records in rows, with columns that are already picked; decides whether instruction and input are one text."""
    given = [text_of(row[picked.instruction], f"{path}, {where}") if picked.instruction else "" for where, row in rows]
    instructions = tuple(dict.fromkeys(filter(None, given)))
    own = len(instructions) > max(MAX_PARAPHRASES, len(rows) // 2)  # most rows have their own
    fused = own or (str(picked.input).lower() == "prompt" and not instructions)
    records = []
    for (where, row), instruction in zip(rows, given, strict=True):
        input = text_of(row[picked.input], f"{path}, {where}, {picked.input!r}", strip=not fused)
        input = "\n".join(filter(None, (instruction, input))) if own else input
        records.append(Record(input, texts_of(row[picked.output], f"{path}, {where}, {picked.output!r}"), where))
    name = Path(path).resolve().stem if isinstance(path, Path) else path
    return Source(name, str(path), tuple(records), () if own else instructions, fused=fused)


def in_part(source: Source, part: str, file: str) -> Source:
    """The source with every record marked as one of this part and this file."""
    records = tuple(replace(record, part=part, where=f"{file} {record.where}".strip()) for record in source.records)
    return replace(source, records=records)


def joined(sources: Sequence[Source], path: Path | str) -> Source:
    """One source with the records and instructions of several parts."""
    if len({source.fused for source in sources}) > 1:
        raise wrong(path, "has parts with and without fused prompts", "the same columns in all", "load one with part=")
    name = path.resolve().name if isinstance(path, Path) else path
    records = tuple(record for source in sources for record in source.records)
    instructions = tuple(dict.fromkeys(text for source in sources for text in source.instructions))
    return replace(sources[0], name=name, source=str(path), records=records, instructions=instructions)
