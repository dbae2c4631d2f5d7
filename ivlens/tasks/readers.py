"""Opens whatever holds a task: a file, a folder, or a dataset on the Hub; the format is recognised by the content.

Every reader in `formats/` returns a `Source`: records as text, not yet cleaned. `bank.py` then merges records, leaves
out incomplete ones, and reports both.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from ivlens.common.store.written import said_of
from ivlens.tasks.formats.arrow import read_hub, read_parquet, read_saved
from ivlens.tasks.formats.contents import is_record, parse_json, read_text
from ivlens.tasks.formats.documents import PARTS, no_parts, read_document
from ivlens.tasks.formats.packed import packing_of
from ivlens.tasks.formats.published import read_bank
from ivlens.tasks.formats.records import Columns, Source, in_part, joined, texts_of, wrong
from ivlens.tasks.formats.rows import read_rows
from ivlens.tasks.formats.tables import table_rows
from ivlens.tasks.formats.unknown import begins_as_json, unknown_text

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
PACKED_SUFFIXES = (".gz", ".zst")  # after one of the others, except after .parquet
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
    return _read_folder(path, columns, part) if path.is_dir() else _read_file(path, columns, part)


def read_bank_file(path: Path) -> Source:
    """Read one file of the built-in bank."""
    return read_bank(parse_json(read_text(path), path), Columns(), path)


def data_stem(name: str) -> str | None:
    """The name of a data file without its endings, in lower case, such as `train` for Train.jsonl.gz.

    None for a file whose ending is none of `SUFFIXES`, alone or with one of `PACKED_SUFFIXES` behind it.
    """
    stem, ending = os.path.splitext(name.lower())
    if ending in PACKED_SUFFIXES:
        stem, ending = os.path.splitext(stem)
    return stem if ending in SUFFIXES else None


def _is_hub_name(text: str) -> bool:
    """Whether a text reads as `owner/name`, and not as a path whose file is missing."""
    looks_local = text.startswith(".") or data_stem(text) is not None or os.path.exists(text.split("/")[0])
    return HUB_NAME.fullmatch(text) is not None and not looks_local


def _not_found(name_or_path: str | Path, known: Sequence[str]) -> Exception:
    """The error for a name or path that leads nowhere, with suggestions."""
    text = str(name_or_path)
    place = os.path.expanduser(text)
    if os.path.islink(place):
        got = f"is a link to {os.readlink(place)!r:.300}, where nothing is"
        return FileNotFoundError(f"{text!r:.300} {got}, expected a task's file or folder; link it to one.")
    if isinstance(name_or_path, str) and re.fullmatch(r"[\w -]+", text):
        near = get_close_matches(text.lower(), known, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        return ValueError(
            f"Task {text!r:.60} is unknown, expected a built-in name or an existing path; {hint}list_tasks() names "
            f"all {len(known)}, and 'hf://{text:.40}' asks the Hub."
        )
    parent, name = os.path.split(place)
    near = get_close_matches(name, os.listdir(parent or ".") if os.path.isdir(parent or ".") else [], n=3)
    hint = f"did you mean {' or '.join(near)}" if near else f"check the path (working directory: {Path.cwd()})"
    if text in known:
        hint = "the built-in task is opened by its name as a string, not as a Path"
    return FileNotFoundError(f"{text!r:.300} does not exist, expected a task's file or folder; {hint}.")


# --- files -----------------------------------------------------------------------------------------------------------


def _read_file(path: Path, columns: Columns, part: str | None = None) -> Source:
    """Read one file of any format: Parquet, a table (CSV), one JSON record a line, or one JSON document."""
    if not path.is_file():
        raise wrong(path, "is no regular file", "a file or folder", "write its content to a file")
    with path.open("rb") as file:
        head = file.read(4)
    if head == b"PAR1":
        if part is not None:
            raise no_parts(path, part)
        return read_parquet(path, columns)
    source = _read_content(read_text(path), path, columns, part)
    packing = packing_of(head)
    if packing:  # `path.stem` has taken away .gz or .zst alone
        stem = Path(path.resolve().stem).stem
        named = {"name": stem} if source.name == path.resolve().stem else {}
        return replace(source, **named, format=f"{source.format}, packed by {packing}")
    return source


def _read_content(text: str, path: Path, columns: Columns, part: str | None) -> Source:
    """Read the text of a file: a table, JSON Lines, or a JSON document."""
    is_json = begins_as_json(text)
    if not is_json and text.lstrip()[0] in "[{":
        raise unknown_text(text, path)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()] if is_json else []
    # JSON Lines: the first line is a whole record, and more follow
    if is_json and not (len(lines) > 1 and is_record(lines[0][1])):
        return read_document(parse_json(text, path), columns, path, part)
    if part is not None:
        raise no_parts(path, part)
    if is_json:
        rows = [(f"line {number}", parse_json(line, path, number)) for number, line in lines]
        holder = "JSON Lines"
    else:
        rows, separators = table_rows(text, columns, path)
        holder = f"a table with {separators}"
    return read_rows(rows, columns, path).held_in(holder)


# --- folders ---------------------------------------------------------------------------------------------------------


def _read_folder(path: Path, columns: Columns, part: str | None) -> Source:
    """Read a folder: a saved dataset, one file, or a file for each part and perhaps one that lists the labels.

    TRACE and the long-sequence benchmark have a file for each part; copies of datasets on the Hub have them in `data`.
    """
    is_saved = (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    if is_saved or (path / "dataset_dict.json").is_file():
        return read_saved(path, columns, part)
    files = sorted(file for file in path.iterdir() if file.is_file() and data_stem(file.name) is not None)
    if not files and (path / "data").is_dir() and path.name != "data":  # one level: a link may lead back
        return replace(_read_folder(path / "data", columns, part), name=path.resolve().name)
    stems = {file: data_stem(file.name) or "" for file in files}
    parts = [(match[1], file) for file in files if (match := PART_FILE.fullmatch(stems[file]))]
    # a store of results and an adapter have one JSON file, which is no task
    if not parts and (told := said_of(path)):
        raise wrong(path, f"is {told}", "a task's folder", "name the file or folder of a task")
    if len(files) == 1 and not parts:
        return _read_file(files[0], columns, part)
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
    read = [in_part(_read_file(file, columns), name, file.name) for name, file in wanted]
    source = joined(read, path)
    source = replace(source, format=f"{source.format}; a file for each part ({_names([f for _, f in wanted])})")
    return _with_labels(source, [file for file in files if not PART_FILE.fullmatch(stems[file])])


def _names(files: Sequence[Path], most: int = 4) -> str:
    """The names of a few files, and how many more there are."""
    more = f" and {len(files) - most} more" if len(files) > most + 1 else ""
    return ", ".join(file.name for file in (files[:most] if more else files)) + more


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
