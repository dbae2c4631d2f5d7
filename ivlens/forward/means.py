"""Mean outputs of all heads at the last prompt token, and the mean scale of what heads write into the stream."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.common.arguments import checked
from ivlens.common.progress import ticking
from ivlens.forward.hooks import captured_heads, captured_projection, captured_residual, model_lock
from ivlens.forward.inputs import Inputs, check_length, check_prompts, row_slices
from ivlens.forward.writes import WriteFactors, write_factors
from ivlens.models.attention import attention_layers
from ivlens.models.boot import TransformerBridge
from ivlens.models.mixers import MixerKind, check_mixer, columns, existing


@dataclass(frozen=True, eq=False)
class HeadMeans:
    """Mean outputs of all heads on clean prompts of one task, and the scale of their writes (see `HeadEffects`).

    Attributes:
        mean_z: `z̄`, means over clean prompts at their last token; NaN in layers without heads.
        write_scale: What multiplies `z @ W_O` on its way into the stream; NaN in layers where no such factor exists,
            and in layers without heads.
        mean_z_corrupted: Means over corrupted versions of the prompts; None where no contrast was asked for.
    """

    mean_z: Float[Tensor, "n_layers n_heads d_head"]
    write_scale: Float[Tensor, "n_layers d_model"]
    mean_z_corrupted: Float[Tensor, "n_layers n_heads d_head"] | None = None


def head_means(
    model: TransformerBridge,
    tokens: Tensor,
    attention_mask: Tensor,
    *,
    batch_size: int = 32,
    mixer: MixerKind = "attention",
) -> HeadMeans:
    """`mean_head_outputs` and `mean_write_scale` of the same prompts, read in the same passes.

    A layer without a write scale is NaN here and no error: effects of its heads are defined all the same.

    Raises:
        TypeError, ValueError: unusable tokens or mask, or a prompt longer than the model's context.
    """
    tokens, attention_mask = check_prompts(model, tokens, attention_mask)
    check_length(model, attention_mask)
    outputs, scales = _OutputMean(model, mixer), _ScaleMean(model, write_factors(model, tokens, attention_mask))
    for inputs in _passes(model, tokens, attention_mask, batch_size):
        with outputs.reading(), scales.reading():
            inputs.logits(model)
        outputs.add()
        scales.add()
    return HeadMeans(outputs.mean(), scales.mean())


@checked
def mean_head_outputs(
    model: TransformerBridge,
    tokens: Tensor,
    attention_mask: Tensor,
    *,
    batch_size: int = 32,
    mixer: MixerKind = "attention",
) -> Float[Tensor, "n_layers n_heads d_head"]:
    """Mean over prompts of every head's output before the output projection, `z̄_{l,h}`.

    Each output is read at the last real token of its prompt. Inside `steer` they are outputs of the steered model.

    Args:
        tokens: `[batch, pos]`, padded on either side.
        attention_mask: `[batch, pos]`, 1 for tokens.
        batch_size: prompts in each forward pass.
        mixer: `all`: also heads of recurrent mixers, as further heads of their layers (`ivlens.models.mixers`).

    Returns:
        float32 (float64 for a float64 model), on the model's device; NaN in layers without heads (hybrid models).

    Raises:
        TypeError, ValueError: unusable tokens or mask, or a prompt longer than the model's context.

    Source: arXiv 2310.15213, equation 2; docs/method.md, 4 Causal indirect effects.
    """
    tokens, attention_mask = check_prompts(model, tokens, attention_mask)
    outputs = _OutputMean(model, mixer)
    for inputs in _passes(model, tokens, attention_mask, batch_size):
        with outputs.reading():
            inputs.logits(model)
        outputs.add()
    return outputs.mean()


def mean_write_scale(
    model: TransformerBridge, tokens: Tensor, attention_mask: Tensor, *, batch_size: int = 32
) -> Float[Tensor, "n_layers d_model"]:
    """Mean over prompts of the factor between a head's `z @ W_O` and what it adds to the residual stream.

    The factor is 1 in most families. Gemma 2 and 3, OLMo 2 and GLM-4 pass the sum of all heads through an RMS norm
    first. For one prompt that norm is a fixed scale, its weight divided by the root mean square of the sum, so that
    attention adds `sum_h (z_h @ W_O) * scale`. Granite and Falcon-H1 multiply by a constant.

    Raises:
        TypeError, ValueError: as `mean_head_outputs`; or what attention adds is no such multiple of its projection.

    Source: docs/method.md, 5 The Instruction Vector (`w_l`).
    """
    tokens, attention_mask = check_prompts(model, tokens, attention_mask)
    check_length(model, attention_mask)
    found = write_factors(model, tokens, attention_mask)
    scales = _ScaleMean(model, found)
    if scales.is_constant:  # the same factor for every prompt: one pass over one prompt gives it
        tokens, attention_mask = tokens[:1], attention_mask[:1]
    for inputs in _passes(model, tokens, attention_mask, batch_size):
        with scales.reading():
            inputs.logits(model)
        scales.add()
    if scales.fault is not None:
        raise ValueError(f"{scales.fault}; what one head writes is not defined here: use another model.")
    return scales.mean()


class _OutputMean:
    """Sums the outputs of all heads at the last prompt token, pass by pass."""

    def __init__(self, model: TransformerBridge, mixer: MixerKind = "attention") -> None:
        self._model, self._n, self._mixers = model, 0, check_mixer(model, mixer)
        what = columns(model) if self._mixers else None
        n_heads, width = (model.cfg.n_heads, model.cfg.d_head) if what is None else (what.n, what.width)
        exists = existing(model)[:, :n_heads]
        self._layers = exists.any(1).nonzero()[:, 0].tolist()
        # float64, so that the batch size does not change the last digits of a mean
        self._total = torch.full((model.cfg.n_layers, n_heads, width), torch.nan, dtype=torch.float64)
        self._total[exists] = 0.0
        self._z: dict[int, Tensor] = {}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read the head outputs of the one pass in the body; `add` then puts them into the sum."""
        with captured_heads(self._model, select=_last, mixers=self._mixers) as self._z:
            yield

    def add(self) -> None:
        """Add the outputs of the latest pass to the sum."""
        self._total[self._layers] += torch.stack([self._z[layer].cpu().double().sum(0) for layer in self._layers])
        self._n += len(self._z[self._layers[0]])

    def mean(self) -> Float[Tensor, "n_layers n_heads d_head"]:
        """The mean over all prompts, on the model's device."""
        parameter = next(self._model.parameters())
        # first to another dtype, then to the device: some devices have no float64
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        return (self._total / self._n).to(dtype).to(parameter.device)


