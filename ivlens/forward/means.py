"""What heads put out on average: at the last real token of each prompt, whatever side it is padded on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.common.arguments import checked
from ivlens.common.progress import ticking
from ivlens.forward.hooks import captured_heads, captured_projection, captured_residual, model_lock, post_attention_norm
from ivlens.forward.inputs import Inputs, check_length, check_prompts, row_slices
from ivlens.forward.writes import WriteFactors, write_factors
from ivlens.models.boot import TransformerBridge


@dataclass(frozen=True, eq=False)
class HeadMeans:
    """Mean outputs of all heads on clean prompts of one task, and the scale of their writes (see `HeadEffects`).

    `mean_z_corrupted`, the same over corrupted prompts, is there only where a contrast was asked for. `write_scale` is
    NaN in layers where what a head writes is not defined.
    """

    mean_z: Float[Tensor, "n_layers n_heads d_head"]
    write_scale: Float[Tensor, "n_layers d_model"]
    mean_z_corrupted: Float[Tensor, "n_layers n_heads d_head"] | None = None


def head_means(model: TransformerBridge, tokens: Tensor, attention_mask: Tensor, *, batch_size: int = 32) -> HeadMeans:
    """`mean_head_outputs` and `mean_write_scale` of the same prompts, read in the same passes.

    Raises:
        TypeError, ValueError: as these two.
    """
    tokens, attention_mask = check_prompts(model, tokens, attention_mask)
    check_length(model, attention_mask)
    outputs, scales = _OutputMean(model), _ScaleMean(model, write_factors(model, tokens, attention_mask))
    for inputs in _passes(model, tokens, attention_mask, batch_size):
        with outputs.reading(), scales.reading():
            inputs.logits(model)
        outputs.add()
        scales.add()
    return HeadMeans(outputs.mean(), scales.mean())


@checked
def mean_head_outputs(
    model: TransformerBridge, tokens: Tensor, attention_mask: Tensor, *, batch_size: int = 32
) -> Float[Tensor, "n_layers n_heads d_head"]:
    """Mean over prompts of every head's output before the output projection, `z̄_{l,h}`.

    Inside `steer` these are the outputs of the steered model.

    Args:
        tokens: `[batch, pos]`, padded on either side.
        attention_mask: `[batch, pos]`, 1 for tokens.
        batch_size: prompts in each forward pass.

    Returns:
        float32 (float64 for a float64 model), on the model's device.

    Raises:
        TypeError, ValueError: unusable tokens or mask, or a prompt longer than the model's context.

    Source: arXiv 2310.15213, equation 2; docs/method.md, section 4.
    """
    tokens, attention_mask = check_prompts(model, tokens, attention_mask)
    outputs = _OutputMean(model)
    for inputs in _passes(model, tokens, attention_mask, batch_size):
        with outputs.reading():
            inputs.logits(model)
        outputs.add()
    return outputs.mean()


def mean_write_scale(
    model: TransformerBridge, tokens: Tensor, attention_mask: Tensor, *, batch_size: int = 32
) -> Float[Tensor, "n_layers d_model"]:
    """Mean over prompts of the factor between a head's `z @ W_O` and what it adds to the residual stream.

    Ones in most families. Gemma 2 and 3, OLMo 2 and GLM-4 pass the sum of all heads through an RMS norm first, which
    for one prompt is a fixed scale: the norm's weight over the root mean square of that sum, so that
    `sum_h (z_h @ W_O) * scale` is what attention adds. Granite and Falcon-H1 multiply by a constant.

    Raises:
        TypeError, ValueError: as `mean_head_outputs`; or what attention adds is no such multiple of its projection.
    """
    tokens, attention_mask = check_prompts(model, tokens, attention_mask)
    check_length(model, attention_mask)
    found = write_factors(model, tokens, attention_mask)
    scales = _ScaleMean(model, found)
    if scales.is_constant:
        tokens, attention_mask = tokens[:1], attention_mask[:1]
    for inputs in _passes(model, tokens, attention_mask, batch_size):
        with scales.reading():
            inputs.logits(model)
        scales.add()
    if scales.fault is not None:
        raise ValueError(f"{scales.fault}; what one head writes is not defined here: use another model.")
    return scales.mean()


class _OutputMean:
    """Sums what heads put out at the last prompt token, pass by pass."""

    def __init__(self, model: TransformerBridge) -> None:
        self._model, self._n = model, 0
        self._total = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head, dtype=torch.float64)
        self._z: dict[int, Tensor] = {}

    @contextmanager
    def reading(self) -> Iterator[None]:
        with captured_heads(self._model, select=_last) as self._z:
            yield

    def add(self) -> None:
        found = torch.stack([self._z[layer].cpu().double().sum(0) for layer in range(len(self._total))])
        self._total += found
        self._n += len(self._z[0])

    def mean(self) -> Float[Tensor, "n_layers n_heads d_head"]:
        parameter = next(self._model.parameters())
        # the dtype first: some devices have no float64
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        return (self._total / self._n).to(dtype).to(parameter.device)


class _ScaleMean:
    """Sums the scales of heads' writes, pass by pass; only of the first prompt where the scale is a constant."""

    def __init__(self, model: TransformerBridge, found: WriteFactors) -> None:
        self._model, self._n, self._factors = model, 0, found.factors
        self.fault = found.fault
        self._layers = range(model.cfg.n_layers)
        self._weights = [_norm_weight(model, layer) for layer in self._layers]
        self.is_constant = all(weight is None for weight in self._weights)
        self._total = torch.zeros(model.cfg.n_layers, model.cfg.d_model, dtype=torch.float64)
        self._projected: dict[int, Tensor] = {}
        self._written: dict[int, Tensor] = {}

    @contextmanager
    def reading(self) -> Iterator[None]:
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
        if self.is_constant and self._n:
            return
        for layer in self._layers:
            projected, written = self._projected[layer].cpu().double(), self._written[layer].cpu().double()
            scale, off = _scale(projected, written, self._weights[layer])
            self._total[layer] += scale.sum(0) * (torch.nan if off else self._factors[layer])
            if off and self.fault is None:
                self.fault = (
                    f"attention of layer {layer} adds something to the residual stream that is no fixed multiple of "
                    f"its output projection (off by {off:.3g})"
                )
        self._n += len(self._projected[0])

    def mean(self) -> Float[Tensor, "n_layers d_model"]:
        return (self._total / self._n).float().to(next(self._model.parameters()).device)


