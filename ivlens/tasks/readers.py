"""Readers of task files: the format is recognised by the content, and each format has one small reader.

Every reader returns a `Source`: records as text, not yet cleaned. `bank.py` then merges records, leaves out incomplete
ones, and reports both.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ivlens.tasks.arrow import read_hub, read_parquet, read_saved
from ivlens.tasks.records import (
    INPUT_NAMES,
    OUTPUT_NAMES,
    Columns,
    Source,
    csv_rows,
    from_rows,
    guess_column,
    in_part,
    joined,
    parse_json,
    read_text,
    text_of,
    texts_of,
    wrong,
)

PARTS = ("train", "eval", "dev", "valid", "validation", "test")
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
PART_FILE = re.compile(rf"({'|'.join(PARTS)})([-_.]\d+.*)?")  # train.json, train-00000-of-00002.parquet
_LARGEST_LABELS = 2**22  # bytes of a file that may list labels; a larger file is something else
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def open_source(
    name_or_path: str | Path, columns: Columns, *, part: str | None, config: str | None, known: Sequence[str]
) -> Source:
    """Read the task that a name or path leads to: a file, a folder, or a dataset on the Hub.

    Args:
        name_or_path: The name or path.
        columns: Names of the columns to read.
        part: The part to read alone; None for all.
        config: The configuration of a Hub dataset.
        known: The built-in names, for suggestions in errors.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it cannot be read as a task, or has no such part or configuration.
    """
    text = str(name_or_path)
    if text.startswith("hf://"):
        return read_hub(text.removeprefix("hf://"), columns, part, config)
    path = Path(os.path.expanduser(text))
    if not text.strip() or not os.path.exists(path):
        if isinstance(name_or_path, str) and _is_hub_name(text):
            return read_hub(text, columns, part, config)
        raise _not_found(name_or_path, known)
    if config is not None:
        raise wrong(path, f"got config={config!r:.60} for a local path", "a Hub dataset", "leave config out")
    if path.is_dir():
        return _read_folder(path, columns, part)
    if part is not None:
        raise wrong(
            path, f"got part={part!r:.60} for a single file", "a folder or dataset with parts", "leave part out"
        )
    return _read_file(path, columns)


def read_bank_file(path: Path) -> Source:
    """Read one file of the built-in bank."""
    return _read_bank(parse_json(read_text(path), path), path)


def _is_hub_name(text: str) -> bool:
    """Whether a text reads as `owner/name`, and not as a path whose file is missing."""
    looks_local = text.startswith(".") or text.lower().endswith(SUFFIXES) or os.path.exists(text.split("/")[0])
    return HUB_NAME.fullmatch(text) is not None and not looks_local


def _not_found(name_or_path: str | Path, known: Sequence[str]) -> Exception:
    """The error for a name or path that leads nowhere, with suggestions."""
    text = str(name_or_path)
    if isinstance(name_or_path, str) and re.fullmatch(r"[\w -]+", text):
        near = get_close_matches(text.lower(), known, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        return ValueError(
            f"Task {text!r:.60} is unknown, expected a built-in name or an existing path; {hint}list_tasks() names "
            f"all {len(known)}, and 'hf://{text:.40}' asks the Hub."
        )
    parent, name = os.path.split(os.path.expanduser(text))
    near = get_close_matches(name, os.listdir(parent or ".") if os.path.isdir(parent or ".") else [], n=3)
    hint = f"did you mean {' or '.join(near)}" if near else f"check the path (working directory: {Path.cwd()})"
    if text in known:
        hint = "the built-in task is opened by its name as a string, not as a Path"
    return FileNotFoundError(f"{text!r:.300} does not exist, expected a task's file or folder; {hint}.")


# --- files -----------------------------------------------------------------------------------------------------------


def _read_file(path: Path, columns: Columns) -> Source:
    """Read one file of any format: Parquet, a table (CSV), one JSON record a line, or one JSON document."""
    if not path.is_file():
        raise wrong(path, "is no regular file", "a file or folder", "write its content to a file")
    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    if is_parquet:
        return read_parquet(path, columns)
    text = read_text(path)
    # a table, since JSON begins with a bracket
    if text.lstrip()[0] not in "[{":
        return from_rows(csv_rows(text, path), columns, path)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    # JSON Lines: the first line is a whole record, and more follow
    if len(lines) > 1 and _is_record(lines[0][1]):
        rows = [(f"line {number}", parse_json(line, path, number)) for number, line in lines]
        return from_rows(rows, columns, path)
    return _from_json(parse_json(text, path), columns, path)


def _is_record(line: str) -> bool:
    """Whether a line is a whole JSON object."""
    try:
        return isinstance(json.loads(line, parse_int=str), dict)  # Python refuses ints of more than 4,300 digits
    except (ValueError, RecursionError):
        return False


def _from_json(value: Any, columns: Columns, path: Path) -> Source:
    """Read a JSON document by the form of its content."""
    if isinstance(value, list):
        return from_rows([(f"record {index}", record) for index, record in enumerate(value)], columns, path)
    is_table = guess_column(value, columns.input, INPUT_NAMES) and guess_column(value, columns.output, OUTPUT_NAMES)
    if is_table and len(value) <= 4:  # with more, it is a dict of answers with an input called "input"
        return from_rows([("record 0", value)], columns, path)
    if any(columns):
        found = ", ".join(map(repr, list(value)[:8]))
        raise wrong(path, f"is one dict with the keys {found}", "a list of records", "leave the column names out")
    if "Instances" in value and not isinstance(value["Instances"], str):
        return _read_natural_instructions(value, path)
    if "instructions" in value and isinstance(value.get("examples"), list):
        return _read_bank(value, path)
    rows = [(f"key {key!r:.60}", {"input": key, "output": answer}) for key, answer in value.items()]
    return from_rows(rows, Columns("input", "output"), path)


def _read_natural_instructions(value: dict[str, Any], path: Path) -> Source:
    """A Natural-Instructions task: its instances, its definition as the instruction, its positive examples."""
    columns = Columns("input", "output")
    rows = {}
    for key in ("Instances", "Positive Examples"):
        records = value.get(key, [])
        if not isinstance(records, list):
            raise wrong(path, f"{key!r} is a {type(records).__name__}", "a list of {input, output}", "check the file")
        rows[key] = [(f"{key}[{index}]", record) for index, record in enumerate(records)]
    source = from_rows(rows["Instances"], columns, path)
    examples = from_rows(rows["Positive Examples"], columns, path).records if rows["Positive Examples"] else ()
    definition = texts_of(value.get("Definition"), f"{path}, Definition")
    return replace(source, instructions=definition, demonstrations=examples)


def _read_bank(value: Any, path: Path) -> Source:
    """A task in the format of the built-in bank."""
    if not isinstance(value, dict) or not isinstance(value.get("examples"), list):
        raise wrong(path, "has no list 'examples'", "a task of the bank's format", "see the built-in files")
    if not isinstance(value.get("in_training", False), bool):
        raise wrong(f"{path}, in_training", f"got {value['in_training']!r:.60}", "true or false", "correct it")
    rows = [(f"examples[{index}]", record) for index, record in enumerate(value["examples"])]
    lists = {
        key: texts_of(value.get(key, []), f"{path}, {key}")
        for key in ("instructions", "held_out_instructions", "clozes", "prose")
    }
    texts = {key: text_of(value.get(key), f"{path}, {key}") for key in ("name", "kind", "inputs")}
    source = from_rows(rows, Columns("input", "output"), path)
    texts["name"] = texts["name"] or source.name
    return replace(source, **lists, **texts, in_training=value.get("in_training", False))


# --- folders ---------------------------------------------------------------------------------------------------------


def _read_folder(path: Path, columns: Columns, part: str | None) -> Source:
    """Read a folder: a saved dataset, one file, or a file for each part and perhaps one that lists the labels.

    TRACE and the long-sequence benchmark have a file for each part.
    """
    is_saved = (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    if is_saved or (path / "dataset_dict.json").is_file():
        return read_saved(path, columns, part)
    files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in SUFFIXES)
    parts = [(match[1], file) for file in files if (match := PART_FILE.fullmatch(file.stem.lower()))]
    if len(files) == 1 and not parts and part is None:
        return _read_file(files[0], columns)
    if not parts:
        names = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        expected = f"train, eval or test files ({', '.join(SUFFIXES)}), one data file, or a saved dataset"
        raise wrong(path, f"holds {names}", expected, "name one file or subfolder of it")
    found = list(dict.fromkeys(name for name, _ in parts))
    if part not in (None, *found):
        raise wrong(path, f"got part={part!r}", f"one of {', '.join(found)}", "choose one, or leave part out for all")
    # in the order of PARTS, so that the training part comes first whatever the files are called
    wanted = [
        (name, file) for name in PARTS for found_name, file in parts if name == found_name and part in (None, name)
    ]
    source = joined([in_part(_read_file(file, columns), name, file.name) for name, file in wanted], path)
    return _with_labels(source, [file for file in files if not PART_FILE.fullmatch(file.stem.lower())])


def _with_labels(source: Source, others: Sequence[Path]) -> Source:
    """The source; if it has no instruction and another file lists the labels, they become its instruction."""
    small = [file for file in others if file.suffix.lower() == ".json" and file.stat().st_size <= _LARGEST_LABELS]
    contents = [parse_json(read_text(file), file) for file in small]
    lists = [
        found for found in contents if isinstance(found, list) and found and all(isinstance(v, str) for v in found)
    ]
    if not lists or source.instructions or source.fused:
        return source
    labels = texts_of(lists[0], f"{source.source}, labels")
    known = set(labels)
    for record in source.records:
        unknown = [answer for answer in record.answers if answer not in known]
        if unknown:
            got = f"{record.where} has the label {unknown[0]!r:.60}"
            raise wrong(source.source, got, f"one of {', '.join(labels):.400}", "correct it, or add it to the labels")
    choice = " or ".join(filter(None, (", ".join(labels[:-1]), labels[-1])))
    return replace(source, instructions=(f"Choose the label that fits the text: {choice}.",))
