"""From text to tokens and back, without guesses about where an answer begins or how a tokenizer writes spaces."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


def check_tokenizer(tokenizer: Any) -> Any:
    """The given tokenizer, if it is one of transformers.

    Raises:
        TypeError: it is something else.
    """
    if not callable(tokenizer) or not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise TypeError(
            f"tokenizer is {type(tokenizer).__name__}, expected a transformers tokenizer; "
            "pass model.tokenizer, or give load_model one (tokenizer=...)."
        )
    return tokenizer


class Encoder:
    """Gives the tokens of texts, with the tokenizer's start token (BOS) before them but no end token after them.

    Attributes:
        start: What stands before every text: BOS, or nothing.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer: Any = check_tokenizer(tokenizer)
        self._tokens_of: dict[str, list[int]] = {}  # by text: the same texts are asked for again and again
        self.start = self._special_start()

    def _plain(self, text: str) -> list[int]:
        """Tokens of `text` without special tokens.

        Raises:
            ValueError: the text has half a surrogate pair, or the tokenizer fails on it.
        """
        try:
            text.encode()
            return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{text!r:.60} is no whole text ({error.reason}), expected valid Unicode; correct it."
            ) from None
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # raised by libraries in Rust; it is no subclass of Exception
                raise
            said = " ".join(str(error).split())
            raise ValueError(
                f"the tokenizer fails on {text!r:.60} ({said:.60}), expected one that reads any text; use another."
            ) from None

    def _special_start(self) -> list[int]:
        """The tokens that the tokenizer puts before a text (BOS, or none).

        Tokens that it appends, such as EOS, are left out: an answer follows the prompt.
        """
        plain, full = self._plain("a"), self.tokenizer("a", verbose=False)["input_ids"]
        for n in range(len(full) - len(plain) + 1):
            if full[n : n + len(plain)] == plain:
                return full[:n]
        return []

    def ids(self, text: str) -> list[int]:
        """Tokens of `text`, which begin with BOS exactly once if the tokenizer adds one."""
        if text not in self._tokens_of:
            plain = self._plain(text)
            # chat templates may write BOS themselves
            self._tokens_of[text] = plain if plain[: len(self.start)] == self.start else self.start + plain
        return self._tokens_of[text]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token of `text` (see `ids`) stands in it: begin and end, in characters.

        A token that holds a part of a character has the whole character; a token without any text of its own, such as
        BOS, is empty.

        Raises:
            ValueError: the tokenizer does not show where its tokens stand.
        """
        ids, plain = self.ids(text), self._plain(text)
        found = self._offsets(text, plain) or self._lengths(text, plain)
        if found is None:
            raise ValueError(
                f"tokenizer {type(self.tokenizer).__name__} does not show where its tokens stand in {text[:40]!r}, "
                "expected offsets, or tokens whose texts make up the prompt; use a fast tokenizer."
            )
        return [(0, 0)] * (len(ids) - len(plain)) + found

    def _offsets(self, text: str, plain: list[int]) -> list[tuple[int, int]] | None:
        """The places by the tokenizer's own offsets; None where it has none, or they leave out letters."""
        if not getattr(self.tokenizer, "is_fast", False):
            return None
        told = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        found, at = [], 0
        for begin, end in told["offset_mapping"]:
            # a space that is a token of its own may be cut from its own place (`trim_offsets`)
            begin -= begin == end > at and text[begin - 1].isspace()
            if text[at:begin].strip() or begin < (found[-1][0] if found else 0) or end > len(text):
                return None
            found.append((begin, end))
            at = max(at, end)
        if len(found) != len(plain) or text[at:].strip():
            return None
        at = 0
        while at < len(found):
            # several tokens may share one place, such as all bytes of some characters in a row
            n, (begin, end) = n_shared(found[at:], [found[at]] * (len(found) - at)), found[at]
            if n > 1 and end > begin + 1 and (own := self._lengths(text[begin:end], plain[at : at + n])):
                found[at : at + n] = [(begin + first, begin + last) for first, last in own]
            at += n
        return found

    def _lengths(self, text: str, plain: list[int]) -> list[tuple[int, int]] | None:
        """The places by the lengths of what the first tokens, one more each time, decode to; None if that differs."""
        found, at, n_open = [], 0, 0
        for n in range(1, len(plain) + 1):
            shown = self.tokenizer.decode(plain[:n], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            # a character may be several tokens, of which the first ones decode to nothing that can be read
            whole = shown.rstrip("\ufffd") if n < len(plain) else shown
            n_open += 1
            if len(whole) < at and whole != shown:
                continue  # some decoders show none of the bytes before, either, until the character is whole
            if not text.startswith(whole) or len(whole) < at:
                return None
            found += [(at, max(len(whole), min(at + 1, len(text))))] * n_open
            at, n_open = len(whole), 0
        return found if at == len(text) else None

    def split(self, prompt: str, continuations: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Tokens of `prompt`, and of each continuation after it.

        Prompt and continuation are tokenised together. The prompt's tokens are those that all of these texts share with
        the prompt alone, so a token that lies across the border belongs to the continuation.

        Raises:
            ValueError: a continuation adds no tokens, or no token is left for the prompt.
        """
        alone = self.ids(prompt)
        joint = [self.ids(prompt + continuation) for continuation in continuations]
        n = min(n_shared(alone, ids) for ids in joint)
        for continuation, ids in zip(continuations, joint, strict=True):
            if len(ids) <= n:
                raise ValueError(
                    f"answer {continuation!r} adds no token to the prompt {prompt[-40:]!r}, expected at least one; "
                    "leave it out, or use another tokenizer."
                )
        if n == 0:
            raise ValueError(
                f"prompt {prompt[:60]!r} has no token before its answer, expected at least one; "
                "use a template with a cue."
            )
        return alone[:n], [ids[n:] for ids in joint]

    def is_blank(self, token: int) -> bool:
        """Whether a token is white space alone, which some tokenizers write before a number."""
        return not token_text(self.tokenizer, token).strip()

    def unknown(self, ids: Sequence[int]) -> bool:
        """Whether tokens include the unknown token, so that a part of the text cannot be written."""
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        # GPT-2 calls its end-of-text token the unknown token, though it can write any text
        return unknown is not None and unknown != self.tokenizer.eos_token_id and unknown in ids


def n_shared(first: Sequence[object], second: Sequence[object]) -> int:
    """How many items (tokens, or characters) are the same at the beginning of both."""
    n = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        n += 1
    return n


def token_text(tokenizer: Any, token: int) -> str:
    """One token as text, with its leading space if it has one: `" small"`, `"ing"`, `"<0xE5>"`, `"</s>"`.

    `tokenizer.decode` would drop the space of a SentencePiece token, and show a byte that is no character as
    `"\\ufffd"`.
    """
    piece = tokenizer.convert_ids_to_tokens(int(token))
    if piece is None:
        return f"<{int(token)}>"  # the embedding matrix may have rows without a token
    if "\u2581" in piece:
        return piece.replace("\u2581", " ")
    text = tokenizer.decode([int(token)], clean_up_tokenization_spaces=False)
    return piece if not text or "\ufffd" in text else text


def pad_token(tokenizer: Any) -> int:
    """The token for masked positions; any token would do, as the model does not attend to them."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def padded(rows: Sequence[Sequence[int]], value: int, *, left: bool) -> Int[Tensor, "batch width"]:
    """A tensor of the given rows, which are filled up with `value` on one side to the width of the longest."""
    out = torch.full((len(rows), max(len(row) for row in rows)), value)
    for filled, row in zip(out, rows, strict=True):
        filled[out.shape[1] - len(row) if left else 0 :][: len(row)] = torch.tensor(row)
    return out
