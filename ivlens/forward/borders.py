"""Where an answer ends: whether what is written after it goes on inside its last word, or ends the line or the text.

Pure functions of text, and `Borders`, which decides the same for tokens by decoding them.
"""

import unicodedata
from typing import Any

# Scripts without spaces between words, where the end of a word cannot be seen.
_UNSPACED = (
    (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3038, 0x303B), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x3FFFF),  # Han
    (0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F), (0x1AFF0, 0x1B16F),  # Hiragana, Katakana
    (0x0E00, 0x0E7F), (0x0E80, 0x0EFF), (0x1780, 0x17FF),  # Thai, Lao, Khmer
    (0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F),  # Myanmar
)  # fmt: skip
_LINE_BREAKS = frozenset("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")  # those of str.splitlines
_UNFINISHED = "\ufffd"  # bytes that are no whole character yet


def goes_on(answer: str, added: str) -> bool:
    """Whether text right after an answer goes on inside its last word: "2" after "1", "er" after "small".

    It does where both characters at the border are letters, digits or marks, or bytes of an unfinished character. In
    scripts without spaces between words (Han, kana, Thai, Lao, Khmer, Myanmar) a border is assumed, unless a mark
    follows, which belongs to the character before it.
    """
    if not (answer and added and _is_of_word(answer[-1]) and _is_of_word(added[0])):
        return False
    if unicodedata.category(added[0])[0] == "M":
        return True
    return not (_is_unspaced(answer[-1]) or _is_unspaced(added[0]))


def ends_line(added: str) -> bool:
    """Whether text right after an answer ends the line: a line break, with nothing but blanks before it."""
    blanks = added[: len(added) - len(added.lstrip())]
    return not _LINE_BREAKS.isdisjoint(blanks)


def begins_with(text: str, answer: str) -> bool:
    """Whether a text begins with an answer and does not go on inside its last word; white space around both aside."""
    said, known = text.lstrip(), answer.strip()
    return said.startswith(known) and not goes_on(known, said[len(known) :])


def _is_of_word(char: str) -> bool:
    return char == _UNFINISHED or unicodedata.category(char)[0] in "LMN"


def _is_unspaced(char: str) -> bool:
    return any(first <= ord(char) <= last for first, last in _UNSPACED)


class Borders:
    """What the token after an answer does to it, for the tokens of one tokenizer; every pair is decoded once.

    Args:
        tokenizer: of the model. Without one (None) tokens cannot be told apart as text: no answer goes on and none
            ends, so that accuracy is that of the answer's tokens alone.
    """

    def __init__(self, tokenizer: Any | None) -> None:
        self.tokenizer: Any = tokenizer
        self._ends_text = _ending_tokens(tokenizer)
        self._known: dict[tuple[tuple[int, ...], int], tuple[bool, bool]] = {}

    def goes_on(self, answer: tuple[int, ...], following: int | None) -> bool:
        """Whether the next token goes on inside the answer's last word; None: there is no place for a next token."""
        return following is not None and self._looked_at(answer, following)[0]

    def ends(self, answer: tuple[int, ...], following: int | None) -> bool:
        """Whether the next token ends the text or the line; where there is no place for a next token, it has ended.

        A token of blanks alone leaves open what comes after it, and is no end.
        """
        return following is None or self._looked_at(answer, following)[1]

    def _looked_at(self, answer: tuple[int, ...], following: int) -> tuple[bool, bool]:
        if self.tokenizer is None:
            return False, False
        if following in self._ends_text:
            return False, True
        pair = answer, following
        if pair not in self._known:
            alone = self._text(answer)
            added = self._added(answer, alone, following)
            self._known[pair] = goes_on(alone, added), ends_line(added)
        return self._known[pair]

    def _added(self, answer: tuple[int, ...], alone: str, following: int) -> str:
        if following >= len(self.tokenizer):
            return ""  # rows that pad the embedding matrix have no text
        whole = self._text((*answer, following))
        # some decoders show all bytes of a run as unfinished as long as its last character is
        return whole[len(alone) :] if whole.startswith(alone) else _UNFINISHED

    def _text(self, tokens: tuple[int, ...]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _ending_tokens(tokenizer: Any | None) -> frozenset[int]:
    """The special tokens, all of which end a text; not that of unknown text, unless it begins or ends texts as well."""
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    special = set(getattr(tokenizer, "all_special_ids", ()))
    special |= {token for token, about in added.items() if about.special}  # those of chat templates have no names
    unknown, *ends = (getattr(tokenizer, f"{name}_token_id", None) for name in ("unk", "bos", "eos"))
    return frozenset(special if unknown in ends else special - {unknown})
