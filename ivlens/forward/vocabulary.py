"""What scores read of the logits, computed for a part of the vocabulary at a time.

The logits of many positions are the largest tensors there are: 49,152 numbers for a position of SmolLM2, 262,144 for
one of Gemma 3. Scores need of them the logits of a few tokens, the largest one, and `log sum exp` of all. Where a
model's logits are what a linear layer makes of the last stream, these are found without ever holding all logits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ivlens.forward.hooked import is_unembedding_hooked
from ivlens.models.boot import TransformerBridge
from ivlens.models.selfcheck import probe_prompts

# logits at one time: about 8 MB, which a processor's cache holds; a GPU has more, and counts the calls
_LOGITS_AT_ONCE = {"cpu": 2**21, "cuda": 2**26}
_WEIGHTS_AT_ONCE = 2**24  # numbers of a half-precision unembedding that are in float32 at one time (64 MB)
# columns of logits come in multiples of it: with an odd number a matrix product takes up to 1.6 times as long
_COLUMNS = 512

# whether a model's logits are what its linear layer gives, or are scaled or capped afterwards
_IS_LAST: WeakKeyDictionary[TransformerBridge, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Read:
    """What is read of the logits at some positions, in float32 at least.

    Attributes:
        total: `log sum exp` of all logits.
        peak: The largest logit; NaN where one is NaN.
        top: The token that has it.
        wanted: The logits of the tokens that were asked for.
    """

    total: Float[Tensor, " positions"]
    peak: Float[Tensor, " positions"]
    top: Int[Tensor, " positions"]
    wanted: Float[Tensor, "positions wanted"]

    @classmethod
    def of_logits(cls, logits: Float[Tensor, "positions d_vocab"], tokens: Int[Tensor, "positions wanted"]) -> "Read":
        """Of logits that are there; they are overwritten, to save memory."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        wanted, (peak, top) = logits.gather(1, tokens), logits.max(1, keepdim=True)
        base = peak.clamp(min=torch.finfo(logits.dtype).min)  # where all are -inf; NaN stays NaN
        total = logits.sub_(base).exp_().sum(1).log_().add_(base[:, 0])
        return cls(total, peak[:, 0], top[:, 0], wanted)

    @classmethod
    def of_stream(
        cls, stream: Float[Tensor, "positions d_model"], linear: nn.Linear, tokens: Int[Tensor, "positions wanted"]
    ) -> "Read":
        """Of what `linear` makes of the stream, for a part of the vocabulary at a time."""
        dtype = torch.promote_types(stream.dtype, torch.float32)
        stream, bias = stream.to(dtype), None
        if linear.bias is not None and bool(linear.bias.any()):  # TransformerLens adds a bias of zeros
            bias = linear.bias.to(dtype)
        at_once = _LOGITS_AT_ONCE.get(stream.device.type, _LOGITS_AT_ONCE["cpu"])
        width = max(1, at_once // max(1, len(stream)) // _COLUMNS) * _COLUMNS
        if linear.weight.dtype != dtype:  # columns are converted first, so they count too
            width = min(width, max(1, _WEIGHTS_AT_ONCE // linear.in_features // _COLUMNS) * _COLUMNS)
        found: Read | None = None
        with torch.autocast(stream.device.type, enabled=False):
            for start in range(0, len(linear.weight), width):
                columns = slice(start, start + width)
                logits = stream @ linear.weight[columns].to(dtype).T
                if bias is not None:
                    logits += bias[columns]
                part = cls.of_logits(logits, tokens[:, :0])
                found = part._moved(start) if found is None else found._joined(part._moved(start))
        assert found is not None
        return cls(found.total, found.peak, found.top, logits_at(stream, linear, tokens))

    def _moved(self, by: int) -> "Read":
        return Read(self.total, self.peak, self.top + by, self.wanted)

    def _joined(self, other: "Read") -> "Read":
        """Of two parts of the vocabulary, the earlier one first; of equal logits the earlier one is the top."""
        is_other = (other.peak > self.peak) | other.peak.isnan()
        peak, top = torch.where(is_other, other.peak, self.peak), torch.where(is_other, other.top, self.top)
        return Read(torch.logaddexp(self.total, other.total), peak, top, self.wanted)

    @property
    def logprobs(self) -> Float[Tensor, "positions wanted"]:
        """Log-probabilities of the tokens that were asked for (nats)."""
        # `wanted` and `total` are sums in different orders: rounding must not make a probability larger than 1
        return (self.wanted - self.total[:, None]).clamp(max=0)


def logits_at(
    stream: Float[Tensor, "positions d_model"], linear: nn.Linear, tokens: Int[Tensor, "positions wanted"]
) -> Float[Tensor, "positions wanted"]:
    """The logits of a few tokens at each position, in float32 at least."""
    dtype = torch.promote_types(stream.dtype, torch.float32)
    with torch.autocast(stream.device.type, enabled=False):
        found = torch.einsum("pd,pwd->pw", stream.to(dtype), linear.weight[tokens].to(dtype))
        return found if linear.bias is None else found + linear.bias[tokens].to(dtype)


def plain_unembedding(model: TransformerBridge) -> nn.Linear | None:
    """The linear layer whose output is the model's logits; None where there is more to them, or a hook.

    A family may scale or cap its logits afterwards; a layer may be adapted, quantised or fetched from elsewhere.
    """
    linear: Any = getattr(model.unembed, "original_component", None)
    if torch.is_autocast_enabled(next(model.parameters()).device.type):
        return None  # the model's own logits are rounded there, and all scores have to be of one kind
    # the exact type: a subclass, as of bitsandbytes, holds weights that cannot be read as they are. A `forward` of its
    # own is accelerate's, which fetches weights
    if type(linear) is not nn.Linear or linear.weight.device.type == "meta" or "forward" in linear.__dict__:
        return None
    if is_unembedding_hooked(model):
        return None
    if model not in _IS_LAST:
        _IS_LAST[model] = _is_last(model, linear)
    return linear if _IS_LAST[model] else None


def _is_last(model: TransformerBridge, linear: nn.Linear) -> bool:
    """Whether the logits of some prompts are what the linear layer gave."""
    given: list[Any] = []
    watch = linear.register_forward_hook(lambda module, args, out: given.append(out))
    try:
        with torch.no_grad():
            tokens, mask = probe_prompts(model.original_model)
            logits = model(tokens, attention_mask=mask, use_cache=False)
    finally:
        watch.remove()
    return len(given) == 1 and torch.equal(logits.nan_to_num(), given[0].nan_to_num())


@contextmanager
def keeping_stream(linear: nn.Linear) -> Iterator[list[Tensor]]:
    """In the body, a pass keeps what it would unembed, and its logits are one column of zeros.

    Yields:
        The streams of all passes, in their order.
    """
    kept: list[Tensor] = []

    def keep(stream: Tensor) -> Tensor:
        kept.append(stream)
        return stream.new_zeros((*stream.shape[:-1], 1))

    try:
        linear.__dict__["forward"] = keep
        yield kept
    finally:
        linear.__dict__.pop("forward", None)
