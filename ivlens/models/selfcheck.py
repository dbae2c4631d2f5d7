"""Whether a wrapped model is the same model: the same calls before and after wrapping, and what they gave."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ivlens.common.memory import pass_on_shortage
from ivlens.common.precision import FULL, rounding_share
from ivlens.models.opening import first_line, opened_by

_N_COLUMNS = 6
_N_PADDED = 2  # columns of padding in the second row, so that masks, positions and caches are all at work


@dataclass(frozen=True)
class PlainLogits:
    """What the Hugging Face model says, before it is wrapped, to two prompts of unequal length, padded on the left.

    Attributes:
        first: At the columns that are real in both prompts, without the last.
        last: At the last column, after a cache of the others; None where the model keeps no cache.
    """

    first: Float[Tensor, "2 pos d_vocab"]
    last: Float[Tensor, "2 1 d_vocab"] | None


def plain_logits(hf_model: Any, label: str) -> PlainLogits:
    """Ask the model as transformers' own generation would: with masks, and with positions where it takes them.

    Raises:
        ValueError: transformers cannot run it, or its logits are not finite.
    """
    tokens, mask = probe_prompts(hf_model)
    places = _positions(hf_model, mask)
    with torch.no_grad(), opened_by("transformers", f"model {label!r}", "expected one that runs; check its config"):
        first, cache = _first(hf_model, tokens[:, :-1], mask[:, :-1], _cut(places, slice(0, -1)))
    if not bool(torch.isfinite(first[0]).all()):  # of padded prompts some families make NaN themselves, in float64
        raise ValueError(f"model {label!r} gives logits that are not finite; load it with dtype='float32'.")
    last = None
    if cache is not None:
        with torch.no_grad():
            try:
                given = {"past_key_values": cache, "use_cache": True, **_cut(places, slice(-1, None))}
                last = hf_model(tokens[:, -1:], attention_mask=mask, **given).logits
            except Exception as error:  # what transformers itself cannot do with a cache, nothing has to equal
                pass_on_shortage(error)
                last = None
    return PlainLogits(first, last)


def difference(model: Any, hf_model: Any, want: PlainLogits) -> str | None:
    """What the bridge does otherwise than the model did before it was wrapped; None: nothing, up to rounding.

    The bridge is called as ivlens calls it everywhere: with a mask, and with positions of its own making.
    """
    tokens, mask = probe_prompts(hf_model)
    n_kept = _N_COLUMNS - _N_PADDED
    with torch.no_grad():
        try:
            plain = model(tokens, attention_mask=mask, use_cache=False, logits_to_keep=n_kept)[:, -n_kept:-1]
            last = None if want.last is None else _stepped(model, tokens, mask)
        except Exception as error:  # whatever the wrapped model stumbles over
            pass_on_shortage(error)
            return f"fails ({type(error).__name__}: {first_line(error):.60})"
    for where, got, wanted in (("on padded prompts", plain, want.first), ("with a cache", last, want.last)):
        if got is not None and wanted is not None:
            error, within = off_by(got, wanted)
            if not error <= within:  # so that NaN fails
                return f"gives other logits {where}, off by {error:.3g} where rounding allows {within:.3g}"
    return None


def _first(hf_model: Any, tokens: Tensor, mask: Tensor, places: dict[str, Tensor]) -> tuple[Tensor, Any]:
    """Logits at the columns that are real in both prompts, and the cache, if the model gives one."""
    try:
        out = hf_model(tokens, attention_mask=mask, use_cache=True, **places)
    except Exception as error:  # a family without a cache; if it is something else, the next line says so
        pass_on_shortage(error)
        out = hf_model(tokens, attention_mask=mask, use_cache=False, **places)
    return out.logits[:, _N_PADDED:], getattr(out, "past_key_values", None)


def _stepped(model: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    _, cache = model(tokens[:, :-1], attention_mask=mask[:, :-1], use_cache=True, return_type="logits_and_cache")
    return model(tokens[:, -1:], attention_mask=mask, past_key_values=cache)


def off_by(
    got: Float[Tensor, "rows pos d_vocab"],
    want: Float[Tensor, "rows pos d_vocab"],
    single: float = 1e-3,
    dtype: torch.dtype | None = None,
) -> tuple[float, float]:
    """How far logits are off, and the most that may be rounding: a share (`single` in float32) of the largest.

    `dtype` is that of the model, where its logits have another.
    """
    if got.shape != want.shape:
        return float("nan"), 0.0
    whole = torch.isfinite(want).all(-1).all(-1)  # rows of which transformers itself makes no NaN
    if not bool(whole.any()):
        return 0.0, 0.0
    got, want = got[whole], want[whole]
    errors = (got - want).abs().float().amax(-1)
    dtype = dtype or want.dtype
    # in half precision rounding alone may route one token to another expert: the median of each row then
    error = float(errors.max() if dtype in FULL else errors.median(-1).values.max())
    return error, rounding_share(dtype, single) * max(1.0, float(want.abs().max()))


def probe_prompts(hf_model: Any) -> tuple[Int[Tensor, "2 pos"], Int[Tensor, "2 pos"]]:
    """Two prompts and their mask; padding is token 0, as everywhere in ivlens."""
    n_words = hf_model.get_input_embeddings().weight.shape[0]
    device = next(hf_model.parameters()).device
    tokens = (torch.arange(2 * _N_COLUMNS, device=device) * 7 % n_words).reshape(2, _N_COLUMNS)
    mask = torch.ones_like(tokens)
    mask[1, :_N_PADDED] = 0
    return tokens * mask, mask


def _positions(hf_model: nn.Module, mask: Tensor) -> dict[str, Tensor]:
    """Positions counted from the first real token, for models to which the bridge gives them as well."""
    from transformer_lens.utilities.position_ids import accepts_mask_derived_position_ids

    if "position_ids" not in inspect.signature(hf_model.forward).parameters:
        return {}
    if not accepts_mask_derived_position_ids(hf_model):
        return {}
    return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def _cut(places: dict[str, Tensor], columns: slice) -> dict[str, Tensor]:
    return {name: value[:, columns] for name, value in places.items()}
