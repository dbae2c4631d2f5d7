"""Chat records: `messages` of OpenAI and Hugging Face, `conversations` of ShareGPT, `prompt` and `completion` as turns.

The first question with its reply becomes an example. What follows the first reply depends on it, and a prompt of ivlens
has no place for it, so it is left out and counted.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ivlens.tasks.formats.records import Columns, Row, Rows, Source, source_of, text_of, wrong

NAMES = ("messages", "conversations", "conversation", "chosen")
NAMES_OF_TEXTS = NAMES[:3]  # what is chosen is a text by itself in many files
_ROLES = {  # how files call who speaks
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_ROLE_KEYS, _TEXT_KEYS = ("role", "from"), ("content", "value")


class Turn(NamedTuple):
    """What one side says; no text where it says something else than text."""

    role: str
    text: str | None


class Exchange(NamedTuple):
    """The first question of a conversation and its reply.

    Attributes:
        why: Why there is no reply, in words; empty where there is one.
        n_before, n_after: Turns of the assistant before the question, and all turns after the reply.
        n_replies: Further replies among the latter.
    """

    system: str = ""
    question: str = ""
    reply: str = ""
    why: str = ""
    n_before: int = 0
    n_after: int = 0
    n_replies: int = 0


def uses(sample: Mapping[str, Any], columns: Columns) -> dict[str, str] | None:
    """The columns that hold turns, or None: `{"messages": name}`, or `{"prompt": name, "completion": name}`."""
    if any(columns):
        return None  # whoever names a column wants what stands in it
    turned = [name for name, value in sample.items() if _is_turns(value) or _may_spell_turns(name, value)]
    lower = {name.strip().lower(): name for name in turned}
    if (known := next((lower[name] for name in NAMES if name in lower), None)) is not None:
        return {"messages": known}
    if "prompt" in lower and "completion" in lower:
        return {"prompt": lower["prompt"], "completion": lower["completion"]}
    return {"messages": turned[0]} if len(turned) == 1 else None


def read(rows: Rows, used: dict[str, str], path: Path | str) -> Source:
    """The source that conversations make; the system text is the instruction, if every conversation has one."""
    found, kept = [], []
    for where, row in rows:
        turns = [turn for column in used.values() for turn in _turns(row.get(column), f"{path}, {where}, {column!r}")]
        first = _exchange(turns)
        answers = (first.reply,) if first.reply and not first.why else ()
        found.append(Row(where, first.system, first.question, answers, first.why))
        kept += [first] if answers and first.question.strip() else []
    n_told = sum(bool(row.instruction) for row in found)
    # where some conversations have no system text, the text of others must not become their instruction
    source = source_of(found, path, prompts=True, own=0 < n_told < len(found))
    note = "of each conversation the first question is the input, the reply to it the answer"
    told = (", the system text the instruction",) if source.instructions else ()
    return replace(source, notes=("".join([note, *told]), *source.notes), losses=tuple(_losses(kept, len(found))))


def _losses(kept: Sequence[Exchange], n: int) -> Iterator[str]:
    """What is left out of those conversations that are kept, of `n`, in words."""
    if n_longer := sum(bool(one.n_after) for one in kept):
        n_turns, n_replies = sum(one.n_after for one in kept), sum(one.n_replies for one in kept)
        yield (
            f"{n_longer} of {n} conversations go on after the first reply: {n_turns} turns left out, {n_replies} of "
            "them replies, which depend on what was said before; a record for each would make them examples"
        )
    if n_before := sum(bool(one.n_before) for one in kept):
        yield f"{n_before} of {n} conversations begin with the assistant: these turns left out"


def _is_turns(value: Any) -> bool:
    """Whether a value is a list of turns."""
    if not isinstance(value, list | tuple) or not value:
        return False
    return isinstance(value[0], dict) and all(_key(value[0], keys) for keys in (_ROLE_KEYS, _TEXT_KEYS))


def _may_spell_turns(name: str, value: Any) -> bool:
    """Whether a text may be a list of turns as JSON, as in the cells of a table."""
    return name.strip().lower() in NAMES_OF_TEXTS and isinstance(value, str) and value.lstrip().startswith("[")


def _key(turn: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    return next((key for key in keys if key in turn), None)


def _turns(value: Any, where: str) -> list[Turn]:
    """The turns in one cell."""
    if value is None:
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise wrong(where, f"got {value!r:.60}", "a list of turns, or its JSON", "correct it") from None
    if not isinstance(value, list | tuple):
        raise wrong(where, f"got a {type(value).__name__}", "a list of turns", "correct it")
    turns = []
    for number, turn in enumerate(value):
        here = f"{where}, turn {number}"
        keys = [_key(turn, keys) for keys in (_ROLE_KEYS, _TEXT_KEYS)] if isinstance(turn, dict) else [None]
        if keys[0] is None:
            got = f"has the keys {', '.join(map(repr, turn))}" if isinstance(turn, dict) else f"is {turn!r:.40}"
            raise wrong(here, f"{got:.120}", "who speaks (role or from) and the text (content or value)", "correct it")
        role = text_of(turn[keys[0]], f"{here}, {keys[0]!r}").lower()
        text = None if keys[1] is None else _said(turn[keys[1]], f"{here}, {keys[1]!r}")
        turns.append(Turn(_ROLES.get(role, role), text))
    return turns


def _said(value: Any, where: str) -> str | None:
    """The text of a turn: a text, or a list of parts that are all text; None where it has none, or other parts."""
    if value is None:
        return None  # such as a call of a tool
    if not isinstance(value, list | tuple):
        return text_of(value, where, strip=False)
    parts = []
    for number, part in enumerate(value):
        text = part.get("text") if isinstance(part, dict) else part
        if text is None or (isinstance(part, dict) and part.get("type", "text") != "text"):
            return None  # an image, a sound, a call of a tool
        parts.append(text_of(text, f"{where}, part {number}", strip=False))
    return "\n".join(parts)


def _exchange(turns: Sequence[Turn]) -> Exchange:
    """The first question and its reply; several turns of one side in a row are one."""
    system = "\n".join(turn.text.strip() for turn in turns if turn.role == "system" and turn.text)
    spoken = [turn for turn in turns if turn.role != "system"]
    begin = next((n for n, turn in enumerate(spoken) if turn.role != "assistant"), len(spoken))
    questions, end = _in_a_row(spoken, begin, "user")
    replies, last = _in_a_row(spoken, end, "assistant")
    said = [turn.text for turn in (*questions, *replies)]
    question = "\n".join(turn.text or "" for turn in questions)
    why = ""
    if not questions:
        other = spoken[begin].role if begin < len(spoken) else ""
        why = f"no question of the user (a turn of {other!r:.30})" if other else "no question of the user"
    elif None in said:
        why = "a turn that is no text"
    elif not replies:
        why = f"no reply, but a turn of {spoken[end].role!r:.30}" if end < len(spoken) else "no reply"
    reply = "\n".join(turn.text or "" for turn in replies).strip()
    n_replies = sum(turn.role == "assistant" for turn in spoken[last:])
    return Exchange(system, question, reply, why, begin, len(spoken) - last, n_replies)


def _in_a_row(turns: Sequence[Turn], begin: int, role: str) -> tuple[Sequence[Turn], int]:
    """The turns of one side from `begin` on, and where they end."""
    end = begin
    while end < len(turns) and turns[end].role == role:
        end += 1
    return turns[begin:end], end
