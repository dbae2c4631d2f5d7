"""Questions about a text: SQuAD, BoolQ and others, where `context` and `question` belong together."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ivlens.tasks.formats.columns import (
    CONTEXT_NAMES,
    INSTRUCTION_NAMES,
    OUTPUT_NAMES,
    first_column,
    guess_column,
)
from ivlens.tasks.formats.records import Columns, Row, Rows, Source, answers_of, source_of, text_of, wrong

QUESTIONS = ("question", "query")


def uses(sample: Mapping[str, Any], columns: Columns) -> dict[str, str] | None:
    """The columns of text, question and answers, or None where there is no text beside the question."""
    context, question = first_column(sample, CONTEXT_NAMES), first_column(sample, QUESTIONS)
    answer = columns.output or first_column(sample, ("answers", "answer", *OUTPUT_NAMES))
    named = columns.input is not None or first_column(sample, ("input",)) is not None
    if named or context is None or question is None or answer is None or answer not in sample:
        return None
    found = {"context": context, "input": question, "answer": answer}
    told = guess_column(sample, columns.instruction, INSTRUCTION_NAMES)
    if len(set(found.values())) < len(found) or told in found.values():
        return None
    return found | ({} if told is None else {"instruction": told})


def read(rows: Rows, used: dict[str, str], path: Path | str) -> Source:
    """The source that questions about texts make: the input is the text, then the question on a line of its own."""
    found = []
    for where, row in rows:
        here = f"{path}, {where}"
        texts = {key: text_of(row.get(used[key]), f"{here}, {used[key]!r}") for key in used if key != "answer"}
        # a record without a question is incomplete, and left out
        input = "\n".join(filter(None, (texts["context"], texts["input"]))) if texts["input"] else ""
        answers = answers_of(row[used["answer"]], f"{here}, {used['answer']!r}")
        found.append(Row(where, texts.get("instruction", ""), input, answers))
    source = source_of(found, path)
    return replace(source, notes=("the input is the text, and the question on a line below it", *source.notes))


def flattened(value: Any, path: Path) -> Rows:
    """The questions of SQuAD's own file, which nests them: articles, paragraphs, questions.

    Raises:
        ValueError: a level is no list of records, or lacks what SQuAD has there.
    """
    rows = []
    for a, article in _records(value, "data", f"{path}"):
        for p, paragraph in _records(article, "paragraphs", f"{path}, data[{a}]"):
            here = f"data[{a}].paragraphs[{p}]"
            for q, asked in _records(paragraph, "qas", f"{path}, {here}"):
                rows.append((f"{here}.qas[{q}]", {"answers": None, **asked, "context": paragraph.get("context")}))
    return rows


def _records(holder: Mapping[str, Any], key: str, where: str) -> list[tuple[int, dict[str, Any]]]:
    """The records in a list of a record, with their numbers."""
    found = holder.get(key)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        got = f"{key!r} is {found!r:.40}" if key in holder else f"has the keys {', '.join(holder)}"
        raise wrong(where, f"{got:.100}", f"{key!r}, a list of records, as in SQuAD", "correct it")
    return list(enumerate(found))
