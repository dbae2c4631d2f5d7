"""JSON documents in the forms of published collections: Natural-Instructions, SQuAD, and the bank of ivlens itself."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ivlens.tasks.formats.passages import flattened
from ivlens.tasks.formats.records import Columns, Source, text_of, texts_of, wrong
from ivlens.tasks.formats.rows import read_plain, read_rows


def is_natural(value: Mapping[str, Any], columns: Columns) -> bool:
    """Whether a document is a Natural-Instructions task."""
    return not any(columns) and "Instances" in value and not isinstance(value["Instances"], str)


def read_natural(value: Mapping[str, Any], columns: Columns, path: Path) -> Source:
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
    source = source.without_columns("a Natural-Instructions task")
    return replace(source, instructions=definition, demonstrations=examples)


def is_bank(value: Mapping[str, Any], columns: Columns) -> bool:
    """Whether a document is a task in the format of the built-in bank."""
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
    source = source.without_columns("a task in the format of the bank")
    return replace(source, **lists, **texts, in_training=value.get("in_training", False))


def is_squad(value: Mapping[str, Any], columns: Columns) -> bool:
    """Whether a document is a file of SQuAD."""
    articles = value.get("data")
    return (
        isinstance(articles, list) and bool(articles) and isinstance(articles[0], dict) and "paragraphs" in articles[0]
    )


def read_squad(value: Mapping[str, Any], columns: Columns, path: Path) -> Source:
    """SQuAD's own file, which nests articles, paragraphs and questions."""
    return read_rows(flattened(value, path), columns, path).held_in("SQuAD's own JSON")
