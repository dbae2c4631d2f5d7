"""Output of commands: aligned tables, JSON that any reader accepts, and progress bars where someone watches."""

import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from ivlens.common.names import shown

ABILITY = "ivlens.forward.ability"  # the logger that says, at level INFO, how well a model does its task
FORMS = ("ivlens.forward.forms", "ivlens.forward.remembered")  # loggers that say which form of prompt was found


# characters that JSON leaves as they are, but that terminals obey: C1 controls, directions of text
_OBEYED = re.compile("[\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def shows_progress(as_json: bool) -> bool:
    """Whether progress bars make sense: stderr is a screen, and the output is not JSON for a program."""
    return _tells(as_json) and sys.stderr.isatty()


def _tells(as_json: bool) -> bool:
    """Whether somebody reads how far the work is."""
    # processes of torchrun share a screen: one of them tells
    return not as_json and os.environ.get("RANK", "0") == "0"


@contextmanager
def telling(as_json: bool) -> Iterator[None]:
    """Show on stderr what a command does while it runs: progress bars, warnings, and the form of prompt it has found.

    Where stderr is no screen, long work has a line in a minute in place of a bar.
    Without `--json` stderr also says, before the long part begins, how well the model does its task.
    """
    from ivlens.common.progress import say, showing_progress, told_in_lines

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(shown(f"ivlens: {record.getMessage()}", keep="\n\t"))

    handler, package = Lines(logging.INFO), logging.getLogger("ivlens")
    # INFO only from these: others log details that no user asked for
    talking = [logging.getLogger(name) for name in (*FORMS, *(() if as_json else (ABILITY,)))]
    before = [logger.level for logger in talking]
    for logger in talking:
        logger.setLevel(logging.INFO)
    package.addHandler(handler)
    try:
        is_log = _tells(as_json) and not sys.stderr.isatty()  # a file, or a pipe
        with showing_progress(shows_progress(as_json)), told_in_lines() if is_log else nullcontext():
            yield
    finally:
        package.removeHandler(handler)
        for logger, level in zip(talking, before, strict=True):
            logger.setLevel(level)


def print_json(value: Any) -> None:
    """Print one JSON object; numbers that JSON lacks (NaN, infinity) become null."""
    # letters that stdout's encoding lacks are written as JSON's own escapes
    has_all = (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
    text = json.dumps(_plain(value), ensure_ascii=not has_all, indent=2)
    print(_OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table with columns as wide as their content; numbers stand to the right, floats with two decimals."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [all(_is_number(row[column]) for row in rows) for column in range(len(header))]
    widths = [max(len(line[column]) for line in (list(header), *cells)) for column in range(len(header))]
    for line in (list(header), ["-" * width for width in widths], *cells):
        parts = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ]
        print("  ".join(parts).rstrip())


def p_text(p: float | None) -> str:
    """A p value as the text of a cell; empty where there is none."""
    return "" if p is None or p != p else f"{p:.3f}"


def p_note(n_draws: int, n_tasks: int = 1) -> str:
    """A line below a table that explains p, and how small it can be with so many draws."""
    least = f"{1 / (1 + n_draws):.3g}"  # even if no draw reaches the vector
    holm = f", times the correction for {n_tasks} tasks (Holm)" if n_tasks > 1 else ""
    too_few = ": too few to show p < 0.05" if n_draws < 20 else ""
    return (
        f"p: (1 + draws that reach the vector) / (1 + draws){holm}; with {n_draws} draws never below {least}{too_few}"
    )


def told(trouble: str) -> int:
    """The exit status after writing figures: 1, and a line on stderr, if HTML was written in place of images."""
    if trouble:
        print(f"ivlens: {trouble} HTML was written instead.", file=sys.stderr)
    return 1 if trouble else 0


def one_line(text: str) -> str:
    """A text on one line, with a sign for each line break."""
    return text.replace("\r", "").replace("\n", "⏎")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: Any) -> str:
    """A value as the text of a table's cell."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else shown(value)


def _plain(value: Any) -> Any:
    """A value made of what JSON can hold."""
    if hasattr(value, "item"):  # a number of numpy or torch
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
