"""The parts of a prompt: which of its text is instruction, demonstration, query, or written by the template."""

from string import Formatter
from typing import Literal, NamedTuple

Part = Literal["instruction", "inputs", "answers", "query", "template"]


class Piece(NamedTuple):
    """A piece of a prompt's text, and the part that it belongs to.

    The parts: `instruction` (and the system text of a `PromptTemplate`), `inputs` and `answers` of the demonstrations,
    `query` (the input that is asked about), and `template` (all other text: separators, cues, what a tokenizer's chat
    template writes).
    """

    text: str
    part: Part


def filled(template: str, **values: Piece) -> list[Piece]:
    """What `template.format(...)` makes of the pieces' texts, still in pieces."""
    pieces = []
    for text, name, _, _ in Formatter().parse(template):
        pieces.append(Piece(text, "template"))
        if name is not None:
            pieces.append(values[name])
    return [piece for piece in pieces if piece.text]


def joined(pieces: list[Piece]) -> str:
    """The text that the pieces make up."""
    return "".join(piece.text for piece in pieces)


def cut(pieces: list[Piece], begin: int, end: int) -> list[Piece]:
    """The pieces of the characters from `begin` to `end` of their text."""
    found, at = [], 0
    for text, part in pieces:
        kept = text[max(0, begin - at) : max(0, end - at)]
        if kept:
            found.append(Piece(kept, part))
        at += len(text)
    return found
