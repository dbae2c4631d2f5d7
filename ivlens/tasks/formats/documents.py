"""JSON documents: lists of records, and dicts that hold them in one way or another."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ivlens.tasks.formats import chat, published
from ivlens.tasks.formats.columns import INPUT_NAMES, INSTRUCTION_NAMES, OUTPUT_NAMES, first_column
from ivlens.tasks.formats.records import Columns, Source, in_part, joined, listed, wrong
from ivlens.tasks.formats.rows import read_plain, read_rows, recognised

PARTS = ("train", "eval", "dev", "valid", "validation", "test")
_MOST_KEYS = 12  # of one record; with more it is a dict of answers, with inputs such as "question" and "answer"


def read_document(value: Any, columns: Columns, path: Path, part: str | None = None) -> Source:
    """Read a JSON document by the form of its content.

    Args:
        part: The part to read alone, where the document has parts; None for all.

    Raises:
        ValueError: it has no such form or no such part, or a record in it is wrong.
    """
    if isinstance(value, dict) and value and all(_is_part(key, held) for key, held in value.items()):
        return _read_parts(value, columns, path, part)
    if part is not None:
        raise no_parts(path, part)
    if isinstance(value, list):
        rows = [(f"record {index}", record) for index, record in enumerate(value)]
        return read_rows(rows, columns, path).held_in("a JSON list")
    # also whatever is neither, for the error
    for is_form, read in _FORMS:
        if isinstance(value, dict) and is_form(value, columns):
            return read(value, columns, path)
    if not isinstance(value, dict):
        raise wrong(path, f"holds {value!r:.40}", "a list of records or a dict", "check the file's format")
    if any(columns):
        found = ", ".join(map(repr, list(value)[:8]))
        raise wrong(path, f"is one dict with the keys {found}", "a list of records", "leave the column names out")
    rows = [(f"key {key!r:.60}", {"input": key, "output": answer}) for key, answer in value.items()]
    source = read_plain(rows, Columns("input", "output"), path)
    return source.without_columns("a JSON dict of inputs and their answers")


def no_parts(path: Path, part: str) -> ValueError:
    """The error for a part of a file that has none, which the caller raises."""
    got = f"got part={part!r:.60} for a single file"
    return wrong(path, got, "a folder or dataset with parts", "leave part out")


def _is_part(key: str, value: Any) -> bool:
    """Whether a key and its value are a part of a dataset: `"train": [{...}]`."""
    return key.lower() in PARTS and (
        (isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value))
        or (isinstance(value, dict) and bool(value) and all(isinstance(one, list) for one in value.values()))
    )


def _read_parts(value: Mapping[str, Any], columns: Columns, path: Path, part: str | None) -> Source:
    """Read all parts of a document, or one of them."""
    if part not in (None, *value):
        raise wrong(path, f"got part={part!r:.60}", f"one of {', '.join(value)}", "choose one, or leave part out")
    read = [(key, read_document(held, columns, path)) for key, held in value.items() if part in (None, key)]
    name = read[0][1].name  # that of the file
    source = joined([in_part(source, key, key) for key, source in read], path)
    return replace(source, name=name, format=f"{read[0][1].format} for each part ({', '.join(key for key, _ in read)})")


# --- forms of a dict -------------------------------------------------------------------------------------------------


def _is_conversation(value: Mapping[str, Any], columns: Columns) -> bool:
    return chat.uses(value, columns) is not None


def _is_columnar(value: Mapping[str, Any], columns: Columns) -> bool:
    """Whether a dict holds columns with usual names: lists of one length, or dicts with the same keys.

    `DataFrame.to_json` writes such dicts. Where several columns could be the input, reading them is refused; they must
    not be taken for inputs with their answers.
    """
    held = list(value.values())
    if all(isinstance(column, list) and column for column in held):
        are_alike = len({len(column) for column in held}) == 1
    elif all(isinstance(column, dict) and column for column in held):
        are_alike = all(column.keys() == held[0].keys() for column in held)
    else:
        return False
    # a dict of answers has more inputs than answers to each of them
    if not are_alike or len(held) > max(_MOST_KEYS, len(held[0])):
        return False
    first = {name: next(iter(one.values() if isinstance(one, dict) else one)) for name, one in value.items()}
    usual = all(first_column(first, names) is not None for names in (INPUT_NAMES, OUTPUT_NAMES))
    return usual or _is_recognised(first, columns)


def _read_columnar(value: Mapping[str, Any], columns: Columns, path: Path) -> Source:
    first = next(iter(value.values()))
    places = [f"record {key}" for key in first] if isinstance(first, dict) else None
    # in dicts, cells belong together by their keys
    rows = zip(*([column[key] for key in first] if places else column for column in value.values()), strict=True)
    return _read_cells(list(value), rows, columns, path, places).held_in("a JSON dict of columns")


def _is_split(value: Mapping[str, Any], columns: Columns) -> bool:
    """Whether a dict holds the names of columns beside rows of cells, as pandas and dataset viewers write it."""
    names, rows = value.get("columns"), value.get("data")
    return (
        isinstance(names, list)
        and isinstance(rows, list)
        and bool(rows)
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names)
        and all(isinstance(row, list) and len(row) == len(names) for row in rows)
    )


def _read_split(value: Mapping[str, Any], columns: Columns, path: Path) -> Source:
    return _read_cells(value["columns"], value["data"], columns, path).held_in("a JSON dict of names and rows")


def _read_cells(
    names: Sequence[str],
    cells: Iterable[Sequence[Any]],
    columns: Columns,
    path: Path,
    places: Sequence[str] | None = None,
) -> Source:
    """Read rows of cells below the names of their columns."""
    rows = [
        (places[index] if places else f"record {index}", dict(zip(names, row, strict=True)))
        for index, row in enumerate(cells)
    ]
    return read_rows(rows, columns, path)


def _is_record(value: Mapping[str, Any], columns: Columns) -> bool:
    """Whether a dict is one record, as a file of JSON Lines with one line is."""
    return len(value) <= _MOST_KEYS and _is_recognised(value, columns)


def _is_recognised(sample: Mapping[str, Any], columns: Columns) -> bool:
    """Whether it is clear which columns of records would be read."""
    try:
        recognised(sample, columns, "")
    except ValueError:
        return False
    return True


def _read_record(value: Mapping[str, Any], columns: Columns, path: Path) -> Source:
    return read_rows([("record 0", dict(value))], columns, path).held_in("JSON: a single record")


def _lists_inside(value: Mapping[str, Any]) -> list[str]:
    """The keys of lists of records in a dict."""
    return [key for key, one in value.items() if isinstance(one, list) and one and isinstance(one[0], dict)]


def _is_wrapped(value: Mapping[str, Any], columns: Columns) -> bool:
    return bool(_lists_inside(value))


def _read_wrapped(value: Mapping[str, Any], columns: Columns, path: Path) -> Source:
    """The one list of records in a dict, whatever is said about it beside it."""
    found = _lists_inside(value)
    if len(found) > 1:
        raise wrong(path, f"holds lists of records under {listed(found)}", "one such list", "take the others out")
    (key,) = found
    rows = [(f"{key}[{index}]", record) for index, record in enumerate(value[key])]
    source = read_rows(rows, columns, path).held_in(f"a JSON list under {key!r}")
    # numbers and texts tell of the records, except for a text that asks for the answers
    beside = [
        other
        for other, one in value.items()
        if other != key and one and (isinstance(one, list | dict) or other.strip().lower() in INSTRUCTION_NAMES)
    ]
    notes = (f"not read: what stands beside the records, under {listed(beside)}",) if beside else ()
    return replace(source, notes=(*source.notes, *notes))


Form = tuple[
    Callable[[Mapping[str, Any], Columns], bool],
    Callable[[Mapping[str, Any], Columns, Path], Source],
]
_FORMS: tuple[Form, ...] = (  # the first that fits
    (published.is_natural, published.read_natural),
    (published.is_bank, published.read_bank),
    (published.is_squad, published.read_squad),
    (_is_conversation, _read_record),
    (_is_columnar, _read_columnar),
    (_is_split, _read_split),
    (_is_record, _read_record),
    (_is_wrapped, _read_wrapped),
)
