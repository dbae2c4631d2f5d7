"""Passes whose rows enter at blocks of their own: below its block a row costs nothing.

An edit in block `l` changes nothing below it, so its row enters there with the stream that the unedited pass has. Rows
with edits in different blocks share one pass: each block runs on the rows that have entered so far, and the next ones
join behind them. So the passes stay large, however few rows each block has of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.models.boot import TransformerBridge

# arguments whose first axis is that of positions or heads, and which are the same for all rows
_WITHOUT_ROWS = frozenset({"cache_position", "position_bias"})


def entered_by(n_layers: int, starts: Int[Tensor, " rows"]) -> list[int]:
    """How many rows have entered when each block runs; `starts` ascends."""
    return torch.searchsorted(starts.cpu(), torch.arange(n_layers), right=True).tolist()


def output_form(out: Tensor | tuple[Any, ...]) -> int:
    """The form of a block's output: 0 for a tensor, n for a tuple of n entries whose first one is the stream."""
    return len(out) if isinstance(out, tuple) else 0


@contextmanager
def blocks_joined(
    model: TransformerBridge, starts: Int[Tensor, " rows"], stream: Float[Tensor, "rows pos d_model"], form: int
) -> Iterator[None]:
    """In the body, each row of a pass enters at its own block.

    Args:
        starts: for each row the first block that runs on it, in ascending order; `n_layers`: none.
        stream: for each row the residual stream that enters that block.
        form: the form of a block's output, see `output_form`.
    """
    counts = entered_by(model.cfg.n_layers, starts)
    with ExitStack() as stack:
        for layer, n in enumerate(counts):
            before, is_last = (counts[layer - 1] if layer else 0), layer == model.cfg.n_layers - 1
            behind = stream[n:] if is_last else stream[:0]  # rows that no block runs on
            if before == len(starts) and not len(behind):
                break  # all rows are in, and blocks run as they are
            block = model.blocks[layer]
            # through `__dict__`: the bridge's own setattr would hand the name on to the module that it wraps
            block.__dict__["forward"] = _Entry(block.forward, stream[before:n], behind, before, len(starts), form)
            stack.callback(block.__dict__.pop, "forward")
        yield


@dataclass(frozen=True, eq=False)
class _Entry:
    """The forward of a block in which rows enter.

    Attributes:
        forward: The block's own.
        entering: The stream of the rows that enter here.
        behind: The stream of rows that join behind the block.
        n_before: Rows that have entered before.
        n_rows: Rows of the whole pass.
        form: The form of the block's output.
    """

    forward: Callable[..., Any]
    entering: Float[Tensor, "entering pos d_model"]
    behind: Float[Tensor, "behind pos d_model"]
    n_before: int
    n_rows: int
    form: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(kwargs) if "hidden_states" in kwargs else {"hidden_states": args[0], **kwargs}
        args = args if "hidden_states" in kwargs else args[1:]
        n = self.n_before + len(self.entering)
        if not n:
            return self._formed(self.behind)
        entered = given.pop("hidden_states")[: self.n_before]
        stream = torch.cat([entered, self.entering.to(entered.device)]) if len(self.entering) else entered
        given = {name: value if name in _WITHOUT_ROWS else self._first(value, n) for name, value in given.items()}
        out = self.forward(stream, *(self._first(value, n) for value in args), **given)
        first = out[0] if isinstance(out, tuple) else out
        return self._formed(torch.cat([first, self.behind.to(first.device)]) if len(self.behind) else first)

    def _formed(self, stream: Tensor) -> Any:
        """The stream as the block would return it."""
        return (stream, *[None] * (self.form - 1)) if self.form else stream

    def _first(self, value: Any, n: int) -> Any:
        """The first `n` rows of an argument that has a row for each row of the pass."""
        if isinstance(value, tuple | list):
            return type(value)(self._first(part, n) for part in value)
        if isinstance(value, Tensor) and value.ndim > 1 and len(value) == self.n_rows:
            return value[:n]
        return value


@contextmanager
def forms_seen(model: TransformerBridge) -> Iterator[list[int]]:
    """In the body, each pass adds the `output_form` of the model's blocks to the list that is given."""
    forms: list[int] = []
    watch = model.blocks[0].register_forward_hook(lambda block, given, out: forms.append(output_form(out)))
    try:
        yield forms
    finally:
        watch.remove()


@contextmanager
def blocks_left_out(model: TransformerBridge, start: int, stream: Tensor | None, form: int) -> Iterator[None]:
    """In the body, blocks below `start` do not run: each returns `stream`, in the `output_form` of this model."""
    blocks = [model.blocks[layer] for layer in range(start)]
    out = (stream, *[None] * (form - 1)) if form else stream
    try:
        for block in blocks:
            # through `__dict__`: the bridge's own setattr would hand the name on to the module that it wraps
            block.__dict__["forward"] = lambda *args, **kwargs: out
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
