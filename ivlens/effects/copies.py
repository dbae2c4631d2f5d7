"""What a block is called with when copies of the last tokens go through it instead of the prompt.

The copies of one prompt stand side by side in one sequence, each with `answer_len` tokens, and share the prompt:

    keys      p0 p1 p2 p3 | a0 a1 | b0 b1 | c0 c1
    copy a    x  x  x  x  | x     |       |
              x  x  x  x  | x  x  |       |
    copy b    x  x  x  x  |       | x     |
              x  x  x  x  |       | x  x  |

All that a block gets (mask, positions, rotary tables) is cut out of what the model itself made for the prompt, so
windows, padding and biases in it are the model's own.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import DynamicCache

from ivlens.effects.request import Unsuitable


class PromptKeys(DynamicCache):
    """Stands where a block expects its cache: keeps one block's keys and values, then hands their prefix to copies.

    Args:
        n_shared: tokens that the copies share: all of the prompt but its last one.
    """

    def __init__(self, n_shared: int) -> None:
        super().__init__()
        self._handing_on = False
        self._n_shared = n_shared
        self._kept: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self._handing_on:
            self._kept = key_states, value_states
            return self._kept
        if self._kept is None:
            raise Unsuitable("its attention did not show its keys and values")
        keys, values = (kept[..., : self._n_shared, :] for kept in self._kept)
        return torch.cat([keys, key_states], -2), torch.cat([values, value_states], -2)

    @contextmanager
    def handed_on(self) -> Iterator[None]:
        """Inside, blocks run on copies."""
        self._handing_on = True
        try:
            yield
        finally:
            self._handing_on = False


class BlockArguments:
    """Turns the arguments of a block's call on whole prompts into those of a call on their copies.

    Args:
        n_shared: tokens before the last prompt token.
        n_answer: tokens of each copy.
    """

    def __init__(self, n_shared: int, n_answer: int, n_copies: int, device: torch.device) -> None:
        self._n_shared, self._n_answer = n_shared, n_answer
        self._queries = torch.arange(n_shared, n_shared + n_answer, device=device).repeat(n_copies)
        self._keys = torch.cat([torch.arange(n_shared, device=device), self._queries])
        self._masks: dict[int, tuple[Tensor, Tensor]] = {}

    def for_copies(self, given: Mapping[str, Any], n_copies: int) -> dict[str, Any]:
        """Every argument but the hidden states.

        Raises:
            Unsuitable: an argument that is not known here.
        """
        n_positions = n_copies * self._n_answer
        return {name: self._adapted(name, value, n_positions) for name, value in given.items()}

    def _adapted(self, name: str, value: Any, n_positions: int) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(self._adapted(name, part, n_positions) for part in value)
        if not isinstance(value, Tensor):
            return value
        if name == "attention_mask":
            return self._mask(value)[..., :n_positions, : self._n_shared + n_positions]
        if name not in _INDEXED:
            raise Unsuitable(f"its blocks take {name!r}, which copies have no version of")
        queries, keys = self._queries[:n_positions], self._keys[: self._n_shared + n_positions]
        return _INDEXED[name](value, queries.to(value.device), keys.to(value.device))

    def _mask(self, mask: Tensor) -> Tensor:
        """The mask of all copies, of which the first ones are a corner. Made once for each kind of layer."""
        if id(mask) not in self._masks:  # the mask is kept beside it, so that no other can get its id
            self._masks[id(mask)] = mask, self._wide_mask(mask)
        return self._masks[id(mask)][1]

    def _wide_mask(self, mask: Tensor) -> Tensor:
        n_columns = self._n_shared + self._n_answer
        if mask.ndim != 4 or mask.shape[-2:] != (n_columns, n_columns):
            raise Unsuitable(f"its blocks take a mask of shape {tuple(mask.shape)}, not [batch, 1, pos, pos]")
        queries, keys = self._queries.to(mask.device), self._keys.to(mask.device)
        wide = mask[..., queries, :][..., keys]
        own = torch.arange(len(queries), device=mask.device) // self._n_answer
        # of a mask of truth values some models hide what is true and some what is false: a token sees itself
        itself = mask[0, 0, self._n_shared, self._n_shared]  # of the last prompt token, which is never padding
        hidden = not bool(itself) if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        wide[..., self._n_shared :].masked_fill_(own[:, None] != own, hidden)
        return wide


def _of_queries(value: Tensor, queries: Int[Tensor, " queries"], keys: Int[Tensor, " keys"]) -> Tensor:
    return value[:, queries]


def _of_keys(value: Tensor, queries: Int[Tensor, " queries"], keys: Int[Tensor, " keys"]) -> Tensor:
    return value[..., keys]


def _of_last_keys(value: Tensor, queries: Int[Tensor, " queries"], keys: Int[Tensor, " keys"]) -> Tensor:
    n_columns = int(queries[-1]) + 1
    return value[..., value.shape[-1] - n_columns :][..., keys]


# MPT's table reaches to the longest context, and attention takes its end
_INDEXED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "position_ids": _of_queries,
    "position_embeddings": _of_queries,
    "alibi": _of_keys,
    "position_bias": _of_last_keys,
}


def named_arguments(block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a block's call by the names that its class gives them."""
    original = getattr(block, "original_component", block)
    names = list(inspect.signature(type(original).forward).parameters)[1:]
    return dict(zip(names, args, strict=False)) | dict(kwargs)
