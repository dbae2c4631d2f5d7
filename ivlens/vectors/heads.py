"""Choosing the heads of a vector, and computing what they write into the residual stream."""

import logging
from collections.abc import Sequence
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.effects.results import HeadEffects
from ivlens.forward.hooks import output_projection, whole_numbers
from ivlens.forward.writes import mixer_factors
from ivlens.models.attention import attention_layers
from ivlens.models.boot import TransformerBridge
from ivlens.models.fingerprint import model_identity
from ivlens.models.mixers import column_matrices, columns

Heads = tuple[tuple[int, int], ...]

logger = logging.getLogger(__name__)
# effects for which `choose_heads` has given its warning: one warning each is enough
_warned: WeakSet[HeadEffects] = WeakSet()


def head_writes(
    model: TransformerBridge,
    values: Float[Tensor, "n_layers n_heads d_head"],
    write_scale: Float[Tensor, "n_layers d_model"],
) -> Float[Tensor, "n_layers n_heads d_model"]:
    """What each head adds to the residual stream: `(values W_O) · write_scale`, without the bias, in float32.

    See docs/method.md, 5 The Instruction Vector. Layers without heads are NaN.

    Raises:
        ValueError: `write_scale` is NaN in a layer with heads, which marks models where a write is not defined.
    """
    layers = attention_layers(model)
    if undefined := [layer for layer in layers if bool(write_scale[layer].isnan().any())]:
        layer = undefined[0]
        raise ValueError(
            f"what a head of layer {layer} writes is not defined in {model.cfg.architecture}: attention adds no fixed "
            "multiple of its projection to the stream; use another model for vectors."
        )
    rows = torch.full((*values.shape[:2], model.cfg.d_model), torch.nan)
    n_heads = model.cfg.n_heads
    wide = values.shape[1] > n_heads
    scale = write_scale[:, None].float().cpu().expand(-1, values.shape[1], -1)
    if wide:  # heads of recurrent mixers, whose scale is a number
        layers = sorted({*layers, *columns(model).layers})
        own = mixer_factors(model)[:, None, None].float().expand(-1, values.shape[1] - n_heads, scale.shape[-1])
        scale = torch.cat([scale[:, :n_heads], own], 1)
    for layer in layers:  # one layer at a time, so that a large model is not copied to float32
        weight = (column_matrices(model, layer) if wide else output_projection(model, layer)).float()
        rows[layer] = torch.einsum("hd,hdm->hm", values[layer].to(weight.device, weight.dtype), weight).cpu()
    return rows * scale


def checked_model(effects: HeadEffects, model: TransformerBridge | None) -> TransformerBridge:
    """The bridge on which these effects were measured: `model`, or else the one that is still in memory.

    Raises:
        ValueError: there is none, or it is not the model of the effects.
    """
    live = model if model is not None else effects.live_model
    if live is None:
        raise ValueError(
            f"the effects of {effects.task!r} are not tied to a model in memory (loaded from a file, or it was "
            "deleted); pass the one they were measured on: from_effects(effects, k, model=model)."
        )
    found = model_identity(live)
    other = found.differs(effects.model)
    if other:
        raise ValueError(
            f"model {found.name!r} has {other}, expected {effects.model.name!r} (weights "
            f"{effects.model.weights_hash:.12}), on which the effects of {effects.task!r} were measured; "
            "measure them again."
        )
    return live


