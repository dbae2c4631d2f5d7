"""The patches of the exact engine: in each new copy the head that the copy stands for, at the last prompt token."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ivlens.effects.request import EffectRequest
from ivlens.forward.hooks import patched_heads
from ivlens.models.boot import TransformerBridge


@dataclass(frozen=True)
class Patches:
    """Contexts in which a block patches copies, in the two forms that copies have in a pass.

    Attributes:
        model, request: What is measured.
        n_answer: Tokens of each copy; the first one is the last prompt token.
    """

    model: TransformerBridge
    request: EffectRequest
    n_answer: int

    def of_positions(
        self, layer: int, places: Int[Tensor, " heads"], heads: tuple[int, ...]
    ) -> AbstractContextManager[None]:
        """The patch where copies stand side by side in one sequence; `places` are those of the new ones."""

        def edit(z: Tensor, layer: int) -> Tensor:
            # positions back to copies x tokens
            z = z.unflatten(1, (-1, self.n_answer)).clone()
            where = (slice(None), places, 0, torch.tensor(heads))
            z[where] = self._patched(z[where], layer, list(heads))
            return z.flatten(1, 2)

        return patched_heads(self.model, edit, [layer], mixers=self.request.is_wide)

    def of_rows(
        self, layer: int, places: Int[Tensor, " heads"], heads: tuple[int, ...], part: slice
    ) -> AbstractContextManager[None]:
        """The patch where copies are rows of one token each, prompt by prompt, some of all copies at a time.

        Args:
            part: The copies in the pass.
        """
        n_copies = part.stop - part.start
        own = [(place - part.start, head) for place, head in zip(places.tolist(), heads, strict=True)]
        own = [(place, head) for place, head in own if 0 <= place < n_copies]
        if not own:
            return nullcontext()
        where, chosen = (list(each) for each in zip(*own, strict=True))

        def edit(z: Tensor, layer: int) -> Tensor:
            z = z.unflatten(0, (-1, n_copies)).clone()
            at = (slice(None), torch.tensor(where), 0, torch.tensor(chosen))
            z[at] = self._patched(z[at], layer, chosen)
            return z.flatten(0, 1)

        return patched_heads(self.model, edit, [layer], mixers=self.request.is_wide)

    def _patched(self, z: Tensor, layer: int, heads: list[int]) -> Tensor:
        return self.request.patched(z, self.request.mean_z[layer, heads].to(z.device))
