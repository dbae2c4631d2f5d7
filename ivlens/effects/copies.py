"""The arguments of a block's call on copies of the last tokens, made from those of its call on the prompt.

The copies of one prompt stand side by side in one sequence, each with `answer_len` tokens, and share the prompt:

    keys      p0 p1 p2 p3 | a0 a1 | b0 b1 | c0 c1
    copy a    x  x  x  x  | x     |       |
              x  x  x  x  | x  x  |       |
    copy b    x  x  x  x  |       | x     |
              x  x  x  x  |       | x  x  |

Mask, positions and rotary tables are cut out of those that the model made for the prompt itself, so that windows,
padding and biases in them are the model's own. Every copy has the positions of the tokens that it is a copy of.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from ivlens.effects.request import Unsuitable


@dataclass
class Copies:
    """The copies of every prompt's last token for some of the heads, in one sequence, from the lowest layer upward.

    Attributes:
        heads: The heads, the same ones in every layer.
        witness: Whether one more copy, never patched, stands behind the others.
        stream: The residual stream of the copies as it leaves the latest block; None before the first asked layer.
    """

    heads: tuple[int, ...]
    witness: bool
    stream: Float[Tensor, "batch copies answer_len d_model"] | None = None

    @property
    def n_patched(self) -> int:
        """Number of copies without the witness."""
        return 0 if self.stream is None else self.stream.shape[1] - self.witness

    def join(self, token: Float[Tensor, "batch answer_len d_model"]) -> Int[Tensor, " heads"]:
        """Add a copy of `token` for every head, not patched yet, and return the places of the new copies."""
        first = self.n_patched
        new = token[:, None].expand(-1, len(self.heads), -1, -1)
        if self.stream is not None:
            # in front of the witness, which has to stay last
            self.stream = torch.cat([self.stream[:, :first], new, self.stream[:, first:]], 1)
        else:
            self.stream = torch.cat([new, token[:, None]], 1) if self.witness else new
        return torch.arange(first, first + len(self.heads))


class PromptKeys(DynamicCache):
    """A cache of one block at a time: keeps its keys and values of the prompts, then gives their prefix to the copies.

    Attention calls `update` with new keys and values and attends to what it gets back. That is where the copies get
    the prompt's keys, whatever else an attention does before (rotary embeddings, norms of keys).

    Args:
        n_shared: tokens that the copies share: all of the prompt but its last one.
        is_split: copies get their own keys alone, and their attention reads the shared ones from `shared`.
        config: that of a model with recurrent blocks, whose states on the prompts have a place here as well.
    """

    def __init__(self, n_shared: int, is_split: bool, config: Any = None) -> None:
        super().__init__(config=config)
        self._is_split = is_split
        self._handing_on = False  # False: the block runs on prompts; True: on copies
        self._n_shared = n_shared
        self._kept: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The keys and values that attention reads: for prompts their own, for copies the shared ones and their own."""
        if not self._handing_on:
            # only the latest block's: blocks run in order, and each meets its copies before the next one runs
            self._kept = key_states, value_states
            return self._kept
        if self._is_split:
            return key_states, value_states
        keys, values = self.shared
        return torch.cat([keys, key_states], -2), torch.cat([values, value_states], -2)

    @property
    def shared(self) -> tuple[Tensor, Tensor]:
        """The keys and values before the last prompt token, of the block that ran last."""
        if self._kept is None:
            raise Unsuitable("its attention did not show its keys and values")
        keys, values = self._kept
        return keys[..., : self._n_shared, :], values[..., : self._n_shared, :]

    @contextmanager
    def handed_on(self) -> Iterator[None]:
        """In the body, blocks run on copies."""
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
        n_copies: the largest number of copies in a sequence.
        device: where indices are made.
        is_split: the mask is that of a single copy, which sees the shared tokens and its own.
    """

    def __init__(
        self, n_shared: int, n_answer: int, n_copies: int, device: torch.device, *, is_split: bool = False
    ) -> None:
        self._n_shared, self._n_answer, self._is_split = n_shared, n_answer, is_split
        # for each position of the copies, and for each key they attend to, the column of the prompt that it repeats
        self._queries = torch.arange(n_shared, n_shared + n_answer, device=device).repeat(n_copies)
        self._keys = torch.cat([torch.arange(n_shared, device=device), self._queries])
        # by identity of the model's mask, as layers with the same kind of attention get the same tensor
        self._masks: dict[int, tuple[Tensor, Tensor]] = {}

    def for_copies(self, given: Mapping[str, Any], n_copies: int) -> dict[str, Any]:
        """The arguments of a call on this many copies, without the hidden states.

        Raises:
            Unsuitable: an argument with a tensor whose axes are not known here.
        """
        n_positions = n_copies * self._n_answer
        return {name: self._adapted(name, value, n_positions) for name, value in given.items()}

    def _adapted(self, name: str, value: Any, n_positions: int) -> Any:
        """One argument for a sequence of `n_positions`; values that hold no tensors stay as they are."""
        if isinstance(value, tuple | list):
            return type(value)(self._adapted(name, part, n_positions) for part in value)
        if not isinstance(value, Tensor):
            return value
        if name == "attention_mask" and self._is_split:
            return value[..., self._n_shared :, :]
        if name == "attention_mask":
            return self._mask(value)[..., :n_positions, : self._n_shared + n_positions]
        if name not in INDEXED:  # a guess at its axes could be wrong without an error
            raise Unsuitable(f"its blocks take {name!r}, which copies have no version of")
        queries, keys = self._queries[:n_positions], self._keys[: self._n_shared + n_positions]
        return INDEXED[name](value, queries.to(value.device), keys.to(value.device))

    def _mask(self, mask: Tensor) -> Tensor:
        """The mask of as many copies as there can be; fewer copies need its upper left corner."""
        if id(mask) not in self._masks:  # the model's mask is kept too, so that no later tensor can get its id
            self._masks[id(mask)] = mask, self._wide_mask(mask)
        return self._masks[id(mask)][1]

    def _wide_mask(self, mask: Tensor) -> Tensor:
        """The prompt's mask, repeated for every copy, in which copies do not see each other (see the picture above)."""
        n_columns = self._n_shared + self._n_answer
        if mask.ndim != 4 or mask.shape[-2:] != (n_columns, n_columns):
            raise Unsuitable(f"its blocks take a mask of shape {tuple(mask.shape)}, not [batch, 1, pos, pos]")
        queries, keys = self._queries.to(mask.device), self._keys.to(mask.device)
        wide = mask[..., queries, :][..., keys]
        own = torch.arange(len(queries), device=mask.device) // self._n_answer
        # in masks of truth values True means "hidden" for some models and "seen" for others; the last prompt token is
        # never padding and sees itself, so its own entry tells which
        itself = mask[0, 0, self._n_shared, self._n_shared]
        hidden = not bool(itself) if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        wide[..., self._n_shared :].masked_fill_(own[:, None] != own, hidden)
        return wide


def of_queries(value: Tensor, queries: Int[Tensor, " queries"], keys: Int[Tensor, " keys"]) -> Tensor:
    """The copies' part of a tensor with one entry for each query position."""
    return value[:, queries]


def _of_keys(value: Tensor, queries: Int[Tensor, " queries"], keys: Int[Tensor, " keys"]) -> Tensor:
    """The copies' part of a tensor with the keys as its last axis."""
    return value[..., keys]


def _of_last_keys(value: Tensor, queries: Int[Tensor, " queries"], keys: Int[Tensor, " keys"]) -> Tensor:
    """The copies' part of a tensor whose last axis is longer than the prompt; attention reads its last columns."""
    n_columns = int(queries[-1]) + 1
    return value[..., value.shape[-1] - n_columns :][..., keys]


# how each known argument is cut out; `position_bias` is MPT's table, as long as the longest context
INDEXED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "position_ids": of_queries,
    "position_embeddings": of_queries,
    "alibi": _of_keys,
    "position_bias": _of_last_keys,
}


def named_arguments(block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a block's call by the names that its class gives them."""
    original = getattr(block, "original_component", block)
    names = list(inspect.signature(type(original).forward).parameters)[1:]
    return dict(zip(names, args, strict=False)) | dict(kwargs)
