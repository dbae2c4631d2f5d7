"""Tables as text: a header line, then a line for each record, with cells of any length."""

import csv
import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ivlens.tasks.formats.columns import CONTEXT_NAMES, INPUT_NAMES, INSTRUCTION_NAMES, OUTPUT_NAMES
from ivlens.tasks.formats.contents import LARGEST_FILE
from ivlens.tasks.formats.records import N_NAMED, Columns, Rows, wrong
from ivlens.tasks.formats.unknown import is_toml, unknown_text

DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_MOST_COLUMNS = 10_000
_TOLD = re.compile(rf"(?i)sep=([{re.escape(''.join(DELIMITERS))}])")
_LINE_END = re.compile(r"\r\n|\n|\r")
# The longest cell is a number that all readers of a process share; whoever changes it holds the lock.
_LONGEST_CELL = threading.Lock()


def table_rows(text: str, columns: Columns, path: Path) -> tuple[Rows, str]:
    """The rows of a table whose first line names its columns, and what separates its cells.

    Raises:
        ValueError: the text is no table, or a row has another number of cells than the header.
    """
    n_blank = len(text) - len(text.lstrip("\r\n"))
    # empty lines above the header are cut off, but count in line numbers
    above, text = len(_LINE_END.findall(text[:n_blank])), text[n_blank:]
    first, *rest = _LINE_END.split(text, maxsplit=1)
    told = _TOLD.fullmatch(first)
    if told is not None and rest:  # a line of Excel's, which is no part of the table
        above, text = above + 1, rest[0]
        first = _LINE_END.split(text, maxsplit=1)[0]
    # the most frequent one in the header, where the file does not say
    delimiter = max(DELIMITERS, key=first.count) if told is None else told[1]
    if first.count(delimiter) > _MOST_COLUMNS:
        got = f"has {first.count(delimiter):,} columns"
        raise wrong(path, got, f"at most {_MOST_COLUMNS:,}", "check how it was written")
    is_named = _has_usual_names(first, delimiter, columns)
    try:
        rows = _cells(text, delimiter, path, above)
    except ValueError:
        if is_named:
            raise
        raise unknown_text(text, path) from None
    if not (is_named or _is_regular(text, rows)):
        raise unknown_text(text, path)
    header = [name.strip() for name in rows[0][1]]
    if len(header) < 2 or len(set(header)) < len(header):
        expected = "JSON, or a table with two or more distinct columns named in its first line"
        raise wrong(path, f"has the columns {', '.join(header[:N_NAMED])!r:.200}", expected, "add a header line")
    found: list[tuple[str, dict[str, Any]]] = []
    for number, cells in rows[1:]:
        where = f"line {number + above}"
        if len(cells) != len(header):
            expected = f"{len(header)} ({', '.join(header[:N_NAMED]):.400})"
            remedy = "quote cells that hold the delimiter"
            raise wrong(f"{path}, {where}", f"has {len(cells)} cells", expected, remedy)
        found.append((where, dict(zip(header, cells, strict=True))))
    return found, DELIMITERS[delimiter]


def _has_usual_names(first: str, delimiter: str, columns: Columns) -> bool:
    """Whether a first line has two or more cells, and one of them is the name of a column that could be read."""
    names = {cell.strip().strip('"').strip().lower() for cell in first.split(delimiter)}
    usual = {*INPUT_NAMES, *OUTPUT_NAMES, *INSTRUCTION_NAMES, *CONTEXT_NAMES}
    return len(names) > 1 and bool(names & (usual | {name.lower() for name in columns if name}))


def _is_regular(text: str, rows: list[tuple[int, list[str]]]) -> bool:
    """Whether rows look like a table by their form alone: two or more lines with as many cells, two or more in each.

    TOML is no table, even if all its lines have the same number of commas.
    """
    widths = {len(cells) for _, cells in rows}
    return len(rows) > 1 and len(widths) == 1 and widths != {1} and text.lstrip()[:1] not in "<[{" and not is_toml(text)


def _cells(text: str, delimiter: str, path: Path, above: int) -> list[tuple[int, list[str]]]:
    """Numbers and cells of all rows, the header first.

    In tables with tabs a quotation mark is often a letter like any other, and one that is taken for the beginning of a
    cell swallows all lines up to the next. So where the lines are whole as they stand, they are not read as CSV.
    """
    if delimiter != "\t":
        return _quoted_cells(text, delimiter, path, above)
    lines = [(number, line.split("\t")) for number, line in enumerate(_LINE_END.split(text), start=1) if line]
    if _are_whole(lines):
        return _unquoted(lines)
    try:
        rows = _quoted_cells(text, delimiter, path, above)
    except ValueError:
        return lines  # one of them is refused for its number of cells
    return rows if _are_whole(rows) else lines


def _are_whole(rows: list[tuple[int, list[str]]]) -> bool:
    return all(len(cells) == len(rows[0][1]) for _, cells in rows)


def _unquoted(rows: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Rows without the marks around whole cells, if all marks in the file are of this kind; otherwise as they are."""
    marked = [cell for _, cells in rows for cell in cells if '"' in cell]
    if not marked or not all(map(_is_quoted, marked)):
        return rows
    return [
        (number, [cell[1:-1].replace('""', '"') if '"' in cell else cell for cell in cells]) for number, cells in rows
    ]


def _is_quoted(cell: str) -> bool:
    """Whether a cell is quoted as CSV does it: marks around it, and doubled marks inside."""
    inner = cell[1:-1]
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")


def _quoted_cells(text: str, delimiter: str, path: Path, above: int) -> list[tuple[int, list[str]]]:
    """Numbers and cells of the rows of a CSV table, the number being that of a row's last line."""
    with _cells_of_any_length():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            return [(reader.line_num, cells) for cells in reader if cells]
        except csv.Error as error:
            got = f"line {reader.line_num + above} is not CSV ({error})"
            raise wrong(path, got, "JSON, or a table with a header", "check its quotes") from None


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Let the module `csv` read cells as long as a file may be, instead of 131,072 letters."""
    with _LONGEST_CELL:
        before = csv.field_size_limit(LARGEST_FILE)
        try:
            yield
        finally:
            csv.field_size_limit(before)
