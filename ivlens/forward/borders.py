"""Where an answer ends: whether the text after it goes on inside its last word, or ends the line or the text.

The functions decide this for texts; `Borders` decides it for tokens, by decoding them.
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
_LINE_BREAKS = frozenset("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")  # where str.splitlines ends a line
_UNFINISHED = "\ufffd"  # how decoders show bytes that are no whole character yet


def goes_on(answer: str, added: str) -> bool:
    """Whether text right after an answer goes on inside its last word: "2" after "1", "er" after "small".

    It does where both characters at the border are letters, digits or marks, or bytes of an unfinished character. In
    scripts without spaces between words (Han, kana, Thai, Lao, Khmer, Myanmar) the word is taken to end there, unless
    the next character is a mark, which belongs to the character before it.
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
    """Whether a text begins with an answer and does not go on inside its last word; outer white space is ignored."""
    text, answer = text.lstrip(), answer.strip()
    return text.startswith(answer) and not goes_on(answer, text[len(answer) :])


def _is_of_word(char: str) -> bool:
    return char == _UNFINISHED or unicodedata.category(char)[0] in "LMN"  # letters, marks, numbers


def _is_unspaced(char: str) -> bool:
    return any(first <= ord(char) <= last for first, last in _UNSPACED)


class Borders:
    """Decides whether the token after an answer continues or ends it, for one tokenizer.

    Args:
        tokenizer: The model's tokenizer. Without one (None) tokens have no text: no answer is then seen to go on or to
            end, and accuracy is that of the answer's tokens alone.
    """

    def __init__(self, tokenizer: Any | None) -> None:
        self.tokenizer: Any = tokenizer
        self._ends_text = _ending_tokens(tokenizer)
        # (goes on, ends) of each answer and next token: decoding is slow, and the same pairs come up again and again
        self._decided: dict[tuple[tuple[int, ...], int], tuple[bool, bool]] = {}

    def goes_on(self, answer: tuple[int, ...], following: int | None) -> bool:
        """Whether the next token goes on inside the answer's last word; None: the context has no room for one."""
        return following is not None and self._decide(answer, following)[0]

    def ends(self, answer: tuple[int, ...], following: int | None) -> bool:
        """Whether the next token ends the text or the line; where the context has no room for one, the text has ended.

        A token of blanks alone is no end: the word after it is not known yet.
        """
        return following is None or self._decide(answer, following)[1]

    def _decide(self, answer: tuple[int, ...], following: int) -> tuple[bool, bool]:
        """Whether the next token goes on inside the last word, and whether it ends the text or line."""
        if self.tokenizer is None:
            return False, False
        if following in self._ends_text:
            return False, True
        pair = answer, following
        if pair not in self._decided:
            alone = self._text(answer)
            added = self._added(answer, alone, following)
            self._decided[pair] = goes_on(alone, added), ends_line(added)
        return self._decided[pair]

    def _added(self, answer: tuple[int, ...], alone: str, following: int) -> str:
        """The text that the next token adds to the answer's."""
        if following >= len(self.tokenizer):
            return ""  # embedding matrices are padded with rows that stand for no token
        # decoded together: a token alone may lose its leading space, or hold half a character
        whole = self._text((*answer, following))
        # some decoders show a whole run of bytes as unfinished if its last character is; `alone` is then not in it
        return whole[len(alone) :] if whole.startswith(alone) else _UNFINISHED

    def _text(self, tokens: tuple[int, ...]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _ending_tokens(tokenizer: Any | None) -> frozenset[int]:
    """The special tokens, each of which ends a text; without the unknown token, unless it is also BOS or EOS."""
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    special = set(getattr(tokenizer, "all_special_ids", ()))
    special |= {token for token, about in added.items() if about.special}  # such as those of chat templates
    unknown, *ends = (getattr(tokenizer, f"{name}_token_id", None) for name in ("unk", "bos", "eos"))
    return frozenset(special if unknown in ends else special - {unknown})
