"""`logit_lens`: what the model would say after every layer, with a vector and without it."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.analysis.inside.lens_results import LogitLens
from ivlens.common.arguments import checked
from ivlens.common.checks import as_items, check_counts
from ivlens.common.precision import HALF
from ivlens.forward.hooks import added, captured_residual, check_unsteered, model_lock
from ivlens.forward.inputs import Inputs, check_length, check_prompts, row_slices
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.fingerprint import model_identity
from ivlens.prompts.tokens import Encoder, pad_token, padded, token_text
from ivlens.steering.steer import steer
from ivlens.steering.summary import Setting
from ivlens.vectors.vector import InstructionVector

_ROWS = 64  # streams that are finished in one pass of one token
_TOLERANCE = {
    True: 0.1,
    False: 1e-2,
}  # nats by which the last layer may miss the model's output, in half precision or not


@checked
@dataclass(frozen=True)
class LensOptions:
    """How the lens is read.

    Attributes:
        k: How many of the likeliest tokens of each layer are kept.
        follow: Texts whose first tokens are followed through all layers, as they would stand behind the prompt
            (`" small"`).
        batch_size: Prompts in each pass; each has logits for every layer.
    """

    k: int = 5
    follow: Sequence[str] = ()
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_counts(self, k=1, batch_size=1)


@checked
def logit_lens(
    model: TransformerBridge,
    prompts: str | Sequence[str],
    iv: InstructionVector | None = None,
    *,
    at: Setting | None = None,
    options: LensOptions | None = None,
) -> LogitLens:
    """The next-token distribution after each layer: its residual stream at the last token, finished as the last one is.

        `p_l = softmax(U(norm(h_l)))`

    Everything that the model does after its last block is done to the stream of every layer: final norm, unembedding,
    and a scale or a softcap where the family has one. So the last layer gives the model's own output, which is checked.
    An early layer's stream was not made for this norm, so what the lens shows there is a reading, not what the model
    "thinks"; layers read with trained translations (a tuned lens) differ.

    Example:
        >>> import ivlens
        >>> model, task = ivlens.load_model("pocket"), ivlens.load_task("antonym")
        >>> iv = ivlens.InstructionVector.from_effects(ivlens.head_effects(model, task, n_prompts=8), k=10)
        >>> lens = ivlens.logit_lens(model, "Input: big\\nOutput:", iv, at=ivlens.Setting(1, 4.0, "attn_out"))
        >>> print(lens.table().head(2).round(1).to_string(index=False))
         layer plain  plain_prob patched  patched_prob
             5  size         0.1   small           0.9
             4     g         0.3   small           0.5

    Args:
        model: From `load_model`, with its tokenizer.
        prompts: One text, or several.
        iv: A vector, added at `at` in a second run of the same prompts.
        at: Layer, strength and site of the vector, such as `Evaluation.best`.
        options: How many tokens are kept, and which are followed.

    Raises:
        TypeError: a model that `load_model` did not return, or one without a tokenizer.
        ValueError: no prompts, an empty one, or one that does not fit; a vector without a setting, or a setting without
            a vector; or the last layer does not give the model's own output.
        RuntimeError: inside a `steer` context.

    Source: docs/method.md, 17 Inside a pass; the lens is that of nostalgebraist (2020).
    """
    check_unsteered(check_model(model))
    options = options or LensOptions()
    texts = as_items("prompts", prompts)
    if not texts:
        raise ValueError("logit_lens got no prompts, expected at least one text.")
    if (iv is None) != (at is None):
        raise ValueError("logit_lens got one of iv and at, expected a vector with its setting, or neither; give both.")
    tokens, mask = _tokens(model, texts)
    ids = torch.tensor([_first_tokens(model, text, options.follow) for text in texts], dtype=torch.long)
    ids = ids.reshape(len(texts), len(options.follow))
    runs = []
    for vector in [None] if iv is None else [None, iv]:
        parts = [
            _read(_run(model, tokens[rows], mask[rows], vector, at), ids[rows], options)
            for rows in row_slices(len(texts), options.batch_size)
        ]
        runs.append(_Read(*(torch.cat(each) for each in zip(*parts, strict=True))))
    found = _Read(*(torch.stack(each) for each in zip(*runs, strict=True)))
    names = {each: token_text(model.tokenizer, each) for each in found.top.unique().tolist()}
    settings: dict[str, Any] = {"k": options.k, "follow": list(options.follow), "at": None if at is None else list(at)}
    return LogitLens(
        runs=("plain", "patched")[: len(runs)],
        prompts=tuple(texts),
        tokens=tuple(
            tuple(tuple(tuple(names[each] for each in row) for row in layers) for layers in run)
            for run in found.top.tolist()
        ),
        probs=found.probs,
        followed=tuple(options.follow),
        followed_probs=found.followed_probs,
        followed_ranks=found.followed_ranks,
        entropy=found.entropy,
        kl=found.kl,
        model=model_identity(model),
        settings=settings,
    )


class _Read(NamedTuple):
    """What is kept of the distributions of some prompts; see `LogitLens`."""

    top: Int[Tensor, "*rows k"]
    probs: Float[Tensor, "*rows k"]
    followed_probs: Float[Tensor, "*rows n_followed"]
    followed_ranks: Int[Tensor, "*rows n_followed"]
    entropy: Float[Tensor, "*rows"]
    kl: Float[Tensor, "*rows"]


def _tokens(model: TransformerBridge, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The prompts as checked, left-padded tokens."""
    encoder = Encoder(model.tokenizer)
    ids = [encoder.ids(text) for text in texts]
    real = [bool(text and row) for text, row in zip(texts, ids, strict=True)]
    if not all(real):
        raise ValueError(f"prompt {real.index(False)} is empty, expected some text in each.")
    tokens = padded(ids, pad_token(model.tokenizer), left=True)
    found = check_prompts(model, tokens, padded([[1] * len(row) for row in ids], 0, left=True))
    check_length(model, found[1])
    return found


