"""Checked, left-padded inputs of a forward pass; the one place that knows about padding sides and context length."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.forward.unembedding import full_logits
from ivlens.models.boot import TransformerBridge, check_model


@dataclass(frozen=True)
class Inputs:
    """Left-padded prompts, each followed by its answer tokens but the last one (teacher forcing).

    Attributes:
        tokens: Prompts and answer tokens; padding is token 0.
        attention_mask: 1 for tokens, 0 for padding.
        last: The column of the last prompt token, the same in every row.
        n_answer: How many positions predict an answer token: `last` and those after it.
    """

    tokens: Int[Tensor, "batch columns"]
    attention_mask: Int[Tensor, "batch columns"]
    last: int
    n_answer: int

    def logits(self, model: TransformerBridge) -> Float[Tensor, "batch answer_len d_vocab"]:
        """Logits at the positions that predict the answer tokens. The caller holds the model's lock."""
        with torch.no_grad(), full_logits(model):
            return model(self.tokens, attention_mask=self.attention_mask, use_cache=False, logits_to_keep=self.n_answer)


def check_prompts(model: TransformerBridge, tokens: Any, attention_mask: Any) -> tuple[Tensor, Tensor]:
    """Tokens and mask on the model's device, padded on the left, without columns that are all padding.

    Padding becomes token 0: the embedding is looked up there too, where an id such as -100 would be an error.

    Raises:
        TypeError: not integer tensors, or no model from `load_model`.
        ValueError: no prompts, a mask of another shape or not of 0 and 1, a row without tokens, or a token that the
            model does not have; a model in train mode, or with a part that is.
    """
    _check_eval(check_model(model))
    for name, value in (("tokens", tokens), ("attention_mask", attention_mask)):
        if not isinstance(value, Tensor) or (name == "tokens" and (value.is_floating_point() or value.is_complex())):
            got = f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} is {got}, expected an integer tensor of shape [batch, pos].")
    if tokens.ndim != 2 or not tokens.numel():
        raise ValueError(f"tokens has shape {tuple(tokens.shape)}, expected [batch, pos] with at least one prompt.")
    if attention_mask.shape != tokens.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, expected {tuple(tokens.shape)} like tokens; "
            "use 1 for tokens and 0 for padding."
        )
    device = next(model.parameters()).device
    tokens, mask = tokens.to(device).long(), attention_mask.to(device)
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("attention_mask has values other than 0 and 1, expected 1 for tokens and 0 for padding.")
    mask = mask.long()
    if not bool(mask.any(1).all()):
        row = int((~mask.any(1)).nonzero()[0])
        raise ValueError(f"attention_mask row {row} is all 0, expected at least one token; leave the row out.")
    _check_ids("tokens", tokens[mask == 1], model)  # padding may be any number
    return _left_padded(tokens.masked_fill(mask == 0, 0), mask)


def _check_eval(model: TransformerBridge) -> None:
    """Refuse a model in train mode: dropout would change every number."""
    # every part is asked: a training loop switches the wrapped model, and the bridge's own flag does not follow
    if any(part.training for part in model.modules()):
        raise ValueError(
            "the model, or a part of it, is in train mode, expected eval mode: dropout would change every number; "
            "model.eval()."
        )


def _left_padded(tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]) -> tuple[Tensor, Tensor]:
    """The same rows padded on the left, as wide as the longest: all prompts then end in one column."""
    order = mask.argsort(dim=1, stable=True)  # zeros (padding) come first; stable, so tokens keep their order
    width = int(mask.sum(1).max())
    return tokens.gather(1, order)[:, -width:], mask.gather(1, order)[:, -width:]


def _check_ids(name: str, ids: Tensor, model: TransformerBridge) -> None:
    """Refuse ids outside the vocabulary, on which a GPU would fail later and without a clear message."""
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= model.cfg.d_vocab):
        wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise ValueError(
            f"{name} contains {wrong}, expected token ids from 0 to {model.cfg.d_vocab - 1}; "
            "use the model's own tokenizer."
        )


def check_answers(model: TransformerBridge, answer_tokens: Any, batch: int) -> Int[Tensor, "batch answer_len"]:
    """Answer tokens on the model's device, padded on the right with -100, without columns that are all padding.

    Raises:
        TypeError: not an integer tensor.
        ValueError: another number of rows, a row without answer, padding before an answer token, or unknown tokens.
    """
    if not isinstance(answer_tokens, Tensor) or answer_tokens.is_floating_point():
        raise TypeError("answer_tokens is no integer tensor, expected one of shape [batch, answer_len].")
    if answer_tokens.ndim != 2 or len(answer_tokens) != batch or not answer_tokens.shape[1]:
        raise ValueError(
            f"answer_tokens has shape {tuple(answer_tokens.shape)}, expected ({batch}, answer_len), one row for each "
            "prompt; pad on the right with -100."
        )
    answers = answer_tokens.to(next(model.parameters()).device).long()
    real = answers != -100
    if not bool(real.any(1).all()):
        row = int((~real.any(1)).nonzero()[0])
        raise ValueError(f"answer_tokens row {row} is all -100, expected at least one answer token; leave the row out.")
    if bool((real[:, 1:] & ~real[:, :-1]).any()):
        raise ValueError("answer_tokens has -100 before an answer token, expected padding on the right only.")
    _check_ids("answer_tokens", answers[real], model)
    return answers[:, : int(real.sum(1).max())]


def check_length(
    model: TransformerBridge,
    mask: Int[Tensor, "batch pos"],
    n_answer: int = 1,
    remedy: Callable[[], str] = lambda: "use shorter inputs, fewer demonstrations, or another model",
    what: str = "",
) -> None:
    """Raise ValueError if a prompt with its answer does not fit the model's context; the text ends in the remedy.

    Args:
        what: What the error calls the longest prompt; empty: by its row.
    """
    lengths = mask.sum(1)
    longest, n_ctx = int(lengths.max()), model.cfg.n_ctx
    what = what or f"prompt {int(lengths.argmax())}"
    if longest + n_answer - 1 > n_ctx:  # the last answer token is predicted, and takes no position of its own
        raise ValueError(
            f"{what} has {longest} tokens and its answer up to {n_answer}, expected at most "
            f"{n_ctx} together (the model's n_ctx); {remedy()}."
        )


def forced(
    tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], answers: Int[Tensor, "batch answer_len"]
) -> Inputs:
    """Left-padded prompts followed by all but the last of their answer tokens."""
    given = answers[:, :-1]
    return Inputs(
        tokens=torch.cat([tokens, given.clamp(min=0)], 1),  # -100 is no token id; the mask hides these
        attention_mask=torch.cat([mask, (given != -100).long()], 1),
        last=tokens.shape[1] - 1,
        n_answer=answers.shape[1],
    )


def row_slices(n_rows: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` rows.

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"batch_size is {size}, expected 1 or more rows for each forward pass.")
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))