class _ScaleMean:
    """Sums the scales of heads' writes, pass by pass; where the scale is a constant, of the first prompt only."""

    def __init__(self, model: TransformerBridge, found: WriteFactors) -> None:
        self._model, self._n, self._factors = model, 0, found.factors
        self.fault = found.fault
        self._layers = list(attention_layers(model))
        self._weights = {layer: _norm_weight(model, layer) for layer in self._layers}
        # only an RMS norm after attention makes the scale depend on the prompt
        self.is_constant = all(weight is None for weight in self._weights.values())
        self._total = torch.full((model.cfg.n_layers, model.cfg.d_model), torch.nan, dtype=torch.float64)
        self._total[self._layers] = 0.0
        self._projected: dict[int, Tensor] = {}
        self._written: dict[int, Tensor] = {}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read, in the one pass of the body, the projection's output and what reaches the stream."""
        if self.is_constant and self._n:
            yield
            return
        select = _last_of_first if self.is_constant else _last
        with (
            captured_projection(self._model, select=select) as self._projected,
            captured_residual(self._model, self._layers, "attn_out", select=select) as self._written,
        ):
            yield

    def add(self) -> None:
        """Add the scales of the latest pass to the sum; NaN for a layer that has no scale."""
        if self.is_constant and self._n:
            return
        for layer in self._layers:
            projected, written = self._projected[layer].cpu().double(), self._written[layer].cpu().double()
            scale, off = _scale(projected, written, self._weights[layer])
            # `_scale` leads to what the hook shows, and `WriteFactors` from there to the stream
            self._total[layer] += scale.sum(0) * (torch.nan if off else self._factors[layer])
            if off and self.fault is None:
                self.fault = (
                    f"attention of layer {layer} adds something to the residual stream that is no fixed multiple of "
                    f"its output projection (off by {off:.3g})"
                )
        self._n += len(self._projected[self._layers[0]])

    def mean(self) -> Float[Tensor, "n_layers d_model"]:
        return (self._total / self._n).float().to(next(self._model.parameters()).device)


def _last(tensor: Tensor) -> Tensor:
    return tensor[:, -1]


def _last_of_first(tensor: Tensor) -> Tensor:
    return tensor[:1, -1]


def _passes(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], batch_size: int
) -> Iterator[Inputs]:
    """The prompts, `batch_size` of them at a time, while a bar counts the passes."""
    check_length(model, mask)
    for rows in ticking(list(row_slices(len(tokens), batch_size)), "mean head outputs", "pass"):
        yield Inputs(tokens[rows], mask[rows], last=tokens.shape[1] - 1, n_answer=1)


def _norm_weight(model: TransformerBridge, layer: int) -> Float[Tensor, " d_model"] | None:
    """Weight of the RMS norm between attention and the residual stream (Gemma 2 and 3, OLMo 2, GLM-4), or None."""
    norm = getattr(model.blocks[layer], "ln1_post", None)
    if norm is None:
        return None
    parameter = next(model.parameters())
    with model_lock(model), torch.no_grad():
        # read off the norm's output, since families store it differently (Gemma's is 1 + its parameter); a vector of
        # ones has a root mean square of 1, so the output is the weight itself
        ones = torch.ones(1, 1, model.cfg.d_model, dtype=parameter.dtype, device=parameter.device)
        return norm(ones)[0, 0].cpu().double()


def _scale(
    projected: Float[Tensor, "batch d_model"],
    written: Float[Tensor, "batch d_model"],
    weight: Float[Tensor, " d_model"] | None,
) -> tuple[Float[Tensor, "batch d_model"], float]:
    """The factor of each prompt between projection and write, and its largest error (0 where that is rounding)."""
    # least squares instead of a division: entries near 0, and the epsilon inside a norm, then do no harm
    basis = projected if weight is None else projected * weight
    factor = (written * basis).sum(-1, keepdim=True) / basis.square().sum(-1, keepdim=True).clamp_min(1e-30)
    off = float((basis * factor - written).abs().max())
    if weight is None and bool(((factor - 1).abs() < 1e-3).all()):
        factor = torch.ones_like(factor)  # both hooks show the same tensor, and the rest is rounding of the fit
    within = off <= 3e-2 * max(float(written.abs().max()), 1e-30)  # False for NaN
    return factor.expand_as(projected) if weight is None else factor * weight, 0.0 if within else off
