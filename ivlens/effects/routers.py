"""Counts how often rounding sends an unpatched copy to other experts than its token, in mixtures of experts.

In half precision the scores of two experts may be so close that rounding decides. That is no fault of the engine, but
effects are less exact then, so the result records how often it happened.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from jaxtyping import Int
from torch import Tensor, nn

from ivlens.models.boot import TransformerBridge


class RouterWatch:
    """Compares the experts chosen for an unpatched copy with those chosen for the token itself.

    Attributes:
        flips: Router decisions (token x layer) that differ.
        decisions: Router decisions that were compared; 0 for models without routers or in float32, which are not
            watched.
    """

    def __init__(self, model: TransformerBridge) -> None:
        self.flips = self.decisions = 0
        self._latest: dict[nn.Module, Tensor] = {}
        half = next(model.parameters()).element_size() < 4
        blocks = {block: [module for module in block.modules() if _is_router(module)] for block in model.blocks}
        self._routers = {block: routers for block, routers in blocks.items() if routers and half}

    @property
    def is_watching(self) -> bool:
        """Whether the model has routers that are compared."""
        return bool(self._routers)

    @contextmanager
    def open(self) -> Iterator[None]:
        """In the body, note the decisions of all routers."""
        with ExitStack() as stack:
            for routers in self._routers.values():
                for router in routers:
                    stack.callback(router.register_forward_hook(self._note).remove)
            yield

    def _note(self, router: nn.Module, given: object, out: object) -> None:
        """Hook of a router: keep the experts it chose."""
        parts = [part for part in (out if isinstance(out, tuple) else (out,)) if isinstance(part, Tensor)]
        # families return logits, weights and experts in different orders; the numbers of experts alone are integers
        experts = next((part for part in parts if not part.is_floating_point()), None)
        if experts is not None:
            self._latest[router] = experts

    def seen(self, block: nn.Module) -> dict[nn.Module, Tensor]:
        """The latest decisions of this block's routers, `[tokens, n_chosen]` each."""
        return {router: self._latest[router] for router in self._routers.get(block, ()) if router in self._latest}

    def compare(
        self, before: dict[nn.Module, Tensor], after: dict[nn.Module, Tensor], batch: int, n_answer: int
    ) -> None:
        """Count differences between the last `n_answer` tokens of each prompt and of its last copy, the witness."""
        for router, plain in before.items():
            differ = (_last(plain, batch, n_answer) != _last(after[router], batch, n_answer)).any(-1)
            self.flips += int(differ.sum())
            self.decisions += differ.numel()


def _last(experts: Int[Tensor, "tokens n_chosen"], batch: int, n: int) -> Int[Tensor, "batch n n_chosen"]:
    """The experts of the last `n` tokens of each row, sorted: in which order they were chosen does not matter."""
    return experts.reshape(batch, -1, experts.shape[-1])[:, -n:].sort(-1).values


def _is_router(module: nn.Module) -> bool:
    # by the name of the class, which is all that families have in common; the bridge's wrapper has such a name too
    return "Router" in type(module).__name__ and not hasattr(module, "original_component")
