"""`Renderer`: makes one text of instruction, demonstrations and input, as a template says."""

from collections.abc import Sequence
from typing import Any

from ivlens.prompts.chats import Chat, Turn
from ivlens.prompts.parts import Piece, cut, filled, joined
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

    def pieces(self, instruction: str | None, shots: Sequence[tuple[str, str]], input: str) -> list[Piece]:
        """The text of the same prompt in pieces, of each of which the part of the prompt is known.

        Raises:
            ChatRefused: the tokenizer's chat template changes what it is given, so that its place cannot be known.
        """
        asked = self._query_pieces(instruction, input)
        if self._chat is not None:
            start = Piece(self._chat.gap + self._start if self._start else "", "template")
            system = [[Piece(text, "instruction")] for _, text in self._system]
            before = Piece(self._start and self._start + self.template.separator, "template")
            answered = [turn for x, y in shots for turn in ([Piece(x, "inputs")], [before, Piece(y, "answers")])]
            turns = [*self._system, *self._turns(shots), ("user", joined(asked))]
            return [*_placed(self._chat, turns, [*system, *answered, asked]), start]
        if self.fused:
            between = Piece(self(instruction, shots, input)[1], "template")
            ends = Piece("\n\n", "template")
            shown = [piece for x, y in shots for piece in (Piece(x, "inputs"), between, Piece(y, "answers"), ends)]
            return [*shown, *asked]
        form = self.template.demonstration
        shown = [
            piece for x, y in shots for piece in filled(form, input=Piece(x, "inputs"), answer=Piece(y, "answers"))
        ]
        return [*shown, *asked]

    def _query_pieces(self, instruction: str | None, input: str) -> list[Piece]:
        """`_query` in pieces."""
        query = Piece(input, "query")
        if self.fused:
            return [query]
        if instruction:
            return filled(self.template.instructed, instruction=Piece(instruction, "instruction"), input=query)
        return filled(self.template.bare, input=query)

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


def _placed(chat: Chat, turns: Sequence[Turn], pieces: Sequence[list[Piece]]) -> list[Piece]:
    """The text that a chat template writes in pieces, with those of each turn in their places."""
    text, places = chat.places(turns)
    found, at = [], 0
    for number, begin, end in places:
        found.append(Piece(text[at:begin], "template"))
        # chat templates may strip the white space around a turn
        first = joined(pieces[number]).index(text[begin:end])
        found += cut(pieces[number], first, first + end - begin)
        at = end
    return [*found, Piece(text[at:], "template")]