def choosing(effects: HeadEffects, universal: Sequence[HeadEffects] | None) -> list[HeadEffects]:
    """The effects by which heads are chosen: those of `universal` where given, otherwise the task's own.

    Raises:
        TypeError: `universal` is no sequence.
        ValueError: effects of other weights, seeds, scores or modes than the task's.
    """
    if universal is not None and not isinstance(universal, Sequence):
        raise TypeError(
            f"universal is {universal!r:.40}, expected the effects of several tasks to average over: "
            "universal=[effects of one task, of another, ...]."
        )
    pool = list(universal) if universal else [effects]
    for other in pool:
        if other.model.differs(effects.model):
            raise ValueError(
                f"universal contains effects of {other.task!r} measured on "
                f"{other.model.differs(effects.model)} ({other.model.name!r}), expected {effects.model.name!r} "
                "throughout; measure them on one model."
            )
        # other seeds split differently: inputs that choose heads here would be test inputs there
        for name in ("seed", "score", "mode", "mixer"):
            ours, theirs = (at.recipe.seed if name == "seed" else at.settings.get(name) for at in (effects, other))
            if ours != theirs:
                raise ValueError(
                    f"universal contains effects of {other.task!r} with {name} {theirs!r}, expected {ours!r} as for "
                    f"{effects.task!r}: an average needs one score, and the splits one seed; measure them alike."
                )
    return pool


def choose_heads(pool: Sequence[HeadEffects], k: int) -> Heads:
    """The `k` heads of largest effect, averaged over the effects in `pool`; the largest comes first.

    Effects whose corruption takes little away are used as well, with one warning in the log.

    Raises:
        ValueError: `k` is not between 1 and the number of measured heads.
    """
    aie = torch.stack([other.aie for other in pool]).mean(0)
    measured = int(aie.isfinite().sum())
    if not 1 <= k <= measured:
        raise ValueError(f"k is {k}, expected 1 to {measured}, the number of heads with a measured effect.")
    for other in pool:
        if other.taken_warning and other not in _warned:
            _warned.add(other)
            logger.warning("%s: heads are chosen by effects that say little of it (%s).", other.task, other.taken)
    # heads that were not measured are NaN and go last; a stable sort makes ties give the same heads on every machine
    order = aie.nan_to_num(nan=float("-inf")).flatten().argsort(descending=True, stable=True)[:k].tolist()
    return tuple(divmod(index, aie.shape[1]) for index in order)


def named_heads(effects: HeadEffects, heads: Sequence[tuple[int, int]], *, alone: bool) -> Heads:
    """The heads that the caller named, checked, in the order given.

    Args:
        effects: effects of the model whose heads are named.
        heads: pairs `(layer, head)`.
        alone: whether this is the only way of choosing heads that the caller gave.

    Raises:
        TypeError: an entry is no pair of whole numbers.
        ValueError: no heads, the same head twice, a head that the model does not have, a layer without heads, or not
            `alone`.
    """
    if not alone:
        raise ValueError("from_effects got heads and universal, which are two ways to choose heads; leave one out.")
    if any(not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2 for pair in heads):
        raise TypeError(f"heads are {list(heads)!r:.80}, expected pairs (layer, head) such as (0, 7).")
    layers, numbers = (whole_numbers("heads", part) for part in zip(*heads, strict=True)) if heads else ((), ())
    pairs = tuple(zip(layers, numbers, strict=True))
    n_layers, n_heads = effects.cie.shape[1:]
    off = [pair for pair in pairs if not (0 <= pair[0] < n_layers and 0 <= pair[1] < n_heads)]
    if off or not pairs or len(set(pairs)) < len(pairs):
        what = f"{off[0]} among them" if off else "one of them twice" if pairs else "none of them"
        raise ValueError(
            f"heads are {list(pairs)!r:.80} with {what}, expected one or more different (layer, head) of "
            f"{n_layers} layers and {n_heads} heads, counted from 0."
        )
    for layer, head in pairs:
        if bool(effects.mean_z[layer, head].isnan().all()):
            kind = "attention heads" if head < effects.model.n_heads else "mixer with heads"
            raise ValueError(f"heads are {list(pairs)!r:.80}, but layer {layer} has no {kind}; choose others.")
    return pairs


def chosen_means(effects: HeadEffects, heads: Heads) -> Float[Tensor, "k d_head"]:
    """The mean outputs of these heads, as wide as attention's where no head of a recurrent mixer is among them."""
    layers, numbers = (list(part) for part in zip(*heads, strict=True))
    means = effects.mean_z[layers, numbers].detach().float().cpu()
    return means[:, : effects.model.d_head] if max(numbers) < effects.model.n_heads else means
