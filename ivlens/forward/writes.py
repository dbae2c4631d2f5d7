"""What attention really adds to the residual stream, measured by running each block with its heads and without them.

What a hook shows may still be multiplied, normed or mixed on its way into the stream. So every block is run a second
time on the same input with all head outputs at 0. The norms before and after its MLP repeat their outputs of the first
run, so that the MLP does not react to the change. The difference of the block's two outputs is what the heads added.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ivlens.common.memory import pass_on_shortage
from ivlens.forward.hooked import is_hooked
from ivlens.forward.hooks import (
    Edit,
    added,
    captured_heads,
    captured_mixers,
    captured_projection,
    captured_residual,
    check_site,
    model_lock,
    output_projection,
    patched_heads,
)
from ivlens.models.attention import attention_layers, without_heads
from ivlens.models.boot import TransformerBridge
from ivlens.models.mixers import column_matrices, columns
from ivlens.models.opening import first_line
from ivlens.models.selfcheck import probe_prompts

_HELD = ("ln2", "ln2_post")  # the norms before and after the MLP; the norm after attention is part of a head's write
_SHARE = 2e-2  # error allowed in half precision, as a share of the largest write: sums round there
_ROUNDINGS = 8  # further error allowed, in ulp of the stream's numbers: a write is the difference of two large streams


@dataclass(frozen=True)
class WriteFactors:
    """For each layer the factor between what the `attn_out` hook shows and what the residual stream receives.

    Attributes:
        factors: 1 in nearly all families; NaN in layers where no single number fits, and in layers without attention.
        fault: What is wrong in the first layer with attention that has no factor; None where all of them have one.
    """

    factors: Float[Tensor, " n_layers"]
    fault: str | None = None


# factors depend on the architecture, not on weights or prompts, so they are measured once for each model and dtype
_FOUND: WeakKeyDictionary[TransformerBridge, dict[tuple[torch.dtype, bool], WriteFactors]] = WeakKeyDictionary()


def write_factors(
    model: TransformerBridge,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"],
    *,
    mixers: bool = False,
) -> WriteFactors:
    """The factors of all layers, measured on the first two of these left-padded prompts or remembered.

    With `mixers` they are those of recurrent mixers, from the output of the mixer's projection to the stream.

    A user's hooks on the model may change what attention adds, so with them the factors are measured every time.
    Vectors that ivlens adds are in both runs of a block, and drop out of the difference.
    """
    found = {} if is_hooked(model, by_ivlens=False) else _FOUND.setdefault(model, {})
    kind = next(model.parameters()).dtype, mixers
    if kind in found:
        return found[kind]
    with model_lock(model), torch.no_grad():
        measured = _measured(model, tokens[:2], attention_mask[:2], mixers)
    # a fault that was found under hooks of ivlens, such as an overflowing vector, may be gone without them
    if measured.fault is None or not is_hooked(model):
        found[kind] = measured
    return measured


def attention_factor(model: TransformerBridge, layer: int) -> float:
    """The factor of one layer, measured on two short made-up prompts if it is not known yet.

    Raises:
        ValueError: the layer has no attention or no factor, so nothing can be added in the place of attention.
    """
    if layer not in attention_layers(model):
        raise ValueError(f"{without_heads(model, layer)} Site 'resid_post' is in every layer.")
    found = write_factors(model, *probe_prompts(model.original_model))
    factor = float(found.factors[layer])
    if factor != factor:
        raise ValueError(f"{found.fault}; so site 'attn_out' is not defined in this model: use 'resid_post'.")
    return factor


def mixer_factors(model: TransformerBridge) -> Float[Tensor, " n_layers"]:
    """The factors of recurrent mixers, measured on two short made-up prompts; NaN in layers without such a mixer.

    Raises:
        ValueError: a mixer's output is not multiplied by one number on its way into the stream.
    """
    found = write_factors(model, *probe_prompts(model.original_model), mixers=True)
    if found.fault is not None:
        raise ValueError(f"{found.fault}; what one head writes is not defined here: use mixer='attention'.")
    return found.factors


@contextmanager
def added_to_stream(model: TransformerBridge, layer: int, site: str, edit: Edit) -> Iterator[None]:
    """Run the body with `edit` at a site, so that the stream receives exactly what `edit` adds (see `added`).

    Where a layer multiplies what its hook shows, the change is divided by that factor first.

    Args:
        model, layer, site: As for `added`.
        edit: An edit that adds something that does not depend on its argument.

    Raises:
        ValueError, RuntimeError: as `added`; or what attention adds is no fixed multiple of what its hook shows.
    """
    factor = attention_factor(model, layer) if check_site(site) == "attn_out" else 1.0

    def scaled(shown: Tensor) -> Tensor:
        return shown + (edit(shown) - shown) / factor

    with added(model, layer, site, edit if factor == 1.0 else scaled):
        yield


def _measured(model: TransformerBridge, tokens: Tensor, mask: Tensor, mixers: bool) -> WriteFactors:
    """The factors of all layers, from one pass in which every block runs a second time, right after its own run."""
    factors = torch.full((model.cfg.n_layers,), torch.nan, dtype=torch.float64)
    faults: dict[int, str] = {}
    eps = torch.finfo(next(model.parameters()).dtype).eps
    layers = columns(model).layers if mixers else attention_layers(model)
    first = columns(model).n_attention if mixers else 0  # of the heads in question, in their layer

    def nothing(z: Tensor, layer: int) -> Tensor:
        return torch.cat([z[..., :first, :], torch.zeros_like(z[..., first:, :])], -2)

    with ExitStack() as stack:
        z = stack.enter_context(captured_heads(model, layers, mixers=mixers))
        projected = stack.enter_context(captured_mixers(model) if mixers else captured_projection(model))
        # mixers have no norm behind their projection that a hook would show
        written = projected if mixers else stack.enter_context(captured_residual(model, layers, "attn_out"))
        norms = [stack.enter_context(_held(block)) for block in model.blocks]

        def after(layer: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            """Hook of a block that has just run: run it again with all head outputs at 0, and find its factor."""
            # taken now: the second run goes through the same hooks, and fills these dicts anew
            clean, heads = (z[layer], projected[layer], written[layer], _stream(out)), z[layer][..., first:, :]
            norms[layer].is_held = True
            try:
                with patched_heads(model, nothing, [layer], mixers=mixers):
                    # `forward`, not a call: a call would run this hook again
                    bare = _stream(block.forward(*args, **kwargs))
            except Exception as error:  # families refuse a second run with errors of any kind
                pass_on_shortage(error)
                faults[layer] = f"it cannot be run alone ({type(error).__name__}: {first_line(error):.60})"
                return
            finally:
                norms[layer].is_held = False
            real = mask == 1
            weight = column_matrices(model, layer)[first:] if mixers else output_projection(model, layer)
            sums = torch.einsum("bphd,hdm->bpm", heads.float(), weight.float().to(heads.device))
            # minus what the second run gave: a bias is in both runs, and belongs to no head
            parts = (sums, clean[1] - projected[layer], clean[2] - written[layer], clean[3] - bare, clean[3])
            of_heads, of_projection, of_hook, of_block, stream = (part[real].double().cpu() for part in parts)
            # first that the projection is linear in the heads, then that the stream receives a multiple of it
            if not _close(of_projection, of_heads, of_projection.abs() + clean[1][real].double().cpu().abs(), eps):
                faults[layer] = "its output projection is not the product of heads and W_O"
                return
            factor = _factor(of_block, of_hook, stream.abs() + of_hook.abs(), eps)
            if factor is None:
                faults[layer] = "what it adds to the stream is no fixed multiple of its projection"
            else:
                factors[layer] = factor

        for layer in layers:
            handle = model.blocks[layer].register_forward_hook(partial(after, layer), with_kwargs=True)
            stack.callback(handle.remove)
        model(tokens, attention_mask=mask, use_cache=False, logits_to_keep=1)
    worst, what = min(faults, default=None), "the mixer" if mixers else "attention"
    return WriteFactors(factors, None if worst is None else f"{what} of layer {worst}: {faults[worst]}")


def _factor(added: Tensor, shown: Tensor, size: Tensor, eps: float) -> float | None:
    """The number that multiplies `shown` to give `added`, up to rounding; None if there is none, or it is 0."""
    if _close(added, shown, size, eps):
        return 1.0
    # least squares, each entry weighted by the error that rounding may have made in it
    weight = 1 / (_SHARE * shown.abs().max() + _ROUNDINGS * eps * size).square()
    factor = float((weight * added * shown).sum() / (weight * shown.square()).sum().clamp_min(1e-30))
    if abs(factor) < 1e-4 or not _close(added, factor * shown, size, eps):
        return None
    return factor


def _close(got: Tensor, want: Tensor, size: Tensor, eps: float) -> bool:
    """Whether two tensors are equal up to rounding. They are differences of numbers as large as `size`."""
    share = 1e-3 if eps < 1e-6 else _SHARE
    return bool(((got - want).abs() <= share * want.abs().max() + _ROUNDINGS * eps * size).all())


def _stream(out: Any) -> Tensor:
    """The residual stream in a block's output, which may be a tuple that begins with it."""
    return out[0] if isinstance(out, tuple | list) else out


class _Norms:
    """A hook of norms that keeps their outputs of a first run and, while `is_held`, gives them out again."""

    def __init__(self) -> None:
        self.is_held = False
        self.given: dict[nn.Module, Tensor] = {}

    def __call__(self, norm: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        if self.is_held:
            return self.given.get(norm)
        self.given[norm] = out
        return None


@contextmanager
def _held(block: nn.Module) -> Iterator[_Norms]:
    """Hook the norms around a block's MLP, as many of them as the family has."""
    norms = _Norms()
    handles = [getattr(block, name).register_forward_hook(norms) for name in _HELD if hasattr(block, name)]
    try:
        yield norms
    finally:
        for handle in handles:
            handle.remove()
