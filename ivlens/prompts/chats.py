"""Prompts written by a tokenizer's chat template: the same on every day, and without a thought before the answer.

Chat templates are programs of other people. Each is tried once, with a marker in the place of everything that is said.
A template that leaves out a marker, writes different texts for the same chat, or does not show where an answer begins
is refused by name.
"""

import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ivlens.common.memory import pass_on_shortage
from ivlens.common.names import one_line
from ivlens.prompts.guarded import rendered
from ivlens.prompts.tokens import n_shared

Turn = tuple[str, str]  # who says it, and what

_MARKERS = {"system": "be as told", "user": "the first question", "assistant": "the first answer"}
_ASKED_AGAIN = "another question"
# Answers are scored from their first token, so a template that can leave thoughts out is asked to.
_NO_THOUGHT = {"enable_thinking": False, "thinking": False}
# a tag that a text ends in, and any tag, opening or closing
_OPENED = re.compile(r"([<\[◁])([^\W\d][\w:|-]*)([>\]▷])\s*$")
_TAG = re.compile(r"[<\[◁](/?)([^\W\d][\w:|-]*)[>\]▷]")
# Words in tags that open a thought; `<assistant>`, for example, opens an answer.
_THOUGHT = re.compile("think|thought|reason|reflect|analy|deliberat|monolog|scratch", re.IGNORECASE)
# The function that tells templates the time, and its directives; those with `-` write no leading zero on Linux.
_CLOCK, _DIRECTIVES = "strftime_now", (*"aAwdbBmyYHIMSpfzZjUWcxXGuVeFTDR", *(f"-{each}" for each in "dmHIMSj"))
# what is written by a template that expects a text, and prints a list of parts as it is
_PRINTED_LIST = re.compile(r"""['"]type['"]: ['"]text['"]""")
_PLACE = re.compile("\ue000([0-9]+)\ue001")  # stands for a turn's text where its place is looked for
_REASON_LENGTH = 60
_N_TIMES = 4  # renderings that are compared: a template that draws may write the same text twice by chance


class ChatRefused(ValueError):
    """A tokenizer's chat template cannot write the prompts that are needed; the message says why."""


