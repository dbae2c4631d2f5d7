"""Greedy completions of texts, steered or not."""

from collections.abc import Sequence
from typing import Any

import torch

from ivlens.common.checks import as_items
from ivlens.forward.hooks import model_lock
from ivlens.forward.inputs import check_length, check_prompts
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.prompts.tokens import Encoder, pad_token


def complete(model: TransformerBridge, prompts: str | Sequence[str], *, max_new_tokens: int = 16) -> list[str]:
    """The text that the model writes after each prompt, greedily, up to its end-of-text token.

    Inside `steer` the steered model writes; while another thread steers, the call waits. All prompts run in one
    left-padded batch.

    Args:
        max_new_tokens: the largest number of new tokens; fewer where the model's context ends before.

    Returns:
        The new text alone, as decoded, its leading white space included.

    Raises:
        ValueError: no prompts, an empty one, or one that fills the model's context.
    """
    prompts = as_items("prompts", prompts)
    if not prompts:
        raise ValueError("complete got no prompts, expected at least one text.")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}, expected at least 1.")
    encoder = Encoder(check_model(model).tokenizer)
    rows = [encoder.ids(prompt) for prompt in prompts]
    if not all(rows):
        raise ValueError(f"prompt {list(map(bool, rows)).index(False)} has no tokens, expected some text in each.")
    width = max(map(len, rows))
    device = next(model.parameters()).device
    fill = pad_token(model.tokenizer)
    tokens = torch.tensor([[fill] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    tokens, mask = check_prompts(model, tokens, mask)
    check_length(model, mask, 2)  # room for one new token at least
    eos = model.tokenizer.eos_token_id
    with model_lock(model), torch.no_grad():
        _check_finite(model, tokens, mask)  # greedy decoding of NaN would write token 0 for ever, without an error
        written: Any = model.generate(
            tokens,
            attention_mask=mask,
            max_new_tokens=min(max_new_tokens, model.cfg.n_ctx - width),
            do_sample=False,
            stop_at_eos=eos is not None,  # with True, the bridge raises an error for a tokenizer without such a token
            return_type="tokens",
            verbose=False,
        )
    return [_text(model, row, eos) for row in written[:, width:].tolist()]


def _check_finite(model: TransformerBridge, tokens: torch.Tensor, mask: torch.Tensor) -> None:
    """Refuse models that give NaN on padded prompts, as some families do in float64 or under autocast."""
    parameter = next(model.parameters())
    # in other dtypes no family does that, and the pass is saved
    if parameter.dtype != torch.float64 and not torch.is_autocast_enabled(parameter.device.type):
        return
    if not bool(model(tokens, attention_mask=mask, use_cache=False, logits_to_keep=1).isfinite().all()):
        raise ValueError(
            f"model {model.cfg.model_name!r} gives NaN on padded prompts in float64 or under autocast, expected "
            "numbers; load it with dtype='float32', or give one prompt at a time."
        )


def first_line(completion: str) -> str:
    """The first line that is not blank, without white space around it: the answer of a task with one-line answers."""
    return next((line.strip() for line in completion.splitlines() if line.strip()), "")


def _text(model: TransformerBridge, tokens: list[int], eos: int | None) -> str:
    """The text up to the end token; rows that end early are filled up behind it."""
    kept = tokens[: tokens.index(eos)] if eos in tokens else tokens
    return model.tokenizer.decode(kept, skip_special_tokens=True)