def _first_tokens(model: TransformerBridge, prompt: str, follow: Sequence[str]) -> list[int]:
    """The first token of each followed text, where it stands behind the prompt."""
    if not follow:
        return []
    if not all(follow):
        raise ValueError("follow has an empty text, expected texts such as ' small'.")
    return [answer[0] for answer in Encoder(model.tokenizer).split(prompt, list(follow))[1]]


def _run(
    model: TransformerBridge,
    tokens: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"],
    iv: InstructionVector | None,
    at: Setting | None,
) -> Float[Tensor, "batch n_layers d_vocab"]:
    """Log-probabilities after each layer, on the CPU in float32."""
    n_layers = model.cfg.n_layers
    with model_lock(model), steer(model, iv, at=at) if iv is not None else nullcontext():
        # cloned: a view would keep the streams of all tokens
        with captured_residual(model, range(n_layers), select=lambda h: h[:, -1].clone()) as kept:
            output = Inputs(tokens, mask, last=tokens.shape[1] - 1, n_answer=1).logits(model)[:, 0].float()
    streams = torch.stack([kept[layer].to(tokens.device) for layer in range(n_layers)], 1)
    rows = streams.flatten(0, 1)
    found = torch.cat([_finished(model, rows[part]) for part in row_slices(len(rows), _ROWS)])
    logprobs = found.unflatten(0, streams.shape[:2]).log_softmax(-1)
    _check_last(model, logprobs[:, -1], output.log_softmax(-1))
    return logprobs.cpu()


def _finished(model: TransformerBridge, streams: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_vocab"]:
    """Logits that the model makes of streams after its last block, by its own forward pass.

    One made-up token for each row goes through all blocks, and what the last one gives out is replaced by the stream.
    So nothing that a family does behind its blocks is forgotten.
    """
    nothing = torch.zeros(len(streams), 1, dtype=torch.long, device=streams.device)
    replaced = added(model, model.cfg.n_layers - 1, "resid_post", lambda h: streams[:, None].to(h))
    with model_lock(model), replaced:
        return Inputs(nothing, torch.ones_like(nothing), last=0, n_answer=1).logits(model)[:, 0].float()


def _check_last(model: TransformerBridge, last: Float[Tensor, "b d_vocab"], output: Float[Tensor, "b d_vocab"]) -> None:
    """Refuse a model whose last layer, read through the lens, does not give its output."""
    likely = output > output.max(-1, keepdim=True).values - 10  # tokens that nobody sees need not agree
    off = float((last - output)[likely].abs().max())
    if not off <= _TOLERANCE[next(model.parameters()).dtype in HALF]:
        raise ValueError(
            f"the last layer of {model.cfg.model_name!r} misses the model's own output by {off:.2g} nats, expected the "
            "same: something behind the blocks depends on more than the stream; the lens cannot be used on this model."
        )


def _read(
    whole: Float[Tensor, "n_prompts n_layers d_vocab"], ids: Int[Tensor, "n_prompts n_followed"], options: LensOptions
) -> _Read:
    """The likeliest tokens, the followed ones, entropy and divergence of log-probabilities."""
    top = whole.topk(min(options.k, whole.shape[-1]))
    own = whole.gather(-1, ids[:, None].expand(-1, whole.shape[1], -1))
    ranks = torch.zeros_like(own, dtype=torch.long)
    for at in range(own.shape[-1]):
        ranks[..., at] = (whole > own[..., at, None]).sum(-1) + 1
    last = whole[:, -1:]
    # a probability of 0 adds nothing, though its logarithm is minus infinity
    entropy = -(whole.exp() * whole).nan_to_num(0).sum(-1)
    kl = (last.exp() * (last - whole)).nan_to_num(0).sum(-1).clamp_min(0)
    return _Read(top.indices, top.values.exp(), own.exp(), ranks, entropy, kl)
