"""Copies in blocks with a recurrence: each takes its steps from the state of the prompt before its last token.

A recurrence has no keys that copies could share as positions of one sequence: it has a state that every token
overwrites. So such a block runs once more on the prompt without its last token, which
gives the state (and the keys and values of attention beside it, in Falcon-H1). The copies then are rows, each with its
own copy of the state, and take one step for every answer token. Nothing is shared that a step could change.

Source: docs/method.md, 4 Causal indirect effects.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from ivlens.effects.request import Unsuitable
from ivlens.forward.inputs import row_slices
from ivlens.forward.kept import KeptLayer, cache_fault, is_recurrent
from ivlens.models.boot import TransformerBridge

# arguments with one entry for each position of the prompt, at the second axis
_BY_POSITION = {"position_ids", "position_embeddings"}

# a context for the patch of some copies at their first step; the slice says which copies, counted in the sequence
PatchOf = Callable[[slice], AbstractContextManager[None]]


class Recurrences:
    """The blocks of one pass that hold a state, and what runs copies through them.

    Args:
        n_shared: Tokens before the last prompt token.
        max_floats: Numbers that the states of all rows of one step may hold.
    """

    def __init__(self, model: TransformerBridge, n_shared: int, max_floats: int) -> None:
        self._model, self._n_shared, self._max_floats = model, n_shared, max_floats
        self._config: Any = getattr(model.original_model, "config", None) if has_recurrence(model) else None
        layers = () if self._config is None else self._fresh().layers
        self._layers = {number for number, layer in enumerate(layers) if is_recurrent(layer)}
        self._latest: tuple[int, DynamicCache, KeptLayer] | None = None

    def __contains__(self, layer: int) -> bool:
        return layer in self._layers

    @property
    def config(self) -> Any:
        """What a cache of this model is made from; None for models whose blocks hold no state."""
        return self._config

    def _fresh(self) -> DynamicCache:
        return DynamicCache(config=self._config)

    def advance(
        self,
        layer: int,
        block: nn.Module,
        entered: Float[Tensor, "batch pos d_model"],
        given: Mapping[str, Any],
        stream: Float[Tensor, "batch copies answer_len d_model"],
        patch_of: PatchOf | None,
    ) -> Float[Tensor, "batch copies answer_len d_model"]:
        """The stream of the copies behind the block.

        Args:
            entered: The stream that entered the block on the prompts.
            given: The other arguments of that call.
            stream: The copies as they enter.
            patch_of: The patch, in force at the first step of each copy; None where this block is not patched.
        """
        cache, kept = self._after_prefix(layer, block, entered, given)
        batch, n_copies = stream.shape[:2]
        n_at_once = max(1, self._max_floats // max(1, batch * (kept.floats + entered.shape[-1])))
        return torch.cat(
            [
                self._steps(block, (cache, kept), layer, given, stream[:, part], patch_of and patch_of(part))
                for part in row_slices(n_copies, n_at_once)
            ],
            1,
        )

    def _after_prefix(
        self, layer: int, block: nn.Module, entered: Float[Tensor, "batch pos d_model"], given: Mapping[str, Any]
    ) -> tuple[DynamicCache, KeptLayer]:
        """A cache for this block, and what it holds after the prompts without their last token."""
        if self._latest is None or self._latest[0] != layer:  # several sequences of copies meet the same block
            cache = self._fresh()
            if self._n_shared:
                arguments = _cut(given, cache, slice(0, self._n_shared))
                block.forward(entered[:, : self._n_shared], **arguments)
            if (fault := cache_fault(cache)) is not None:
                raise Unsuitable(fault)
            self._latest = layer, cache, KeptLayer.of(cache.layers[layer])
        return self._latest[1:]

    def _steps(
        self,
        block: nn.Module,
        state: tuple[DynamicCache, KeptLayer],
        layer: int,
        given: Mapping[str, Any],
        stream: Float[Tensor, "batch copies answer_len d_model"],
        patch: AbstractContextManager[None] | None,
    ) -> Float[Tensor, "batch copies answer_len d_model"]:
        """The stream of some copies behind the block: one step for each of their tokens."""
        (cache, kept), (batch, n_copies, n_answer) = state, stream.shape[:3]
        if self._n_shared:
            kept.put_back(cache.layers[layer], torch.arange(batch).repeat_interleave(n_copies))
        else:
            cache = self._fresh()  # a prompt of one token has nothing before it
        rows, found = stream.flatten(0, 1), []
        for step in range(n_answer):
            column = self._n_shared + step
            arguments = _cut(given, cache, slice(column, column + 1), n_copies)
            # `forward`, not a call of the block: a call would run the engine's hook again
            with nullcontext() if patch is None or step else patch:
                out = block.forward(rows[:, step : step + 1], **arguments)
            found.append(out[0] if isinstance(out, tuple) else out)
        return torch.cat(found, 1).unflatten(0, (batch, n_copies))


def has_recurrence(model: TransformerBridge) -> bool:
    """Whether a cache of this model has layers with states."""
    kinds = getattr(getattr(model.original_model, "config", None), "layer_types", None) or ()
    return any(kind in _WITH_STATE for kind in kinds)


_WITH_STATE = ("linear_attention", "conv", "hybrid", "hybrid_sliding")  # transformers' names of layers with states


def _cut(given: Mapping[str, Any], cache: DynamicCache, columns: slice, n_copies: int = 0) -> dict[str, Any]:
    """The arguments of a block's call on some columns of the prompts.

    Args:
        n_copies: Copies of each prompt, where the call is one of their steps; 0: it is that on the prompts.

    Raises:
        Unsuitable: an argument with a tensor whose axes are not known here.
    """
    return {name: _adapted(name, value, cache, columns, n_copies) for name, value in given.items()}


def _adapted(name: str, value: Any, cache: DynamicCache, columns: slice, n_copies: int) -> Any:
    if isinstance(value, DynamicCache):
        return cache
    if isinstance(value, tuple | list):
        return type(value)(_adapted(name, part, cache, columns, n_copies) for part in value)
    if not isinstance(value, Tensor):
        return value
    if name.endswith("attention_mask") and value.ndim == 2:
        # the mask of a recurrence covers padding, and the last prompt token and what follows it are none
        return None if n_copies else value[:, columns]
    if name.endswith("attention_mask") and value.ndim == 4:
        value = value[..., columns, : columns.stop]
    elif name in _BY_POSITION:
        value = value[:, columns]
    else:  # a guess at its axes could be wrong without an error
        raise Unsuitable(f"its blocks take {name!r}, which copies have no version of")
    return value.repeat_interleave(n_copies, 0) if n_copies > 1 and len(value) > 1 else value
