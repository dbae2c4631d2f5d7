"""Multiple choice: a question, its `choices`, and which of them is right.

The choices stand in the prompt, and the answer is the text of the right one, however the file says which that is: by
its label, its letter, its position, or its text. All records of a file must say it in the same way.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ivlens.tasks.formats.columns import CONTEXT_NAMES, INPUT_NAMES, INSTRUCTION_NAMES, first_column, guess_column
from ivlens.tasks.formats.records import (
    Columns,
    Row,
    Rows,
    Source,
    Spelled,
    source_of,
    text_of,
    texts_of,
    wrong,
)

NAMES = ("choices", "options", "endings")
QUESTIONS = ("question", *INPUT_NAMES, "question_stem", "stem", "ctx")
ANSWERS = ("answer", "answerkey", "answer_key", "label", "gold", "target", "output", "answer_index", "answer_idx")
_MARK = "- "  # before each choice in a prompt


class Choices(NamedTuple):
    """The texts of one record's choices, and their labels where the file has any."""

    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()


Way = Callable[[Choices, Any], int | None]  # the position of the choice that an answer means, or None


def _by_label(choices: Choices, answer: Any) -> int | None:
    text = str(answer).strip()
    return choices.labels.index(text) if text in choices.labels else None


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


def uses(sample: Mapping[str, Any], columns: Columns) -> dict[str, str] | None:
    """The columns of question, choices and answer, or None where there are no choices."""
    choices = first_column(sample, NAMES)
    if choices is None or choices in columns or not _may_be_choices(sample[choices], columns):
        return None
    rest = [name for name in sample if name != choices]
    answer = columns.output or first_column(rest, ANSWERS)
    question = columns.input or first_column([name for name in rest if name != answer], QUESTIONS)
    if answer is None or question is None or answer not in rest or question not in rest:
        return None
    found = {"input": question, "choices": choices, "answer": answer}
    context = first_column([name for name in rest if name not in found.values()], CONTEXT_NAMES)
    if context is not None and columns.input is None:
        found["context"] = context
    told = guess_column(rest, columns.instruction, INSTRUCTION_NAMES)
    return found | ({"instruction": told} if told is not None and told not in found.values() else {})


def read(rows: Rows, used: dict[str, str], path: Path | str) -> Source:
    """The source that multiple-choice records make."""
    choices = [_choices(row[used["choices"]], f"{path}, {where}, {used['choices']!r}") for where, row in rows]
    given = [_given(row[used["answer"]], f"{path}, {where}, {used['answer']!r}") for where, row in rows]
    name, way = _way(choices, given, rows, path)
    found = []
    for (where, row), listed, answers in zip(rows, choices, given, strict=True):
        parts = [text_of(row.get(used[key]), f"{path}, {where}") for key in ("context", "input") if key in used]
        # without a question the record is incomplete, whatever its choices are
        lines = [*filter(None, parts), *(f"{_MARK}{text}" for text in listed.texts)] if parts[-1] else []
        told = text_of(row.get(used["instruction"]), f"{path}, {where}") if "instruction" in used else ""
        places = [place for answer in answers if (place := way(listed, answer)) is not None]
        right = tuple(dict.fromkeys(listed.texts[place] for place in places))
        found.append(Row(where, told, "\n".join(lines), tuple(filter(None, right))))
    source = source_of(found, path)
    note = f"multiple choice: the choices stand in the prompt; the file names the right one by {name}, and its text is "
    return replace(source, notes=(f"{note}the answer", *source.notes))


def _may_be_choices(value: Any, columns: Columns) -> bool:
    """Whether a value is meant as choices: a list, a dict, or a text, as in a cell of a table.

    A text that is no JSON list is refused later, except where the caller has named the columns to read instead.
    """
    if isinstance(value, str):
        return value.lstrip()[:1] in ("[", "{") or not (columns.input and columns.output)
    return isinstance(value, list | tuple | dict)


def _choices(value: Any, where: str) -> Choices:
    """The choices in one cell, in any of the shapes that files have."""
    if isinstance(value, str):
        value = _unfolded(value, where)
    labels: Any = ()
    if isinstance(value, dict):
        texts = value.get("text", value.get("texts"))
        labels = value.get("label", value.get("labels", ()))
        if texts is None:  # {"A": "red", "B": "green"}
            texts, labels = list(value.values()), list(value)
    elif isinstance(value, list | tuple) and value and all(isinstance(one, dict) for one in value):
        texts = [one.get("text", one.get("content")) for one in value]
        labels = [label for one in value if (label := one.get("label", one.get("key", one.get("id")))) is not None]
    else:
        texts = value
    if not isinstance(texts, list | tuple) or not texts:
        got = f"got {value!r:.60}"
        raise wrong(where, got, "a list of choices", "correct it, or rename the column to read the answers as they are")
    spelled = tuple(text_of(text, f"{where}, choice {number}") for number, text in enumerate(texts))
    named = tuple(text_of(label, f"{where}, labels") for label in labels) if isinstance(labels, list | tuple) else ()
    return Choices(spelled, named if len(named) == len(spelled) else ())


def _unfolded(text: str, where: str) -> Any:
    """The list that a cell of a table spells as JSON."""
    try:
        return json.loads(text, parse_int=Spelled, parse_float=Spelled)
    except (ValueError, RecursionError):
        remedy = "write the choices as a JSON list, or name the columns of input and answer, which are read alone then"
        raise wrong(where, f"got {text!r:.60}", "a list of choices", remedy) from None


def _given(value: Any, where: str) -> tuple[Any, ...]:
    """The answers as the file gives them; none where there is no label (an empty text, or -1)."""
    values = value if isinstance(value, list | tuple) else [value]
    texts_of(value, where)  # refuses what is neither a text nor a number
    return tuple(one for one in values if one is not None and str(one).strip() not in ("", "-1", "nan"))


def _way(choices: list[Choices], given: list[tuple[Any, ...]], rows: Rows, path: Path | str) -> tuple[str, Way]:
    """How all records name the right choice, in words and as a function.

    A label that the file gives comes first. Numbers that stand without quotation marks are positions before they are
    texts, and texts are texts before they are letters or positions.
    """
    asked = [
        (row, one, answer) for row, (one, answers) in enumerate(zip(choices, given, strict=True)) for answer in answers
    ]
    are_numbers = all(isinstance(answer, int | float | Spelled) for _, _, answer in asked)
    ways = {"its label": _by_label} | (_NUMBERS | _TEXTS if are_numbers else _TEXTS | _NUMBERS)
    for name, way in ways.items():
        if all(way(one, answer) is not None for _, one, answer in asked):
            return name, way
    # the record that the most usual way of this file does not fit
    counts = {name: sum(way(one, answer) is not None for _, one, answer in asked) for name, way in ways.items()}
    usual = max(counts, key=lambda name: counts[name])
    row, one, answer = next(each for each in asked if ways[usual](each[1], each[2]) is None)
    expected = f"{usual} as in {counts[usual]} other records" if counts[usual] else "a label, letter, number or text"
    got = f"{rows[row][0]} has the answer {str(answer)!r:.60}, which is none of its {len(one.texts)} choices"
    raise wrong(path, got, f"{expected} of one of them", "correct it, or take the record out")
