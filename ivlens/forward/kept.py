"""What one layer of a cache holds, kept so that it can be put back for any rows before each pass.

Passes change a cache: keys and values get longer, and the states of recurrent layers are overwritten in place. So the
tensors of the prompts are kept apart, and every pass begins from copies of them, as many as it has rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

# Kinds of cache layers that hold nothing but keys, values and their length, and those with states; each name, since
# some are of newer versions. Exact types count: a subclass may hold more.
_STATEFUL = ("LinearAttentionLayer", "LinearAttentionAndFullAttentionLayer")
_STATES = ("conv_states", "recurrent_states")
_RESTORED = (DynamicLayer, DynamicSlidingWindowLayer) + tuple(
    getattr(cache_utils, name) for name in (*_STATEFUL, "DummyLayer") if hasattr(cache_utils, name)
)


def cache_fault(cache: Any) -> str | None:
    """What a cache holds that cannot be put back, in words; None where everything can."""
    if cache is None:
        return "it keeps no cache of keys and values"
    unknown = [type(cache)] * (type(cache) is not DynamicCache)
    unknown += [type(layer) for layer in getattr(cache, "layers", ()) if type(layer) not in _RESTORED]
    return f"its cache holds more than keys, values and states ({unknown[0].__name__})" if unknown else None


def is_recurrent(layer: Any) -> bool:
    """Whether a layer of a cache holds states, which have no axis of positions."""
    return all(hasattr(layer, name) for name in _STATES)


@dataclass(frozen=True, eq=False)
class KeptLayer:
    """The tensors of one layer of a cache.

    Attributes:
        keys, values: Of attention; None in layers without.
        length: Number of tokens so far, where the layer counts it.
        states: States of convolutions and recurrences by the names of their dictionaries, and their numbers in these.
    """

    keys: Tensor | None
    values: Tensor | None
    length: Any
    states: Mapping[tuple[str, int], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, layer: Any) -> "KeptLayer":
        """What this layer holds now. Later passes must not run on it before `put_back`, as they change states."""
        found = {
            (name, number): state
            for name in _STATES
            for number, state in getattr(layer, name, {}).items()
            if state is not None  # short convolutions have no recurrent state
        }
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        return cls(keys, values, getattr(layer, "cumulative_length", None), found)

    @property
    def floats(self) -> int:
        """Numbers that one row holds."""
        tensors = [self.keys, self.values, *self.states.values()]
        return sum(tensor[0].numel() for tensor in tensors if tensor is not None)

    def put_back(self, layer: Any, rows: Int[Tensor, " rows"]) -> None:
        """Let the layer hold copies of these rows; of none, where its block is left out of the next pass."""
        if self.keys is not None and self.values is not None:
            keys, values = self.keys, self.values
            if len(rows):  # of a block that is left out only the length of its keys is asked for
                # `index_select` takes a third of the time of brackets
                keys, values = (each.index_select(0, rows.to(each.device)) for each in (keys, values))
            layer.keys, layer.values = keys, values
        if self.length is not None:
            layer.cumulative_length = self.length
        for (name, number), state in self.states.items():
            # always a copy: the pass overwrites it
            getattr(layer, name)[number] = state.index_select(0, rows.to(state.device))
