"""JSON documents: lists of records, and dicts that hold them in one way or another."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ivlens.tasks.formats import chat
from ivlens.tasks.formats.passages import flattened
from ivlens.tasks.formats.records import Columns, Source, in_part, joined, text_of, texts_of, wrong
from ivlens.tasks.formats.rows import PLAIN, read_plain, read_rows, recognised

PARTS = ("train", "eval", "dev", "valid", "validation", "test")
# of one record; with more it is a dict of answers with an input called "input", or one called "question" and so on
_MOST_KEYS, _MOST_KEYS_OF_FORMATS = 4, 12


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
        return _said(read_rows(rows, columns, path), "a JSON list")
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
    return replace(source, format="a JSON dict of inputs and their answers", uses=(), found=(), head=())


def no_parts(path: Path, part: str) -> ValueError:
    """The error for a part of a file that has none, which the caller raises."""
    got = f"got part={part!r:.60} for a single file"
    return wrong(path, got, "a folder or dataset with parts", "leave part out")


def _said(source: Source, holder: str) -> Source:
    """The source, its format named together with what holds the records."""
    return replace(source, format=f"{source.format} in {holder}")


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


def _is_natural(value: Mapping[str, Any], columns: Columns) -> bool:
    return not any(columns) and "Instances" in value and not isinstance(value["Instances"], str)


def _read_natural_instructions(value: Mapping[str, Any], columns: Columns, path: Path) -> Source:
    """A Natural-Instructions task: its instances, its definition as the instruction, its positive examples."""
    named = Columns("input", "output")
    rows = {}
    for key in ("Instances", "Positive Examples"):
        records = value.get(key, [])
        if not isinstance(records, list):
            raise wrong(path, f"{key!r} is a {type(records).__name__}", "a list of {input, output}", "check the file")
        rows[key] = [(f"{key}[{index}]", record) for index, record in enumerate(records)]
    source = read_plain(rows["Instances"], named, path)
    examples = read_plain(rows["Positive Examples"], named, path).records if rows["Positive Examples"] else ()
    definition = texts_of(value.get("Definition"), f"{path}, Definition")
    about = {"format": "a Natural-Instructions task", "uses": (), "found": (), "head": ()}
    return replace(source, instructions=definition, demonstrations=examples, **about)


def _is_bank(value: Mapping[str, Any], columns: Columns) -> bool:
    return not any(columns) and "instructions" in value and isinstance(value.get("examples"), list)


def read_bank(value: Any, columns: Columns, path: Path) -> Source:
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
    source = read_plain(rows, Columns("input", "output"), path)
    texts["name"] = texts["name"] or source.name
    about = {"format": "a task in the format of the bank", "uses": (), "found": (), "head": ()}
    return replace(source, **lists, **texts, **about, in_training=value.get("in_training", False))


def _is_squad(value: Mapping[str, Any], columns: Columns) -> bool:
    articles = value.get("data")
    return (
        isinstance(articles, list) and bool(articles) and isinstance(articles[0], dict) and "paragraphs" in articles[0]
    )


def _read_squad(value: Mapping[str, Any], columns: Columns, path: Path) -> Source:
    return _said(read_rows(flattened(value, path), columns, path), "SQuAD's own JSON")


def _is_conversation(value: Mapping[str, Any], columns: Columns) -> bool:
    return chat.uses(value, columns) is not None


def _is_columnar(value: Mapping[str, Any], columns: Columns) -> bool:
    """Whether a dict holds columns: lists of one length, of which the first items make a record."""
    if not value or not all(isinstance(column, list) and column for column in value.values()):
        return False
    first = {name: column[0] for name, column in value.items()}
    return len({len(column) for column in value.values()}) == 1 and _is_record(first, columns)


def _read_columnar(value: Mapping[str, Any], columns: Columns, path: Path) -> Source:
    cells = zip(*value.values(), strict=True)
    rows = [(f"record {index}", dict(zip(value, row, strict=True))) for index, row in enumerate(cells)]
    return _said(read_rows(rows, columns, path), "a JSON dict of columns")


def _is_record(value: Mapping[str, Any], columns: Columns) -> bool:
    """Whether a dict is one record, as a file of JSON Lines with one line is."""
    try:
        format, _ = recognised(value, columns, "")
    except ValueError:
        return False
    # input and output alone may also be words in a dict of answers
    return len(value) <= (_MOST_KEYS if format is PLAIN else _MOST_KEYS_OF_FORMATS)


def _read_record(value: Mapping[str, Any], columns: Columns, path: Path) -> Source:
    return _said(read_rows([("record 0", dict(value))], columns, path), "JSON: a single record")


def _list_inside(value: Mapping[str, Any]) -> str | None:
    """The key of the one list of records in a dict that otherwise holds texts and numbers about them."""
    held = [key for key, one in value.items() if isinstance(one, list | dict)]
    records = value[held[0]] if len(held) == 1 else None
    return held[0] if isinstance(records, list) and records and isinstance(records[0], dict) else None


def _is_wrapped(value: Mapping[str, Any], columns: Columns) -> bool:
    return _list_inside(value) is not None


def _read_wrapped(value: Mapping[str, Any], columns: Columns, path: Path) -> Source:
    key = _list_inside(value)
    assert key is not None
    rows = [(f"{key}[{index}]", record) for index, record in enumerate(value[key])]
    return _said(read_rows(rows, columns, path), f"a JSON list under {key!r}")


Form = tuple[
    Callable[[Mapping[str, Any], Columns], bool],
    Callable[[Mapping[str, Any], Columns, Path], Source],
]
_FORMS: tuple[Form, ...] = (  # the first that fits
    (_is_natural, _read_natural_instructions),
    (_is_bank, read_bank),
    (_is_squad, _read_squad),
    (_is_conversation, _read_record),
    (_is_columnar, _read_columnar),
    (_is_record, _read_record),
    (_is_wrapped, _read_wrapped),
)
