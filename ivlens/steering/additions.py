"""Vectors that are added each at its own layer and site, for the rows of one pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ivlens.forward.writes import added_to_stream
from ivlens.models.boot import TransformerBridge
from ivlens.steering.edits import Where, addition
from ivlens.steering.summary import Setting


@dataclass(frozen=True, eq=False)
class Additions:
    """Vectors, already multiplied by their strengths, each of which is added at its own layer and site.

    Attributes:
        layers: The layer of each.
        is_post: Whether it is added to the output of the whole block (`resid_post`), or to that of attention.
    """

    deltas: Float[Tensor, "n d_model"]
    layers: Int[Tensor, " n"]
    is_post: Bool[Tensor, " n"]

    @classmethod
    def of(cls, settings: Sequence[Setting], thetas: Float[Tensor, "n d_model"]) -> "Additions":
        layers, alphas, sites = zip(*settings, strict=True)
        is_post = torch.tensor([site == "resid_post" for site in sites])
        return cls(thetas * torch.tensor(alphas)[:, None], torch.tensor(layers), is_post)

    @classmethod
    def at_one_place(cls, deltas: Float[Tensor, "n d_model"], layer: int, site: str) -> "Additions":
        n = len(deltas)
        return cls(deltas, torch.full((n,), layer), torch.full((n,), site == "resid_post"))

    def chosen(self, indices: Int[Tensor, " some"]) -> "Additions":
        return Additions(self.deltas[indices], self.layers[indices], self.is_post[indices])

    @property
    def starts(self) -> Int[Tensor, " n"]:
        """The lowest block that sees the change, or makes it."""
        return self.layers + self.is_post

    def after_blocks(
        self, streams: Float[Tensor, "n positions d_model"], where: Where
    ) -> Float[Tensor, "n positions d_model"]:
        """The streams with those vectors in them that are added to outputs of blocks."""
        rows = self.is_post.nonzero()[:, 0]
        if len(rows):  # the output of a block itself: edited here, without a hook
            streams[rows] = addition(self.deltas[rows], lambda: where()[rows])(streams[rows])
        return streams

    @contextmanager
    def in_passes(self, model: TransformerBridge, where: Where, which: Bool[Tensor, " n"]) -> Iterator[None]:
        """In the body, passes over one row for each vector have these of them added, by hooks."""
        with ExitStack() as stack:
            for layer, post in sorted(set(zip(self.layers[which].tolist(), self.is_post[which].tolist(), strict=True))):
                rows = (which & (self.layers == layer) & (self.is_post == post)).nonzero()[:, 0]
                site = "resid_post" if post else "attn_out"
                stack.enter_context(added_to_stream(model, layer, site, self._edit(rows, where)))
            yield

    def _edit(self, rows: Int[Tensor, " rows"], where: Where) -> Callable[[Tensor], Tensor]:
        own = addition(self.deltas[rows], lambda: where()[rows])

        def edit(resid: Tensor) -> Tensor:
            if len(rows) == len(resid):
                return own(resid)
            edited = resid.clone()  # rows that entered at other blocks stay as they are
            edited[rows] = own(resid[rows])
            return edited

        return edit
