"""A tokenizer's chat template as texts: the same on every day, without a thought before the answer, or refused.

Chat templates are programs of other people. Each is tried once, with a marker in the place of everything that is said;
one that loses a marker, writes two texts for one chat, or leaves open where an answer begins, is refused by name.
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

_SAID = {"system": "be as told", "user": "the first question", "assistant": "the first answer"}
_ASKED_AGAIN = "another question"
# Answers are judged at their first token: a template that can leave its thoughts out is asked to.
_NO_THOUGHT = {"enable_thinking": False, "thinking": False}
_OPENED = re.compile(r"([<\[◁])([^\W\d][\w:|-]*)([>\]▷])\s*$")
_TAG = re.compile(r"[<\[◁](/?)([^\W\d][\w:|-]*)[>\]▷]")
# Other words are no thoughts: `<assistant>` opens an answer.
_THOUGHT = re.compile("think|thought|reason|reflect|analy|deliberat|monolog|scratch", re.IGNORECASE)
# What `strftime` knows, and the forms of glibc without the leading zero.
_CLOCK, _DIRECTIVES = "strftime_now", (*"aAwdbBmyYHIMSpfzZjUWcxXGuVeFTDR", *(f"-{each}" for each in "dmHIMSj"))
_A_LIST = re.compile(r"""['"]type['"]: ['"]text['"]""")
_REASON_LENGTH = 60
_N_TIMES = 4  # a template that draws at random may write one text twice


class ChatRefused(ValueError):
    """A tokenizer's chat template does not write what is asked of it; the message says what it does instead."""


class Chat:
    """Calls turn what was said into the text of a prompt.

    Args:
        name: Of the prompt template, for errors.
        tokenizer: With its chat template.
        date: Which day it is for templates that ask the clock, as `2024-07-26`.

    Attributes:
        gap: What stands between a prompt and its answer.

    Raises:
        ChatRefused: no chat template, or one that cannot be used; the message says why.
    """

    def __init__(self, name: str, tokenizer: Any, date: str) -> None:
        self.name, self.tokenizer = name, tokenizer
        self._in_parts: frozenset[str] = frozenset()
        self._suffix = ""
        if not getattr(tokenizer, "chat_template", None):
            raise ChatRefused(
                f"template {name!r} got a tokenizer without a chat template; use 'plain', 'after' or 'qa'."
            )
        self._source = self._on_the_day(datetime.fromisoformat(date))
        self._in_parts, self._suffix, self.gap = self._tried()
        self._takes_turns = False

    def __call__(self, turns: Sequence[Turn]) -> str:
        """The prompt that ends where the answer to the last turn begins.

        Raises:
            ChatRefused: answered turns before the last one, which the chat template does not write, or a text that it
                refuses.
        """
        if len(turns) > 2 and not self._takes_turns:
            self._check_turns()
        try:
            return self._text(turns, cue=True) + self._suffix
        except _Failed as failed:  # of what is said here: with the markers it could be used
            raise self._refused(f"cannot write a prompt ({failed.reason})", "use 'plain', 'after' or 'qa'") from None

    def check_system(self) -> None:
        """Refuse a chat template that does not write what the system says.

        Raises:
            ChatRefused: with what it does instead.
        """
        turns = [("system", _SAID["system"]), ("user", _SAID["user"])]
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
        turns = [("user", _SAID["user"]), ("assistant", _SAID["assistant"]), ("user", _ASKED_AGAIN)]
        try:
            reason = "" if _in_order(self._text(turns, cue=True), turns) else "it loses one of them"
        except _Failed as failed:
            reason = failed.reason
        if reason:
            raise self._refused(f"cannot write demonstrations as turns ({reason})", "use n_shots = 0, or 'plain'")
        self._takes_turns = True

    def _on_the_day(self, day: datetime) -> str:
        """The chat template, with a clock that stands still where it asks for one."""
        try:
            source: str = self.tokenizer.get_chat_template()
        except Exception as error:  # several templates of which none is the default
            pass_on_shortage(error)
            raise self._refused(
                f"cannot be used ({one_line(error, _REASON_LENGTH)})", "use 'plain', 'after' or 'qa'"
            ) from None
        if _CLOCK not in source:
            return source
        told = "".join(f" | replace('%{each}', '{day.strftime(f'%{each}')}')" for each in _DIRECTIVES)
        return f"{{%- macro {_CLOCK}(format) -%}}{{{{ format{told} }}}}{{%- endmacro +%}}{source}"

    def _tried(self) -> tuple[frozenset[str], str, str]:
        """Whose turns are written as a list of parts, what ends every prompt, and what separates it from its answer.

        Turns are texts where the template takes them, otherwise lists: everybody's, or the user's alone.
        """
        reasons = []
        for in_parts in (frozenset[str](), frozenset(_SAID), frozenset({"user"})):
            self._in_parts = in_parts
            try:
                return in_parts, *self._border()
            except _Failed as failed:
                reasons.append(failed.reason)
        raise self._refused(reasons[0], "use 'plain', 'after' or 'qa'")

    def _border(self) -> tuple[str, str]:
        """What ends the prompt after the template's cue, and what separates it from its answer.

        An empty thought that the template writes between its cue and an answer goes with the prompt, and so does the
        end of a thought that the cue opens.
        """
        turns = [("user", _SAID["user"])]
        try:
            cue = self._text(turns, cue=True)
            again = {self._text(turns, cue=True) for _ in range(_N_TIMES)}
        except _Failed as failed:
            raise _Failed(f"cannot be used ({failed.reason})") from None
        if not _in_order(cue, turns):
            raise _Failed("cannot be used (it loses what the user says)")
        if again != {cue}:
            raise _Failed("writes two texts for one chat")
        turns.append(("assistant", _SAID["assistant"]))
        try:
            whole = self._text(turns)
        except _Failed as failed:
            raise _Failed(f"cannot write an answer ({failed.reason})") from None
        if not _in_order(whole, turns):
            raise _Failed("loses what the assistant says")
        return _end_and_gap(cue, whole)

    def _text(self, turns: Sequence[Turn], *, cue: bool = False) -> str:
        said = [
            {"role": role, "content": [{"type": "text", "text": text}] if role in self._in_parts else text}
            for role, text in turns
        ]
        try:
            text = self._rendered(said, cue)
        except Exception as error:  # whatever the template raises, and its language for what it cannot do
            pass_on_shortage(error)
            raise _Failed(one_line(error, _REASON_LENGTH)) from None
        if self._in_parts and _A_LIST.search(text):
            raise _Failed("it writes a list of parts as it is")
        return text

    def _rendered(self, said: list[dict[str, Any]], cue: bool) -> str:
        given = {"add_generation_prompt": cue, **_NO_THOUGHT}
        if getattr(type(self.tokenizer), "apply_chat_template", None) is not _plain_method():
            # a tokenizer with a way of its own, which is code that the caller has
            return self.tokenizer.apply_chat_template(said, chat_template=self._source, tokenize=False, **given)
        special = self.tokenizer.special_tokens_map
        return rendered(self._source, {**special, "messages": said, "tools": None, "documents": None, **given})

    def _refused(self, what: str, remedy: str) -> "ChatRefused":
        return ChatRefused(f"template {self.name!r}: this tokenizer's chat template {what}; {remedy}.")


def _plain_method() -> Any:
    from transformers import PreTrainedTokenizerBase

    return PreTrainedTokenizerBase.apply_chat_template


class _Failed(ValueError):
    """A chat template that raised."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _end_and_gap(cue: str, whole: str) -> tuple[str, str]:
    """What to write after a template's cue, and what then separates it from the answer in `whole`."""
    if whole.startswith(cue):
        gap = whole.removeprefix(cue).partition(_SAID["assistant"])[0]
        if closed := _closed(cue + gap):
            return gap + closed, ""
        return ("", gap) if not gap.strip() else (gap, "")
    more = cue[n_shared(cue, whole) :]
    if closed := _closed(more):
        return closed, ""
    if more.strip() and not _is_over(more):
        raise _Failed(f"asks for an answer otherwise than it writes one (its prompt ends in {more[-30:]!r})")
    return "", ""


def _in_order(text: str, turns: Sequence[Turn]) -> bool:
    """Whether everything that was said stands in the text, one after the other."""
    end = 0
    for _, said in turns:
        begin = text.find(said, end)
        if begin < 0:
            return False
        end = begin + len(said)
    return True


def _closed(text: str) -> str:
    """What closes the thought that a text ends in, `</think>` after `<think>`; empty: it ends in none."""
    found = _OPENED.search(text)
    if found is None or not _THOUGHT.search(found[2]):
        return ""
    line = "\n" if text.endswith("\n") else "\n\n"
    return f"{line}{found[1]}/{found[2]}{found[3]}\n\n"


def _is_over(text: str) -> bool:
    """Whether every tag that a text opens is closed in it, and there is one."""
    tags = _TAG.findall(text)
    return bool(tags) and Counter(word for slash, word in tags if slash) == Counter(
        word for slash, word in tags if not slash
    )
