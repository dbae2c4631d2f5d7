"""Multiple choice: a question, its choices, and which of them is right.

The choices stand in one column (`choices`), beside the question in a record of its own, or each in a column of its own
(`A` to `D`, `option_1`, `ending0` …). They stand in the prompt, and the answer is the text of the right one, however
the file says which that is. All records of a file must say it in the same way.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ivlens.tasks.formats.columns import CONTEXT_NAMES, INPUT_NAMES, INSTRUCTION_NAMES, first_column, guess_column
from ivlens.tasks.formats.records import Columns, Row, Rows, Source, Spelled, source_of, text_of, texts_of, wrong
from ivlens.tasks.formats.right_choice import Choices, is_named, way_of

NAMES = ("choices", "options", "endings")
QUESTIONS = ("question", *INPUT_NAMES, "question_stem", "stem", "ctx", "goal", "premise")
ANSWERS = (
    *("answer", "answerkey", "answer_key", "label", "gold", "target", "output", "answer_index", "answer_idx"),
    *("correct_answer", "correct_option", "correct_choice", "correct", "cop"),
)
_CONTEXTS = (*CONTEXT_NAMES, "premise")  # a premise beside a question; alone it is the question
_MARK = "- "  # before each choice in a prompt
# columns with a choice each: what their names begin with, and how many there may be
_BEGINS = ("", "option", "opt", "op", "choice", "ending", "sol", "solution", "candidate", "answer")
_MOST_COLUMNS = 26
_SERIES = re.compile(rf"({'|'.join(_BEGINS)})([a-z]|\d\d?)")
_SPREAD = tuple(f"choice {number}" for number in range(1, _MOST_COLUMNS + 1))
_BOTH = "question and choices"  # in one column
OPTIONAL = frozenset({"context", "instruction", *_SPREAD[2:]})  # questions may have different numbers of choices


def uses(sample: Mapping[str, Any], columns: Columns) -> dict[str, str] | None:
    """The columns of question, choices and answer, or None where there are no choices."""
    choices = _held_choices(sample, columns)
    rest = [name for name in sample if name not in choices.values()]
    answer = columns.output or first_column(rest, ANSWERS)
    question = columns.input or first_column([name for name in rest if name != answer], QUESTIONS)
    if not choices or answer not in rest or answer is None:
        return None
    found = {**choices, "answer": answer}
    if _BOTH not in choices:
        if question not in rest or question is None or question == answer:
            return None
        found = {"input": question, **found}
    if _SPREAD[0] in choices and not _names_one(sample, choices, answer):
        return None
    context = first_column([name for name in rest if name not in found.values()], _CONTEXTS)
    if context is not None and columns.input is None:
        found["context"] = context
    told = guess_column(rest, columns.instruction, INSTRUCTION_NAMES)
    return found | ({"instruction": told} if told is not None and told not in found.values() else {})


def read(rows: Rows, used: dict[str, str], path: Path | str) -> Source:
    """The source that multiple-choice records make."""
    choices = [_choices_of(row, used, f"{path}, {where}") for where, row in rows]
    given = [_given(row[used["answer"]], f"{path}, {where}, {used['answer']!r}") for where, row in rows]
    name, way = way_of(choices, given, rows, path)
    found = []
    for (where, row), listed, answers in zip(rows, choices, given, strict=True):
        question = _question(row, used, f"{path}, {where}")
        context = text_of(row.get(used["context"]), f"{path}, {where}") if "context" in used else ""
        # without a question the record is incomplete, whatever its choices are
        lines = [*filter(None, (context, question)), *(f"{_MARK}{text}" for text in listed.texts)] if question else []
        told = text_of(row.get(used["instruction"]), f"{path}, {where}") if "instruction" in used else ""
        places = [place for answer in answers if (place := way(listed, answer)) is not None]
        right = tuple(dict.fromkeys(listed.texts[place] for place in places))
        found.append(Row(where, told, "\n".join(lines), tuple(filter(None, right))))
    source = source_of(found, path)
    note = f"multiple choice: the choices stand in the prompt; the file names the right one by {name}, and its text is "
    return replace(source, notes=(f"{note}the answer", *source.notes))


# --- columns ---------------------------------------------------------------------------------------------------------


def _held_choices(sample: Mapping[str, Any], columns: Columns) -> dict[str, str]:
    """The columns of the choices, by what they are; empty without any, or where the caller reads one of them."""
    choices = first_column(sample, NAMES)
    if choices is not None and _may_be_choices(sample[choices], columns):
        return {} if choices in columns else {"choices": choices}
    both = next((name for name in sample if _is_question_with_choices(sample[name])), None)
    if both is not None:
        return {} if both in columns else {_BOTH: both}
    spread = _spread_columns(sample)
    return {} if set(spread) & set(columns) else dict(zip(_SPREAD, spread, strict=False))


def _may_be_choices(value: Any, columns: Columns) -> bool:
    """Whether a value is meant as choices: a list, a dict, or a text, as in a cell of a table.

    A text that is no JSON list is refused later, except where the caller has named the columns to read instead.
    """
    if isinstance(value, str):
        return value.lstrip()[:1] in ("[", "{") or not (columns.input and columns.output)
    return isinstance(value, list | tuple | dict)


def _is_question_with_choices(value: Any) -> bool:
    """Whether a value is a record of a question and its choices, as in ARC's own files: `{"stem", "choices"}`."""
    return isinstance(value, dict) and all(first_column(value, names) is not None for names in (QUESTIONS, NAMES))


