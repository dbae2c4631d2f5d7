"""What commands print: aligned text, JSON that any reader accepts, progress only where someone watches."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def shows_progress(as_json: bool) -> bool:
    """Whether progress bars make sense: someone watches stderr, and no program reads the output."""
    return not as_json and sys.stderr.isatty()


def print_json(value: Any) -> None:
    """One JSON object; numbers that JSON lacks (NaN, infinity) become null."""
    print(json.dumps(_plain(value), ensure_ascii=False, indent=2))


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns as wide as their content; numbers to the right, with two decimals if they have any."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [all(_is_number(row[column]) for row in rows) for column in range(len(header))]
    widths = [max(len(line[column]) for line in (list(header), *cells)) for column in range(len(header))]
    for line in (list(header), ["-" * width for width in widths], *cells):
        parts = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ]
        print("  ".join(parts).rstrip())


def one_line(text: str) -> str:
    """A text with its line breaks visible."""
    return text.replace("\r", "").replace("\n", "⏎")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):  # a number of numpy or torch
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
