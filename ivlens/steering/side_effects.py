"""The columns of `side_effects`: what a vector does to texts that have nothing to do with its task."""

from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from importlib import resources
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.common.intervals import t_interval
from ivlens.common.progress import ticking
from ivlens.forward.hooks import model_lock
from ivlens.forward.inputs import Inputs, check_prompts
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.tokens import Encoder, padded
from ivlens.steering.summary import Edit, Judged

N_PROMPTS = 32  # beginnings of sentences
# the rows that get these columns
CONDITIONS = ("iv", "random", "random_heads", "other_tasks", "mean_difference", "distributed", "trained")
_MOST_VECTORS = 3  # of a row
_WINDOW = 128  # tokens of the text that are read together
_ROWS = 8  # windows of a pass


class SideEffects:
    """Gives rows of vectors the columns `kl`, `perplexity` and `perplexity_plain`.

    `kl` is the mean over 32 beginnings of sentences of `KL(plain ‖ steered)` of the next token, in nats (`kl_lo`,
    `kl_hi`: 95 % t interval over beginnings), with the vector added at the last token. `perplexity` is that of a text
    with the vector added at every token, `perplexity_plain` without. A row of several vectors has the means of its
    first three.

    Args:
        text: The text; None: the one that comes with ivlens.

    Raises:
        ValueError: a text of too few words.
    """

    def __init__(self, model: TransformerBridge, text: str | None) -> None:
        self._texts = _Texts(model, text)

    @cached_property
    def _plain(self) -> float:
        return self._texts.perplexity(lambda where: nullcontext())

    def of(self, judged: list[Judged]) -> list[Judged]:
        """The same rows; those of vectors have these columns in addition."""
        found = []
        for one in ticking(judged, "side effects", "rows"):
            edits = one.edits[:_MOST_VECTORS]
            if edits and one.condition in CONDITIONS:
                per_prompt = torch.stack([self._texts.divergences(edit) for edit in edits]).mean(0)
                kl, low, high = t_interval(per_prompt.numpy())
                perplexity = sum(self._texts.perplexity(edit) for edit in edits) / len(edits)
                details: dict[str, Any] = {"kl": kl, "kl_lo": low, "kl_hi": high, "perplexity": perplexity}
                one = replace(one, details={**one.details, **details, "perplexity_plain": self._plain})
            found.append(one)
        return found


def plain_text() -> str:
    """The text that comes with ivlens: unrelated sentences, one in each line."""
    return (resources.files("ivlens") / "data" / "text" / "plain.txt").read_text(encoding="utf-8")


def perplexity(model: TransformerBridge, text: str | None = None) -> float:
    """Exponential of the mean negative log-probability of a text's tokens, read in windows of 128 tokens.

    Args:
        text: The text; None: the one that comes with ivlens.

    Raises:
        ValueError: a text of too few words.
    """
    return _Texts(model, text).perplexity(lambda where: nullcontext())


class _Texts:
    """A text as tokens: the beginnings of its sentences, and the whole in windows, with the plain model's answers."""

    def __init__(self, model: TransformerBridge, text: str | None) -> None:
        self.model = model
        encoder, text = Encoder(model.tokenizer), plain_text() if text is None else text
        lines = [line.split() for line in text.splitlines() if line.strip()]
        begun = [encoder.ids(" ".join(words[: max(1, len(words) // 2)])) for words in lines[:N_PROMPTS]]
        ids, size = encoder.ids(" ".join(text.split())), min(_WINDOW, model.cfg.n_ctx)
        windows = [ids[at : at + size] for at in range(0, len(ids), size)]
        windows = [window for window in windows if len(window) > 1]  # the first token of each is not predicted
        if not begun or not all(begun) or not windows:
            raise ValueError(
                f"text is {text!r:.40}, which has too few words, expected some lines; leave it out for the text that "
                "comes with ivlens."
            )
        self._begun, self._windows = _batch(model, begun), _batch(model, windows)

    @cached_property
    def _plain(self) -> Float[Tensor, "prompts d_vocab"]:
        return self._next(lambda where: nullcontext())

    def divergences(self, edit: Edit) -> Float[Tensor, " prompts"]:
        """`KL(plain ‖ edited)` of the next token after each beginning, in nats."""
        return (self._plain.exp() * (self._plain - self._next(edit))).nan_to_num(posinf=torch.inf).sum(1)

    def perplexity(self, edit: Edit) -> float:
        """Exponential of the mean negative log-probability of the text's tokens, edited at every token."""
        tokens, mask = self._windows
        total, n = 0.0, 0
        for start in range(0, len(tokens), _ROWS):
            rows = slice(start, start + _ROWS)
            logits = self._logits(tokens[rows], mask[rows], edit, mask[rows].bool(), tokens.shape[1])
            logprobs = logits[:, :-1].float().log_softmax(-1).gather(2, tokens[rows, 1:, None])[..., 0]
            # the first token of a window has nothing before it but padding
            asked = (mask[rows, 1:] * mask[rows, :-1]).bool()
            total, n = total - float(logprobs[asked].double().sum()), n + int(asked.sum())
        return float(torch.tensor(total / n).exp())

    def _next(self, edit: Edit) -> Float[Tensor, "prompts d_vocab"]:
        tokens, mask = self._begun
        last = torch.zeros_like(mask, dtype=torch.bool)
        last[:, -1] = True
        return self._logits(tokens, mask, edit, last, 1)[:, 0].double().log_softmax(-1).cpu()

    def _logits(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        edit: Edit,
        where: Tensor,
        n_read: int,
    ) -> Float[Tensor, "batch read d_vocab"]:
        inputs = Inputs(tokens, mask, last=tokens.shape[1] - n_read, n_answer=n_read)
        with model_lock(self.model), edit(lambda: where):
            return inputs.logits(self.model)


def _batch(model: TransformerBridge, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    mask = padded([[1] * len(row) for row in rows], 0, left=True)
    return check_prompts(model, padded(rows, 0, left=True), mask)
