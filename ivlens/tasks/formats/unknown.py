"""What is no task file: the error that says so, and what the file looks like instead."""

import re
import tomllib
from pathlib import Path

from ivlens.tasks.formats.records import wrong

KNOWN = "JSON, JSON Lines, CSV or TSV with a header line, or Parquet; texts may be packed as .gz or .zst"
_MAGIC = {
    b"PK\x03\x04": ("a zip archive, such as .zip, .xlsx or .npz", "unpack it, or save it as CSV"),
    b"BZh": ("packed by bzip2", "unpack it, or pack it as .gz"),
    b"\xfd7zXZ\x00": ("packed by xz", "unpack it, or pack it as .gz"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it"),
    b"PAR1": ("a Parquet file that was packed", "unpack it: Parquet is packed inside"),
    b"ARROW1": ("an Arrow file", "give the folder that save_to_disk() wrote, or write it as Parquet"),
    b"\xff\xff\xff\xff": ("an Arrow stream", "give the folder that save_to_disk() wrote, or write it as Parquet"),
    b"SQLite format 3\x00": ("an SQLite database", "export the table as CSV"),
    b"\x93NUMPY": ("a NumPy array", "write it as JSON or CSV"),
    b"\x89HDF\r\n": ("an HDF5 file", "write it as JSON or CSV"),
    b"\x80\x04": ("a pickle, which may run code when it is read", "write it as JSON"),
    b"\x80\x05": ("a pickle, which may run code when it is read", "write it as JSON"),
    b"%PDF": ("a PDF", "write its records as JSON or CSV"),
    b"\x89PNG": ("an image", "give a file of records"),
    b"\x1f\x8b": ("packed twice", "unpack it once"),
    b"\x28\xb5\x2f\xfd": ("packed twice", "unpack it once"),
}
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # the mark at the beginning of such a text
_LOOKED_AT = 2**16  # letters in which the kind of a text is looked for
# what may follow the brackets at the beginning of a JSON document
_JSON = re.compile(r'\s*(?:\[\s*)*(?:\{\s*(?:["}]|$)|(?:["\]\d-]|true\b|false\b|null\b|NaN\b|Infinity\b|$))')


def unknown(path: Path, looks_like: str = "", remedy: str = "write its records in one of these formats") -> ValueError:
    """The error for a file of another format, which the caller raises."""
    got = f"its format is unknown (it looks like {looks_like})" if looks_like else "its format is unknown"
    return wrong(path, got, KNOWN, remedy)


def unknown_bytes(data: bytes, path: Path) -> ValueError | None:
    """The error for bytes that are no text; None where they may be one."""
    for magic, (looks_like, remedy) in _MAGIC.items():
        if data.startswith(magic):
            return unknown(path, looks_like, remedy)
    begin = data[:_LOOKED_AT]
    if data.startswith(UTF_16) or b"\0" not in begin:
        return None
    # letters of most languages are one byte and a NUL there
    halves = (begin[::2], begin[1::2])
    if len(begin) > 3 and any(h.count(0) > len(h) // 2 and min(rest) > 8 for h, rest in (halves, halves[::-1])):
        return unknown(path, "a text in UTF-16 without a mark that says so", "save it as UTF-8")
    return unknown(path, "binary data")


def begins_as_json(text: str) -> bool:
    """Whether a text begins with brackets, and after them as only JSON goes on.

    `[section]` and `{% block %}` begin with brackets, too.
    """
    return text.lstrip()[:1] in ("[", "{") and _JSON.match(text) is not None


def unknown_text(text: str, path: Path) -> ValueError:
    """The error for a text that is neither JSON nor a table."""
    begin = text.lstrip()[:_LOOKED_AT]
    if begin.startswith("<"):
        return unknown(path, "XML or HTML")
    if is_toml(text):
        return unknown(path, "TOML")
    if begin[:1] in ("[", "{") and re.match(r"[\[{\s]*'", begin):
        return unknown(path, "a value printed by Python", "write it with json.dump")
    if re.match(r"(---\s*\n)?([\w\" -]+:( .*)?\r?\n|- .*\r?\n|#.*\n|\s+.*\n|\s*\n){2}", begin):
        return unknown(path, "YAML or plain text")
    return unknown(path, "plain text" if begin.isprintable() or "\n" in begin else "")


def is_toml(text: str) -> bool:
    """Whether a text, if it is not very long, is TOML with at least one key."""
    if len(text) > _LOOKED_AT or "=" not in text:
        return False
    try:
        return bool(tomllib.loads(text))
    except (ValueError, RecursionError):
        return False