class Chat:
    """A tokenizer's chat template as a function: called with the turns of a chat, it gives the text of the prompt.

    Args:
        name: The name of the prompt template, for errors.
        tokenizer: The tokenizer, which has the chat template.
        date: The date that chat templates get as today's date, such as `2024-07-26`.

    Attributes:
        gap: The text between a prompt and its answer.

    Raises:
        ChatRefused: the tokenizer has no chat template, or one that cannot be used.
    """

    def __init__(self, name: str, tokenizer: Any, date: str) -> None:
        self.name, self.tokenizer = name, tokenizer
        self._in_parts: frozenset[str] = frozenset()  # the roles whose turns are lists of parts, see `_tried`
        self._suffix = ""
        if not getattr(tokenizer, "chat_template", None):
            raise ChatRefused(
                f"template {name!r} got a tokenizer without a chat template; use 'plain', 'after' or 'qa'."
            )
        self._source = self._on_the_day(datetime.fromisoformat(date))
        self._in_parts, self._suffix, self.gap = self._tried()
        self._takes_turns = False

    def __call__(self, turns: Sequence[Turn]) -> str:
        """The text of a prompt, which ends where the answer to the last turn begins.

        Raises:
            ChatRefused: the chat template does not write the answered turns before the last one, or refuses a text.
        """
        if len(turns) > 2 and not self._takes_turns:
            self._check_turns()
        try:
            return self._text(turns, cue=True) + self._suffix
        except _Failed as failed:  # because of these texts: with the markers it worked
            raise self._refused(f"cannot write a prompt ({failed.reason})", "use 'plain', 'after' or 'qa'") from None

    def places(self, turns: Sequence[Turn]) -> tuple[str, list[tuple[int, int, int]]]:
        """The text of a prompt, and where the turns' own texts stand in it: number of the turn, begin and end.

        The chat is written once more with a mark in the place of each turn's text, which shows what the template itself
        writes. White space around a turn's text, which templates may strip, belongs to the template where it is gone.

        Raises:
            ChatRefused: as `__call__`; or the template changes the texts in another way.
        """
        text = self(turns)
        marked = self([(role, f"\ue000{number}\ue001") for number, (role, _) in enumerate(turns)])
        written = _PLACE.split(marked)  # what the template writes, and between it the numbers of the turns
        numbers = [int(number) for number in written[1::2]]
        forms = [_as_written(turns[number][1]) for number in numbers]
        parts = [re.escape(written[0])]
        for form, after in zip(forms, written[2::2], strict=True):
            parts += [form, re.escape(after)]
        found = re.fullmatch("".join(parts), text)
        if found is None or set(numbers) != set(range(len(turns))):
            raise self._refused("changes what it is told, so that its place is unknown", "use 'plain', 'after' or 'qa'")
        return text, [(number, *found.span(1 + place)) for place, number in enumerate(numbers)]

    def check_system(self) -> None:
        """Refuse a chat template that does not write a system text.

        Raises:
            ChatRefused: it leaves the text out, or raises an error.
        """
        turns = [("system", _MARKERS["system"]), ("user", _MARKERS["user"])]
        try:
            reason = "" if _in_order(self._text(turns), turns) else "it leaves the text out"
        except _Failed as failed:
            reason = failed.reason
        if reason:
            raise ChatRefused(
                f"template {self.name!r} has a system text, which this tokenizer's chat template refuses ({reason}); "
                "put the text into instructed and bare, or leave it out."
            )

    def _check_turns(self) -> None:
        """Refuse a chat template that does not write demonstrations as turns, all of them and in order."""
        turns = [("user", _MARKERS["user"]), ("assistant", _MARKERS["assistant"]), ("user", _ASKED_AGAIN)]
        try:
            reason = "" if _in_order(self._text(turns, cue=True), turns) else "it leaves one of them out"
        except _Failed as failed:
            reason = failed.reason
        if reason:
            raise self._refused(f"cannot write demonstrations as turns ({reason})", "use n_shots = 0, or 'plain'")
        self._takes_turns = True

    def _on_the_day(self, day: datetime) -> str:
        """The source of the chat template; a template that asks for the time always gets this day."""
        try:
            source: str = self.tokenizer.get_chat_template()
        except Exception as error:  # a tokenizer with several templates and no default
            pass_on_shortage(error)
            raise self._refused(
                f"cannot be used ({one_line(error, _REASON_LENGTH)})", "use 'plain', 'after' or 'qa'"
            ) from None
        if _CLOCK not in source:
            return source
        # a macro of the clock's name takes its place: it replaces every directive of the format by this day's value
        told = "".join(f" | replace('%{each}', '{day.strftime(f'%{each}')}')" for each in _DIRECTIVES)
        return f"{{%- macro {_CLOCK}(format) -%}}{{{{ format{told} }}}}{{%- endmacro +%}}{source}"

    def _tried(self) -> tuple[frozenset[str], str, str]:
        """How the template can be used: roles whose turns are lists of parts, the prompt's end, the gap to the answer.

        Turns are texts if the template takes texts; otherwise the turns of all roles, or of the user alone, are lists.
        """
        reasons = []
        for in_parts in (frozenset[str](), frozenset(_MARKERS), frozenset({"user"})):
            self._in_parts = in_parts
            try:
                return in_parts, *self._border()
            except _Failed as failed:
                reasons.append(failed.reason)
        raise self._refused(reasons[0], "use 'plain', 'after' or 'qa'")

    def _border(self) -> tuple[str, str]:
        """What is added to the prompt after the template's cue, and the text between prompt and answer.

        An empty thought that the template writes between its cue and an answer belongs to the prompt. So does the end
        of a thought that the cue opens.
        """
        turns = [("user", _MARKERS["user"])]
        try:
            cue = self._text(turns, cue=True)
            again = {self._text(turns, cue=True) for _ in range(_N_TIMES)}
        except _Failed as failed:
            raise _Failed(f"cannot be used ({failed.reason})") from None
        if not _in_order(cue, turns):
            raise _Failed("cannot be used (it leaves out what the user says)")
        if again != {cue}:
            raise _Failed("writes different texts for the same chat")
        turns.append(("assistant", _MARKERS["assistant"]))
        try:
            whole = self._text(turns)
        except _Failed as failed:
            raise _Failed(f"cannot write an answer ({failed.reason})") from None
        if not _in_order(whole, turns):
            raise _Failed("leaves out what the assistant says")
        return _end_and_gap(cue, whole)

    def _text(self, turns: Sequence[Turn], *, cue: bool = False) -> str:
        """What the template writes for some turns, with or without its cue for the next answer."""
        said = [
            {"role": role, "content": [{"type": "text", "text": text}] if role in self._in_parts else text}
            for role, text in turns
        ]
        try:
            text = self._rendered(said, cue)
        except Exception as error:  # raised by the template, or by jinja
            pass_on_shortage(error)
            raise _Failed(one_line(error, _REASON_LENGTH)) from None
        if self._in_parts and _PRINTED_LIST.search(text):
            raise _Failed("it writes a list of parts as it is")
        return text

    def _rendered(self, said: list[dict[str, Any]], cue: bool) -> str:
        """The template's text, within the limits of `guarded` unless the tokenizer renders with code of its own."""
        given = {"add_generation_prompt": cue, **_NO_THOUGHT}
        if getattr(type(self.tokenizer), "apply_chat_template", None) is not _plain_method():
            # the tokenizer's class has its own method: code that the user has installed, not part of a checkpoint
            return self.tokenizer.apply_chat_template(said, chat_template=self._source, tokenize=False, **given)
        special = self.tokenizer.special_tokens_map
        return rendered(self._source, {**special, "messages": said, "tools": None, "documents": None, **given})

    def _refused(self, what: str, remedy: str) -> "ChatRefused":
        """The error that says what this tokenizer's chat template does wrong."""
        return ChatRefused(f"template {self.name!r}: this tokenizer's chat template {what}; {remedy}.")


