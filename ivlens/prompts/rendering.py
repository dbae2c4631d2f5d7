"""`Renderer`: makes one text of instruction, demonstrations and input, as a template says."""

from collections.abc import Sequence
from typing import Any

from ivlens.prompts.chats import Chat, Turn
from ivlens.prompts.templates import PromptTemplate


class Renderer:
    """A template as a function: called with instruction, demonstrations and input, it gives a prompt's text.

    Args:
        template: The template.
        tokenizer: The model's tokenizer, whose chat template is used where `template` is a chat.
        fused: Whether the task's inputs carry their instruction.

    Raises:
        ValueError: the template is a chat, and the tokenizer has no usable chat template; see `Chat`.
    """

    def __init__(self, template: PromptTemplate, tokenizer: Any, *, fused: bool) -> None:
        self.template, self.fused = template, fused
        self._separator = template.separator
        self._chat: Chat | None = None
        if template.chat:
            self._chat = Chat(template.name, tokenizer, template.date)
            self._system = self._system_turn(self._chat)
            self._start = template.answer_start.format()
            # the template's separator after `answer_start`; otherwise what the chat template writes before an answer
            self._separator = template.separator if self._start else self._chat.gap

    def __call__(self, instruction: str | None, shots: Sequence[tuple[str, str]], input: str) -> tuple[str, str]:
        """The text of a prompt, and the text that separates it from its answer."""
        if self._chat is not None:
            asked = ("user", self._query(instruction, input))
            start = self._chat.gap + self._start if self._start else ""
            return self._chat([*self._system, *self._turns(shots), asked]) + start, self._separator
        if self.fused:
            separator = "" if input[-1:].isspace() else self._separator  # many such inputs end in a space or a line end
            return "".join(f"{x}{separator}{y}\n\n" for x, y in shots) + input, separator
        demonstrations = [self.template.demonstration.format(input=x, answer=y) for x, y in shots]
        return "".join(demonstrations) + self._query(instruction, input), self._separator

    def _query(self, instruction: str | None, input: str) -> str:
        """The last part of the prompt, which asks about the input."""
        if self.fused:
            return input
        if instruction:
            return self.template.instructed.format(instruction=instruction, input=input)
        return self.template.bare.format(input=input)

    def _turns(self, shots: Sequence[tuple[str, str]]) -> list[Turn]:
        """Demonstrations as turns of a chat, with answers that begin as the prompt's answer will."""
        before = self._start and self._start + self.template.separator
        return [turn for x, y in shots for turn in (("user", x), ("assistant", before + y))]

    def _system_turn(self, chat: Chat) -> list[Turn]:
        """The template's system text as the first turn of a chat, or no turn."""
        text = self.template.system.format()
        if text:
            chat.check_system()
        return [("system", text)] if text else []