def _last(tensor: Tensor) -> Tensor:
    return tensor[:, -1]


def _last_of_first(tensor: Tensor) -> Tensor:
    return tensor[:1, -1]


def _passes(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], batch_size: int
) -> Iterator[Inputs]:
    check_length(model, mask)
    for rows in ticking(list(row_slices(len(tokens), batch_size)), "mean head outputs", "pass"):
        yield Inputs(tokens[rows], mask[rows], last=tokens.shape[1] - 1, n_answer=1)


def _norm_weight(model: TransformerBridge, layer: int) -> Float[Tensor, " d_model"] | None:
    """Weight of the post-attention RMS norm, read off its output for a vector whose root mean square is 1."""
    norm = post_attention_norm(model, layer)
    if norm is None:
        return None
    parameter = next(model.parameters())
    with model_lock(model), torch.no_grad():
        ones = torch.ones(1, 1, model.cfg.d_model, dtype=parameter.dtype, device=parameter.device)
        return norm(ones)[0, 0].cpu().double()


def _scale(
    projected: Float[Tensor, "batch d_model"],
    written: Float[Tensor, "batch d_model"],
    weight: Float[Tensor, " d_model"] | None,
) -> tuple[Float[Tensor, "batch d_model"], float]:
    """The factor of each prompt, by least squares, so that neither a norm's epsilon nor a zero is in the way.

    And how far it is from what was written, 0 if that is rounding.
    """
    basis = projected if weight is None else projected * weight
    factor = (written * basis).sum(-1, keepdim=True) / basis.square().sum(-1, keepdim=True).clamp_min(1e-30)
    off = float((basis * factor - written).abs().max())
    if weight is None and bool(((factor - 1).abs() < 1e-3).all()):
        factor = torch.ones_like(factor)  # the same tensor: rounding only
    within = off <= 3e-2 * max(float(written.abs().max()), 1e-30)  # False for NaN
    return factor.expand_as(projected) if weight is None else factor * weight, 0.0 if within else off
