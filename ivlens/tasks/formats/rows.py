"""Rows of named columns, wherever they come from: what kind of records they are, and the reader of that kind."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ivlens.tasks.formats import chat, choices, passages
from ivlens.tasks.formats.columns import OUTPUT_NAMES, guess_column, pick_columns
from ivlens.tasks.formats.records import (
    N_HEAD,
    Columns,
    Row,
    Rows,
    Source,
    answers_of,
    listed,
    sample_of,
    source_of,
    text_of,
    wrong,
)


class RowFormat(NamedTuple):
    """One kind of records.

    Attributes:
        name: What it is called where it is said how a file was read.
        uses: The columns that it reads, by what they are, chosen from a sample of what the columns hold; None where
            the columns are not of this kind.
        read: Makes the source of the rows.
        optional: What a row may lack.
    """

    name: str
    uses: Callable[[Mapping[str, Any], Columns], dict[str, str] | None]
    read: Callable[[Rows, dict[str, str], Path | str], Source]
    optional: frozenset[str] = frozenset()


# the first one that knows the columns reads the rows; where none does, they are plain records
FORMATS = (
    RowFormat("chat records", chat.uses, chat.read, frozenset({"prompt"})),
    RowFormat("multiple choice", choices.uses, choices.read, choices.OPTIONAL),
    RowFormat("questions about texts", passages.uses, passages.read, frozenset({"context", "instruction"})),
)


def read_rows(rows: Rows, columns: Columns, path: Path | str) -> Source:
    """The records in rows, read by the format that their columns have.

    Raises:
        ValueError: no records, something that is no record, or a row without a column that is read.
    """
    sample = _sample(rows, path)
    return _read(rows, sample, *recognised(sample, columns, path), path)


def read_plain(rows: Rows, columns: Columns, path: Path | str) -> Source:
    """The records in rows as plain records, whatever other columns they have; errors as those of `read_rows`."""
    sample = _sample(rows, path)
    return _read(rows, sample, *_as_plain(sample, columns, path), path)


def recognised(sample: Mapping[str, Any], columns: Columns, subject: object) -> tuple[RowFormat, dict[str, str]]:
    """The format of rows with such columns, and the columns that it reads, by what they are.

    Raises:
        ValueError: the columns are of no format, or have no usual names.
    """
    for format in FORMATS:
        if (used := format.uses(sample, columns)) is not None:
            return format, used
    _refuse_unread_choices(sample, columns, subject)
    return _as_plain(sample, columns, subject)


def _as_plain(sample: Mapping[str, Any], columns: Columns, subject: object) -> tuple[RowFormat, dict[str, str]]:
    used = pick_columns(columns, list(sample), subject)
    return TOLD if "instruction" in used else PLAIN, used


def _sample(rows: Rows, path: Path | str) -> dict[str, Any]:
    """What the columns of rows hold; refuses rows that are no records."""
    if not rows:
        raise wrong(path, "holds no records", "at least one", "check how it was written")
    for where, row in rows:
        if not isinstance(row, dict):
            got = f"{where} is {'null' if row is None else f'a {type(row).__name__}'}"
            raise wrong(path, got, "a record with named columns such as {input, output}", "check the file's format")
    return sample_of(rows)


def _read(rows: Rows, sample: Mapping[str, Any], format: RowFormat, used: dict[str, str], path: Path | str) -> Source:
    """The source that a format makes of rows, all of which must have the columns that it needs."""
    for where, row in rows:
        missing = [name for what, name in used.items() if what not in format.optional and name not in row]
        if missing:
            got = f"{where} has the keys {listed(row)}"
            expected = f"also {listed(missing)} as in other records"
            raise wrong(path, got, expected, "complete it or take it out")
    found = format.read(rows, used, path)
    about = {"format": format.name, "uses": tuple(used.items()), "found": tuple(sample), "head": tuple(rows[:N_HEAD])}
    return replace(found, **about)


def _refuse_unread_choices(sample: Mapping[str, Any], columns: Columns, subject: object) -> None:
    """Refuse records with a list of choices whose question or answer has no usual name: a prompt would lack them."""
    name = next((name for name in sample if name.strip().lower() in choices.NAMES), None)
    if name is None or name in columns or not isinstance(sample[name], list | tuple | dict):
        return
    if not any(columns) and guess_column(sample, None, OUTPUT_NAMES) is None:
        return  # the error about columns says more
    got = f"has {name!r} and the columns {listed(each for each in sample if each != name)}"
    remedy = "name them with input_column= (--input-column) and output_column= (--answer-column)"
    raise wrong(subject, got, "the question and the right answer of a multiple-choice task", remedy)


def _read_plain(rows: Rows, used: dict[str, str], path: Path | str) -> Source:
    """The source of records with an input, an answer and perhaps an instruction, such as those of Alpaca and Dolly."""
    found, instruction, asked, answer = [], used.get("instruction"), used.get("input"), used["output"]
    for where, row in rows:
        told = input = ""
        if instruction is not None:
            told = text_of(row.get(instruction), f"{path}, {where}, {instruction!r}")
        if asked is not None:
            input = text_of(row.get(asked), f"{path}, {where}, {asked!r}", strip=False)
        answers = answers_of(row[answer], f"{path}, {where}, {answer!r}")
        found.append(Row(where, told, input, answers))
    alone = "input" not in used
    return source_of(found, path, prompts=used.get("input", "").lower() == "prompt", own=alone)


def _by_no_column(sample: Mapping[str, Any], columns: Columns) -> None:
    """Plain records are not recognised by themselves: they are what remains."""


PLAIN = RowFormat("records", _by_no_column, _read_plain)
# Alpaca's and Dolly's rows may lack an input: the instruction is then the whole prompt
TOLD = RowFormat("records with instructions", _by_no_column, _read_plain, frozenset({"instruction", "input"}))