def _spread_columns(found: Iterable[str]) -> tuple[str, ...]:
    """Two or more columns that hold a choice each, in their order: `A`, `B` …, or `option1`, `option2` …"""
    series: dict[tuple[str, bool], dict[str, str]] = {}
    for name in found:
        begin, mark = _split(name)
        if mark.isalpha() or (mark and begin):  # a number alone is no choice
            series.setdefault((begin, mark.isalpha()), {})[mark] = name
    for (_, are_letters), names in series.items():
        first = "A" if are_letters else "0" if "0" in names else "1"
        marks = [chr(ord(first) + n) if are_letters else str(int(first) + n) for n in range(len(names))]
        if 2 <= len(names) <= _MOST_COLUMNS and set(marks) == set(names):
            return tuple(names[mark] for mark in marks)
    return ()


def _split(name: str) -> tuple[str, str]:
    """How the name of a column begins, and the letter or number at its end: `Option (a)` → `option`, `A`."""
    match = _SERIES.fullmatch(re.sub(r"[\W_]+", "", name).lower())
    return ("", "") if match is None else (match[1], match[2].upper())


def _names_one(sample: Mapping[str, Any], choices: Mapping[str, str], answer: str) -> bool:
    """Whether the answer means one of the columns with a choice each: a table may have columns A and B without choices.

    Columns such as `answer_1` beside `answer` are more answers, not choices.
    """
    if answer.strip().lower() == "answer" and _split(choices[_SPREAD[0]])[0] == "answer":
        return False
    texts = [str(sample[name]).strip() for name in choices.values()]
    return any(is_named(_spread(texts, choices), one) for one in _given(sample[answer], answer))


def _spread(texts: Sequence[str], used: Mapping[str, str]) -> Choices:
    """Choices out of columns of their own; those at the end may be missing."""
    names = [used[what] for what in _SPREAD if what in used][: len(texts)]
    return Choices(tuple(texts), tuple(_split(name)[1] for name in names), tuple(name.strip() for name in names))


# --- cells -----------------------------------------------------------------------------------------------------------


def _question(row: Mapping[str, Any], used: Mapping[str, str], where: str) -> str:
    if _BOTH not in used:
        return text_of(row.get(used["input"]), where)
    held = row[used[_BOTH]]
    return text_of(held[first_column(held, QUESTIONS)], f"{where}, {used[_BOTH]!r}")


def _choices_of(row: Mapping[str, Any], used: Mapping[str, str], where: str) -> Choices:
    """The choices of one record, wherever they stand."""
    if "choices" in used:
        return _choices(row[used["choices"]], f"{where}, {used['choices']!r}")
    if _BOTH in used:
        held, here = row[used[_BOTH]], f"{where}, {used[_BOTH]!r}"
        if not _is_question_with_choices(held):
            raise wrong(here, f"got {held!r:.60}", "a question with its choices, as in other records", "correct it")
        return _choices(held[first_column(held, NAMES)], here)
    texts = [text_of(row.get(used[what]), f"{where}, {used[what]!r}") for what in _SPREAD if what in used]
    while texts and not texts[-1]:
        texts.pop()
    if "" in texts:
        name = used[_SPREAD[texts.index("")]]
        raise wrong(where, f"{name!r:.60} is empty", "a choice in it", "correct it, or take the record out")
    return _spread(texts, used)


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
