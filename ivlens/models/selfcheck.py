"""Checks that a wrapped model gives the same logits as before it was wrapped, with padding and with a cache."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ivlens.common.memory import pass_on_shortage
from ivlens.common.precision import FULL, rounding_share
from ivlens.models.opening import first_line, opened_by

_N_COLUMNS = 6  # tokens of each prompt, padding included
_N_PADDED = 2  # columns of padding in the second prompt, so that masks and positions matter


@dataclass(frozen=True)
class PlainLogits:
    """Logits of a Hugging Face model, before it is wrapped, for two prompts, the second padded on the left.

    Attributes:
        first: Logits at the columns where both prompts have real tokens, without the last column.
        last: Logits at the last column, computed with a cache of the others; None for a model without a cache.
    """

    first: Float[Tensor, "2 pos d_vocab"]
    last: Float[Tensor, "2 1 d_vocab"] | None


def plain_logits(hf_model: Any, label: str) -> PlainLogits:
    """The logits of a model that is not wrapped yet, called as transformers' generation does: with masks and positions.

    Raises:
        ValueError: transformers cannot run the model, or its logits are not finite.
    """
    tokens, mask = probe_prompts(hf_model)
    places = _positions(hf_model, mask)
    with torch.no_grad(), opened_by("transformers", f"model {label!r}", "expected one that runs; check its config"):
        first, cache = _first(hf_model, tokens[:, :-1], mask[:, :-1], _cut(places, slice(0, -1)))
    if not bool(torch.isfinite(first[0]).all()):  # [0]: in float64 some families give NaN at padding
        raise ValueError(f"model {label!r} gives logits that are not finite; load it with dtype='float32'.")
    last = None
    if cache is not None:
        with torch.no_grad():
            try:
                given = {"past_key_values": cache, "use_cache": True, **_cut(places, slice(-1, None))}
                last = hf_model(tokens[:, -1:], attention_mask=mask, **given).logits
            except Exception as error:  # transformers itself cannot use the cache, so that there is nothing to compare
                pass_on_shortage(error)
                last = None
    return PlainLogits(first, last)


def difference(model: Any, hf_model: Any, want: PlainLogits) -> str | None:
    """How the bridge's logits differ from those before wrapping, as a phrase; None if only by rounding.

    The bridge is called as everywhere in ivlens: with a mask, from which it makes the positions itself.

    Args:
        model: The bridge.
        hf_model: The model inside it.
        want: The logits before wrapping.
    """
    tokens, mask = probe_prompts(hf_model)
    n_kept = _N_COLUMNS - _N_PADDED
    with torch.no_grad():
        try:
            plain = model(tokens, attention_mask=mask, use_cache=False, logits_to_keep=n_kept)[:, -n_kept:-1]
            last = None if want.last is None else _stepped(model, tokens, mask)
        except Exception as error:  # any error in a pass of the bridge is a difference too
            pass_on_shortage(error)
            return f"fails ({type(error).__name__}: {first_line(error):.60})"
    for where, got, wanted in (("on padded prompts", plain, want.first), ("with a cache", last, want.last)):
        if got is not None and wanted is not None:
            error, within = off_by(got, wanted)
            if not error <= within:  # so that NaN fails
                return f"gives other logits {where}, off by {error:.3g} where rounding allows {within:.3g}"
    return None


def _first(hf_model: Any, tokens: Tensor, mask: Tensor, places: dict[str, Tensor]) -> tuple[Tensor, Any]:
    """Logits at the columns where both prompts have real tokens, and the cache or None."""
    try:
        out = hf_model(tokens, attention_mask=mask, use_cache=True, **places)
    except Exception as error:  # perhaps a family without a cache; any other fault is raised by the next line
        pass_on_shortage(error)
        out = hf_model(tokens, attention_mask=mask, use_cache=False, **places)
    return out.logits[:, _N_PADDED:], getattr(out, "past_key_values", None)


def _stepped(model: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """Logits of the bridge at the last column, computed with a cache of the others."""
    _, cache = model(tokens[:, :-1], attention_mask=mask[:, :-1], use_cache=True, return_type="logits_and_cache")
    return model(tokens[:, -1:], attention_mask=mask, past_key_values=cache)


def off_by(
    got: Float[Tensor, "rows pos d_vocab"],
    want: Float[Tensor, "rows pos d_vocab"],
    single: float = 1e-3,
    dtype: torch.dtype | None = None,
) -> tuple[float, float]:
    """The largest error of logits, and the largest that rounding explains (a share of the largest logit).

    Args:
        got: The logits to judge.
        want: The logits that they should equal.
        single: The share in float32.
        dtype: Dtype of the model; None: that of `want`.

    Returns:
        `(error, allowed)`; the error is NaN where the shapes differ.
    """
    if got.shape != want.shape:
        return float("nan"), 0.0
    whole = torch.isfinite(want).all(-1).all(-1)  # leaves out rows for which transformers itself gives NaN
    if not bool(whole.any()):
        return 0.0, 0.0
    got, want = got[whole], want[whole]
    errors = (got - want).abs().float().amax(-1)
    dtype = dtype or want.dtype
    # in half precision rounding alone can send a token to another expert, so that single tokens may be far off:
    # there the median of each row counts
    error = float(errors.max() if dtype in FULL else errors.median(-1).values.max())
    return error, rounding_share(dtype, single) * max(1.0, float(want.abs().max()))


def probe_prompts(hf_model: Any) -> tuple[Int[Tensor, "2 pos"], Int[Tensor, "2 pos"]]:
    """The two prompts of the check and their mask; padding is token 0, as everywhere in ivlens."""
    n_words = hf_model.get_input_embeddings().weight.shape[0]
    device = next(hf_model.parameters()).device
    tokens = (torch.arange(2 * _N_COLUMNS, device=device) * 7 % n_words).reshape(2, _N_COLUMNS)
    mask = torch.ones_like(tokens)
    mask[1, :_N_PADDED] = 0
    return tokens * mask, mask


def _positions(hf_model: nn.Module, mask: Tensor) -> dict[str, Tensor]:
    """Positions counted from the first real token, as an argument, for models to which the bridge gives them too."""
    from transformer_lens.utilities.position_ids import accepts_mask_derived_position_ids

    if "position_ids" not in inspect.signature(hf_model.forward).parameters:
        return {}
    if not accepts_mask_derived_position_ids(hf_model):
        return {}
    return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def _cut(places: dict[str, Tensor], columns: slice) -> dict[str, Tensor]:
    """The positions of some columns; empty for models that take none."""
    return {name: value[:, columns] for name, value in places.items()}
