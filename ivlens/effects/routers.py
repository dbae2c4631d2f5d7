"""Mixtures of experts in half precision: rounding may send a token to other experts than it would go to otherwise."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from jaxtyping import Int
from torch import Tensor, nn

from ivlens.models.boot import TransformerBridge


class RouterWatch:
    """Compares where an unpatched copy and the token itself were sent.

    Attributes:
        flips: router decisions (token x layer) that differ.
        decisions: how many were compared; 0 for models without routers and in float32, where nothing is watched.
    """

    def __init__(self, model: TransformerBridge) -> None:
        self.flips = self.decisions = 0
        self._latest: dict[nn.Module, Tensor] = {}
        half = next(model.parameters()).element_size() < 4
        blocks = {block: [module for module in block.modules() if _is_router(module)] for block in model.blocks}
        self._routers = {block: routers for block, routers in blocks.items() if routers and half}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Watch every pass inside."""
        with ExitStack() as stack:
            for routers in self._routers.values():
                for router in routers:
                    stack.callback(router.register_forward_hook(self._note).remove)
            yield

    def _note(self, router: nn.Module, given: object, out: object) -> None:
        chosen = [part for part in (out if isinstance(out, tuple) else (out,)) if isinstance(part, Tensor)]
        experts = next((part for part in chosen if not part.is_floating_point()), None)
        if experts is not None:
            self._latest[router] = experts

    def seen(self, block: nn.Module) -> dict[nn.Module, Tensor]:
        """The latest decisions of this block's routers, `[tokens, n_chosen]` each."""
        return {router: self._latest[router] for router in self._routers.get(block, ()) if router in self._latest}

    def compare(
        self, before: dict[nn.Module, Tensor], after: dict[nn.Module, Tensor], batch: int, n_answer: int
    ) -> None:
        """Count where the last `n_answer` tokens of each prompt and of the last copy in its sequence part ways."""
        for router, plain in before.items():
            differ = (_last(plain, batch, n_answer) != _last(after[router], batch, n_answer)).any(-1)
            self.flips += int(differ.sum())
            self.decisions += differ.numel()


def _last(experts: Int[Tensor, "tokens n_chosen"], batch: int, n: int) -> Int[Tensor, "batch n n_chosen"]:
    return experts.reshape(batch, -1, experts.shape[-1])[:, -n:].sort(-1).values


def _is_router(module: nn.Module) -> bool:
    # by the name of its class, which is all that families have in common; what the bridge wraps it in is another module
    return "Router" in type(module).__name__ and not hasattr(module, "original_component")
