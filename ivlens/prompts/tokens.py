"""Text to tokens and back, without guessing where an answer begins or how a space is spelled."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


def check_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer, if it is one.

    Raises:
        TypeError: anything else.
    """
    if not callable(tokenizer) or not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise TypeError(
            f"tokenizer is {type(tokenizer).__name__}, expected a transformers tokenizer; "
            "pass model.tokenizer, or give load_model one (tokenizer=...)."
        )
    return tokenizer


class Encoder:
    """A tokenizer that starts every text as it would on its own, and never ends one."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer: Any = check_tokenizer(tokenizer)
        self._known: dict[str, list[int]] = {}  # one prompt is met with many continuations
        self._start = self._special_start()

    def _plain(self, text: str) -> list[int]:
        """Tokens of `text` alone.

        Raises:
            ValueError: the text is no whole text, or the tokenizer's patterns take too long on it.
        """
        try:
            text.encode()
            return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        except UnicodeEncodeError as error:
            raise ValueError(f"{text!r:.60} is no whole text ({error.reason}), expected one; correct it.") from None
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of a library in Rust, which is no Exception
                raise
            said = " ".join(str(error).split())
            raise ValueError(
                f"the tokenizer fails on {text!r:.60} ({said:.60}), expected one that reads any text; use another."
            ) from None

    def _special_start(self) -> list[int]:
        """What the tokenizer puts before a text (BOS, or nothing); what it appends would not precede an answer."""
        plain, full = self._plain("a"), self.tokenizer("a", verbose=False)["input_ids"]
        for n in range(len(full) - len(plain) + 1):
            if full[n : n + len(plain)] == plain:
                return full[:n]
        return []

    def ids(self, text: str) -> list[int]:
        """Tokens of `text`, with the BOS exactly once where the tokenizer adds one."""
        if text not in self._known:
            plain = self._plain(text)
            self._known[text] = plain if plain[: len(self._start)] == self._start else self._start + plain
        return self._known[text]

    def split(self, prompt: str, continuations: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Tokens of `prompt`, and of each continuation after it.

        Prompt and continuation are tokenised together. The prompt is what all of them have in common with the prompt
        alone, so a token that straddles the border belongs to the continuation.

        Raises:
            ValueError: a continuation has no tokens of its own, or nothing is left of the prompt.
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
        """Whether a token is white space alone: what some tokenizers write before a number."""
        return not token_text(self.tokenizer, token).strip()

    def unknown(self, ids: Sequence[int]) -> bool:
        """Whether some of the text has no token in this vocabulary."""
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        # GPT-2 names its end-of-text token as unknown token, and can spell everything
        return unknown is not None and unknown != self.tokenizer.eos_token_id and unknown in ids


def n_shared(first: Sequence[int] | str, second: Sequence[int] | str) -> int:
    """How many tokens, or characters, both begin with."""
    n = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        n += 1
    return n


def token_text(tokenizer: Any, token: int) -> str:
    """One token as it reads inside a text, with its leading space: `" small"`, `"ing"`, `"<0xE5>"`, `"</s>"`.

    `tokenizer.decode` drops the space of a SentencePiece token, and shows a byte that is no character as `"\\ufffd"`.
    """
    piece = tokenizer.convert_ids_to_tokens(int(token))
    if piece is None:
        return f"<{int(token)}>"  # rows that pad the embedding matrix have no token
    if "\u2581" in piece:
        return piece.replace("\u2581", " ")
    text = tokenizer.decode([int(token)], clean_up_tokenization_spaces=False)
    return piece if not text or "\ufffd" in text else text


def pad_token(tokenizer: Any) -> int:
    """A token to fill masked positions with; which one is the same to the model."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def padded(rows: Sequence[Sequence[int]], value: int, *, left: bool) -> Int[Tensor, "batch width"]:
    """Rows of one width, filled up with `value` on one side."""
    out = torch.full((len(rows), max(len(row) for row in rows)), value)
    for filled, row in zip(out, rows, strict=True):
        filled[out.shape[1] - len(row) if left else 0 :][: len(row)] = torch.tensor(row)
    return out
