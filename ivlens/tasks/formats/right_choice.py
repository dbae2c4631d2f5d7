"""How a file names the right choice of a multiple-choice record: by a label, a letter, a position, a text, a column."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ivlens.tasks.formats.records import Rows, Spelled, wrong


class Choices(NamedTuple):
    """The choices of one record.

    Attributes:
        texts: What can be chosen.
        labels: What the file calls them; empty where it does not say.
        columns: The columns that they stand in, where each has its own.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


Way = Callable[[Choices, Any], int | None]  # the position of the choice that an answer means, or None


def _by_label(choices: Choices, answer: Any) -> int | None:
    text = str(answer).strip()
    return choices.labels.index(text) if text in choices.labels else None


def _by_column(choices: Choices, answer: Any) -> int | None:
    text = str(answer).strip()
    return choices.columns.index(text) if text in choices.columns else None


def _by_letter(choices: Choices, answer: Any) -> int | None:
    found = re.fullmatch(r"\(?([A-Za-z])[).]?", str(answer).strip())
    position = ord(found[1].upper()) - ord("A") if found else len(choices.texts)
    return position if position < len(choices.texts) else None


def _by_text(choices: Choices, answer: Any) -> int | None:
    text = str(answer).strip()
    return choices.texts.index(text) if text in choices.texts else None


def _by_position(choices: Choices, answer: Any, first: int = 0) -> int | None:
    found = re.fullmatch(r"(\d{1,6})(\.0*)?", str(answer).strip())  # a table may spell whole numbers as 2.0
    position = int(found[1]) - first if found else -1
    return position if 0 <= position < len(choices.texts) else None


def _from_one(choices: Choices, answer: Any) -> int | None:
    return _by_position(choices, answer, 1)


_NUMBERS: dict[str, Way] = {"a number that counts from 0": _by_position, "a number that counts from 1": _from_one}
_TEXTS: dict[str, Way] = {"its text": _by_text, "its letter": _by_letter}


def is_named(choices: Choices, answer: Any) -> bool:
    """Whether an answer can mean one of the choices."""
    return any(way(choices, answer) is not None for way in _ways([answer]).values())


def way_of(
    choices: Sequence[Choices], given: Sequence[tuple[Any, ...]], rows: Rows, path: Path | str
) -> tuple[str, Way]:
    """How all records name the right choice, in words and as a function.

    Args:
        choices: The choices of each record.
        given: The answers of each record, as the file has them.
        rows: The records, for errors.
        path: The file, for errors.

    Raises:
        ValueError: no way fits all of them; the message names the first record that the most usual way does not fit.
    """
    asked = [
        (row, one, answer) for row, (one, answers) in enumerate(zip(choices, given, strict=True)) for answer in answers
    ]
    ways = _ways([answer for _, _, answer in asked])
    for name, way in ways.items():
        if all(way(one, answer) is not None for _, one, answer in asked):
            return name, way
    counts = {name: sum(way(one, answer) is not None for _, one, answer in asked) for name, way in ways.items()}
    usual = max(counts, key=lambda name: counts[name])
    row, one, answer = next(each for each in asked if ways[usual](each[1], each[2]) is None)
    expected = f"{usual} as in {counts[usual]} other records" if counts[usual] else "a label, letter, number or text"
    got = f"{rows[row][0]} has the answer {str(answer)!r:.60}, which is none of its {len(one.texts)} choices"
    raise wrong(path, got, f"{expected} of one of them", "correct it, or take the record out")


def _ways(answers: Sequence[Any]) -> dict[str, Way]:
    """The ways in the order in which they are tried.

    A label that the file gives comes first. Numbers that stand without quotation marks are positions before they are
    texts, and texts are texts before they are letters or positions.
    """
    are_numbers = all(isinstance(answer, int | float | Spelled) for answer in answers)
    named: dict[str, Way] = {"its label": _by_label, "the name of its column": _by_column}
    return named | (_NUMBERS | _TEXTS if are_numbers else _TEXTS | _NUMBERS)
