"""Writes the same records in every format that ivlens reads, for the tests of the readers and for hostile input."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Pairs = Sequence[tuple[str, str]]  # an input and its answer
CHOICES = ("red", "green", "blue")
INSTRUCTION = "Say what belongs to it."


class Written(NamedTuple):
    """How records are written, and the inputs that are read back.

    Attributes:
        rows: The records as plain values: a list of dicts.
        input: What is read as the input, made of the input that was written.
    """

    rows: Callable[[Pairs], list[dict[str, Any]]]
    input: Callable[[str, str], str] = lambda text, answer: text


def _said(role: str, text: str, keys: tuple[str, str] = ("role", "content")) -> dict[str, str]:
    return dict(zip(keys, (role, text), strict=True))


def _from(role: str, text: str) -> dict[str, str]:
    return _said(role, text, ("from", "value"))


def _offered(answer: str) -> list[str]:
    """Choices with the answer among them, at a place that depends on the answer."""
    at = len(answer) % (len(CHOICES) + 1)
    others = [choice for choice in CHOICES if choice != answer]
    return [*others[:at], answer, *others[at:]]


def _asked(text: str, answer: str) -> str:
    return "\n".join([text, *(f"- {choice}" for choice in _offered(answer))])


def _letter(answer: str, choice: str | None = None) -> str:
    """The letter of a choice, or of the right one."""
    return chr(ord("A") + _offered(answer).index(answer if choice is None else choice))


ROWS: dict[str, Written] = {
    "records": Written(lambda pairs: [{"input": x, "output": y} for x, y in pairs]),
    "several answers": Written(lambda pairs: [{"question": x, "answers": [y, y]} for x, y in pairs]),
    "whole prompts": Written(lambda pairs: [{"prompt": x, "completion": y} for x, y in pairs]),
    "alpaca": Written(lambda pairs: [{"instruction": INSTRUCTION, "input": x, "output": y} for x, y in pairs]),
    "dolly": Written(
        lambda pairs: [{"instruction": INSTRUCTION, "context": x, "response": y, "category": "qa"} for x, y in pairs]
    ),
    "instructions alone": Written(lambda pairs: [{"instruction": x, "output": y} for x, y in pairs]),
    "messages": Written(
        lambda pairs: [
            {"messages": [_said("system", INSTRUCTION), _said("user", x), _said("assistant", y), _said("user", "more")]}
            for x, y in pairs
        ]
    ),
    "sharegpt": Written(
        lambda pairs: [
            {"id": n, "conversations": [_from("human", x), _from("gpt", y)]} for n, (x, y) in enumerate(pairs)
        ]
    ),
    "turns": Written(
        lambda pairs: [{"prompt": [_said("user", x)], "completion": [_said("assistant", y)]} for x, y in pairs]
    ),
    "squad": Written(
        lambda pairs: [
            {"context": "A text.", "question": x, "answers": {"text": [y, y], "answer_start": [0, 0]}} for x, y in pairs
        ],
        lambda text, answer: f"A text.\n{text}",
    ),
    "choices": Written(
        lambda pairs: [
            {"question": x, "choices": _offered(y), "answer": _offered(y).index(y), "subject": "all"} for x, y in pairs
        ],
        _asked,
    ),
    "choices in columns": Written(
        lambda pairs: [
            {"question": x, **dict(zip("ABCD", [*_offered(y), ""], strict=False)), "answer": _letter(y)}
            for x, y in pairs
        ],
        _asked,
    ),
    "questions with their choices": Written(
        lambda pairs: [
            {
                "id": n,
                "question": {"stem": x, "choices": [{"text": one, "label": _letter(y, one)} for one in _offered(y)]},
                "answerKey": _letter(y),
            }
            for n, (x, y) in enumerate(pairs)
        ],
        _asked,
    ),
    "choices with labels": Written(
        lambda pairs: [
            {
                "question": x,
                "choices": {"text": _offered(y), "label": [chr(ord("A") + n) for n in range(len(_offered(y)))]},
                "answerKey": _letter(y),
            }
            for x, y in pairs
        ],
        _asked,
    ),
}
FLAT = ("records", "whole prompts", "alpaca", "dolly", "instructions alone", "choices in columns")  # cells are texts


def as_json(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows).encode()


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def as_parts(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps({"train": rows[:1], "test": rows[1:]} if rows[1:] else {"train": rows}).encode()


def as_wrapped(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps({"version": "1.0", "data": rows}).encode()


def as_columns(rows: list[dict[str, Any]]) -> bytes:
    """As `DataFrame.to_json` writes it."""
    return json.dumps({name: {str(n): row[name] for n, row in enumerate(rows)} for name in rows[0]}).encode()


def as_split(rows: list[dict[str, Any]]) -> bytes:
    """As `DataFrame.to_json(orient="split")` writes it."""
    cells = [list(row.values()) for row in rows]
    return json.dumps({"columns": list(rows[0]), "index": list(range(len(rows))), "data": cells}).encode()


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_tsv(rows: list[dict[str, Any]]) -> bytes:
    return as_csv(rows, "\t")


def as_unicode_text(rows: list[dict[str, Any]]) -> bytes:
    """As Excel's "Unicode Text" is encoded."""
    return as_tsv(rows).decode().encode("utf-16")


def as_gzip(rows: list[dict[str, Any]]) -> bytes:
    return gzip.compress(as_lines(rows))


def as_zstd(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow

    return pyarrow.compress(as_lines(rows), codec="zstd", asbytes=True)


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


HOLDERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "json": as_json, "jsonl": as_lines, "parts": as_parts, "wrapped": as_wrapped, "csv": as_csv, "tsv": as_tsv,
    "columns": as_columns, "split": as_split, "utf-16": as_unicode_text,
    "jsonl.gz": as_gzip, "jsonl.zst": as_zstd, "parquet": as_parquet,
}  # fmt: skip


def can_hold(holder: str, rows: str) -> bool:
    """Whether a table can hold such records."""
    return holder not in ("csv", "tsv", "utf-16") or rows in FLAT
