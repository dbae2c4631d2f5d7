"""From a file to its text, and from a text to the values of a JSON document."""

import json
from pathlib import Path
from typing import Any

from ivlens.common.foreign import read_foreign
from ivlens.tasks.formats.packed import unpacked
from ivlens.tasks.formats.records import MOST_RECORDS, Spelled, wrong
from ivlens.tasks.formats.unknown import UTF_16, unknown, unknown_bytes

LARGEST_FILE = 2**27  # bytes
# Characters that become objects in memory, and how many of them a file may have; plain text has far fewer.
MOST = {
    "lists and records": ("[{", 2 * MOST_RECORDS),
    "fields": (":", 4 * MOST_RECORDS),
    "lines": ("\n", MOST_RECORDS),
    "separators": (",\t;|", 2**22),
}


def read_text(path: Path) -> str:
    """The text of a task file, neither empty nor too large: UTF-8, or UTF-16 that says so; gzip and zstd are unpacked.

    Raises:
        ValueError: it is another kind of file, or damaged, or larger than it may be.
    """
    try:
        packed = read_foreign(path, LARGEST_FILE)
    except OSError as error:
        got = f"cannot be read ({error.strerror or error})"
        remedy = "check permissions, or use a part of it"
        raise wrong(path, got, f"a readable file of at most {LARGEST_FILE >> 20} MiB", remedy) from None
    data = unpacked(packed, path, LARGEST_FILE)
    if (error := unknown_bytes(data, path)) is not None:
        raise error
    encoding = "utf-16" if data.startswith(UTF_16) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        got = f"byte {error.start} (0x{error.object[error.start]:02x}) is not {name}"
        raise wrong(path, got, f"a text file in {name}", "save it as UTF-8") from None
    if "\0" in text and encoding == "utf-16":
        raise unknown(path, "binary data")
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
    """The value of a JSON text: numbers are `Spelled`, NaN becomes None, repeated keys become lists.

    Args:
        text: The JSON text.
        path: The file, for errors.
        line: The line's number, where `text` is one line of the file.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        got = f"line {line or error.lineno}, column {error.colno} is not JSON ({error.msg})"
        raise wrong(path, got, "a complete JSON document", "it may be cut off: write or download it again") from None
    except RecursionError:
        raise wrong(path, "is nested too deeply", "a list of records or a dict", "flatten it") from None


def is_record(line: str) -> bool:
    """Whether a line is a whole JSON object."""
    try:
        return isinstance(json.loads(line, parse_int=str), dict)  # Python refuses ints of more than 4,300 digits
    except (ValueError, RecursionError):
        return False


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


# made once: files of JSON Lines have up to 400,000 documents
_DECODER = json.JSONDecoder(
    parse_int=Spelled, parse_float=Spelled, parse_constant=lambda _: None, object_pairs_hook=_collect_pairs
)
