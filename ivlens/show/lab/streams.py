"""Complete one prompt several times in the same passes, each time with another vector, token by token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.forward.hooks import check_site, check_unsteered, model_lock
from ivlens.forward.inputs import check_length
from ivlens.forward.kept import KeptLayer, cache_fault
from ivlens.forward.sharing import rest, short_pass
from ivlens.forward.unembedding import last_logits_only
from ivlens.forward.writes import added_to_stream
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.prompts.tokens import Encoder, token_text
from ivlens.steering.edits import Positions, addition
from ivlens.steering.prompt_ends import followed


@dataclass(frozen=True)
class Completion:
    """One completion as far as it has come.

    Attributes:
        text: the text written so far.
        top: the likeliest first tokens with their probabilities, largest first.
        done: whether the completion has ended.
    """

    text: str
    top: tuple[tuple[str, float], ...]
    done: bool


@dataclass(frozen=True)
class Addition:
    """The vectors that are added while a prompt is completed, and where.

    Attributes:
        deltas: the vector that is added in each row; zeros for a row without a vector.
        layer, site: where the vectors are added, as in `steer`.
        positions: the tokens at which they are added, as in `steer`.
    """

    deltas: Float[Tensor, "rows d_model"]
    layer: int
    site: str = "resid_post"
    positions: Positions = "prompt"


MAX_TOKENS = 4_096  # tokens in a prompt
PORTION = 128  # tokens of a long prompt that are read in one pass


def stream_completions(
    model: TransformerBridge, prompt: str, what: Addition, *, max_new_tokens: int = 12, n_top: int = 10
) -> Iterator[tuple[Completion, ...]]:
    """Complete `prompt` greedily, once for every row of `what.deltas`, all rows in the same passes.

    The model's lock is held for one pass at a time, and no hooks are left between passes. So several streams of one
    model can take turns, and a stream that is no longer wanted can be dropped after any token. A long prompt is read in
    several passes, once for all rows, unless the vectors are added before its last token too.

    Args:
        what: the vectors, and where they are added.
        n_top: how many of the likeliest first tokens are given with each completion.

    Yields:
        The completions of all rows after every token; in the last ones `done` is True everywhere.

    Raises:
        ValueError: an empty prompt, one of more than `MAX_TOKENS`, or one that fills the model's context; no such layer
            or site.
    """
    tokens = _prompt_tokens(model, prompt)
    check_site(what.site)
    eos = model.tokenizer.eos_token_id
    length = min(max_new_tokens, model.cfg.n_ctx - len(tokens))
    device = next(model.parameters()).device
    rows = torch.tensor([tokens] * len(what.deltas), device=device)
    logits, cache = _begun(model, rows, what)
    shown = tuple(Completion("", top, False) for top in _tops(model, logits, n_top))
    written: list[list[int]] = [[] for _ in shown]
    for step in range(length):
        following = logits.argmax(-1)
        for row, token in enumerate(following.tolist()):
            if not shown[row].done and token != eos:
                written[row].append(token)
        # a row that has ended still takes part in the passes; what it would write is not kept
        over = step == length - 1
        shown = tuple(
            replace(one, text=_text(model, ids), done=one.done or over or token == eos)
            for one, ids, token in zip(shown, written, following.tolist(), strict=True)
        )
        yield shown
        if all(one.done for one in shown):
            return
        logits, cache = _forward(model, following[:, None], cache, len(tokens) + step + 1, what)


def _prompt_tokens(model: TransformerBridge, prompt: str) -> list[int]:
    """The tokens of a prompt, if it is not empty and leaves room for a completion."""
    tokens = Encoder(check_model(model).tokenizer).ids(prompt)
    if not prompt.strip() or not tokens:
        raise ValueError("the prompt is empty, expected some text to complete; write an input.")
    if len(tokens) > MAX_TOKENS:
        raise ValueError(
            f"the prompt has {len(tokens):,} tokens, expected at most {MAX_TOKENS:,} in the lab; shorten it, or "
            "complete it from Python."
        )
    # 2, not 1: at least one new token has to fit behind the prompt
    check_length(model, torch.ones(1, len(tokens), dtype=torch.long), 2)
    return tokens


def _begun(
    model: TransformerBridge, rows: Int[Tensor, "rows pos"], what: Addition
) -> tuple[Float[Tensor, "rows d_vocab"], Any]:
    """The logits after the prompt, which is the same in all rows, and the cache of all rows."""
    length = rows.shape[1]
    cache = _read(model, rows[:1, :-1]) if length > PORTION and what.positions != "all" else None
    if cache is None:
        return _forward(model, rows, None, length, what)
    for layer in cache.layers:  # from one row to all; the last token is read with the vectors
        KeptLayer.of(layer).put_back(layer, torch.zeros(len(rows), dtype=torch.long))
    return _forward(model, rows[:, -1:], cache, length, what, ends_here=True)


def _read(model: TransformerBridge, tokens: Int[Tensor, "1 pos"]) -> Any:
    """The cache of a text, read in portions so that other passes get a turn; None if the model has no such cache."""
    cache, n_seen = None, 0
    for part in tokens.split(PORTION, dim=1):
        n_seen += part.shape[1]
        past = {} if cache is None else {"past_key_values": cache}
        mask = torch.ones(1, n_seen, dtype=torch.long, device=tokens.device)
        with model_lock(model), torch.no_grad(), last_logits_only(model):
            check_unsteered(model)
            _, cache = model(part, attention_mask=mask, use_cache=True, return_type="logits_and_cache", **past)
        if cache_fault(cache) is not None:
            return None
        rest(model)
    return cache


def _forward(
    model: TransformerBridge,
    tokens: Int[Tensor, "rows pos"],
    cache: Any,
    n_seen: int,
    what: Addition,
    *,
    ends_here: bool = False,
) -> tuple[Float[Tensor, "rows d_vocab"], Any]:
    """The logits after the last token, and the cache, which the next call extends.

    Args:
        n_seen: tokens of each row, cached ones included.
        ends_here: whether the one token of this pass is the prompt's last. Behind a cache it would count as generated.
    """
    mask = torch.ones(len(tokens), n_seen, dtype=torch.long, device=tokens.device)
    past = {} if cache is None else {"past_key_values": cache}
    last = torch.ones_like(tokens, dtype=torch.bool)
    with (
        short_pass(model),
        torch.no_grad(),
        followed(model) as ends,
        added_to_stream(
            model,
            what.layer,
            what.site,
            addition(what.deltas, lambda: last if ends_here else ends.columns(what.positions)),
        ),
    ):
        logits, cache = model(tokens, attention_mask=mask, use_cache=True, return_type="logits_and_cache", **past)
    return logits[:, -1], cache


def _tops(
    model: TransformerBridge, logits: Float[Tensor, "rows d_vocab"], n_top: int
) -> list[tuple[tuple[str, float], ...]]:
    """The likeliest tokens of each row as texts with their probabilities, largest first."""
    top = logits.float().softmax(-1).topk(min(n_top, logits.shape[-1]))
    return [
        tuple((token_text(model.tokenizer, token), value) for token, value in zip(tokens, values, strict=True))
        for tokens, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def _text(model: TransformerBridge, tokens: Sequence[int]) -> str:
    return model.tokenizer.decode(tokens, skip_special_tokens=True)