def _plain_method() -> Any:
    """The method of transformers that renders chat templates."""
    from transformers import PreTrainedTokenizerBase

    return PreTrainedTokenizerBase.apply_chat_template


class _Failed(ValueError):
    """A chat template that raised an error, or wrote a text that is of no use."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _as_written(text: str) -> str:
    """A pattern for a text as a chat template may write it: whole, or without the white space around it."""
    forms = dict.fromkeys((text, text.strip(), text.lstrip(), text.rstrip()))
    return f"({'|'.join(map(re.escape, forms))})"


def _end_and_gap(cue: str, whole: str) -> tuple[str, str]:
    """What to add after a template's cue, and the text that is then between the prompt and its answer.

    Args:
        cue: The chat up to the cue for an answer.
        whole: The chat with the answer.
    """
    if whole.startswith(cue):
        gap = whole.removeprefix(cue).partition(_MARKERS["assistant"])[0]
        if closed := _closed(cue + gap):
            return gap + closed, ""
        # white space stands between prompt and answer; anything else, such as an empty thought, belongs to the prompt
        return ("", gap) if not gap.strip() else (gap, "")
    # the cue ends in a text that is missing before a written answer: perhaps a thought, which must be closed
    more = cue[n_shared(cue, whole) :]
    if closed := _closed(more):
        return closed, ""
    if more.strip() and not _is_over(more):
        raise _Failed(f"ends its cue with a text that it leaves out before a given answer ({more[-30:]!r})")
    return "", ""


def _in_order(text: str, turns: Sequence[Turn]) -> bool:
    """Whether everything that was said stands in the text, in the same order."""
    end = 0
    for _, said in turns:
        begin = text.find(said, end)
        if begin < 0:
            return False
        end = begin + len(said)
    return True


def _closed(text: str) -> str:
    """What closes a thought that a text ends in, such as `</think>` after `<think>`; empty where it ends in none."""
    found = _OPENED.search(text)
    if found is None or not _THOUGHT.search(found[2]):
        return ""
    line = "\n" if text.endswith("\n") else "\n\n"
    return f"{line}{found[1]}/{found[2]}{found[3]}\n\n"


def _is_over(text: str) -> bool:
    """Whether a text has tags, and closes every tag that it opens."""
    tags = _TAG.findall(text)
    return bool(tags) and Counter(word for slash, word in tags if slash) == Counter(
        word for slash, word in tags if not slash
    )
