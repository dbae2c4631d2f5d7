"""What hooks do: keep or replace an activation, and record that a pass reached them, from one thread alone."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from ivlens.common.owned import OwnedLock, Runner
from ivlens.forward.hooked import is_recomputing

Select = Callable[[Tensor], Tensor]
Edit = Callable[[Tensor], Tensor]

_SECOND_THREAD = (
    "a second thread ran the model while it was hooked, and hooks belong to the model, not to a thread: what the first "
    "thread got may be mixed up; hold ivlens.forward.hooks.model_lock(model) around each forward."
)


class Firing:
    """Records which hooks of one context a forward pass has reached, and from which thread."""

    def __init__(self, names: Iterable[str], lock: OwnedLock) -> None:
        self.silent = set(names)
        self.runner = Runner(lock, _SECOND_THREAD)

    def watched(self, name: str, hook: Callable[[Tensor], Tensor | None]) -> Callable[..., Tensor | None]:
        """A hook that does the same, and records that it was reached."""

        # TransformerLens passes its hook point as `hook`, so our own function comes in as a default value
        def call(tensor: Tensor, hook: object, fn: Callable[[Tensor], Tensor | None] = hook) -> Tensor | None:
            if not is_recomputing():  # autograd may recompute in a thread of its own, which is no second user
                self.runner.take()
            self.silent.discard(name)
            return fn(tensor)

        return call

    def after_pass(self, *_: Any) -> None:
        """Hook of the wrapped model, called whether the pass ended well or not."""
        self.runner.done()

    def check(self) -> None:
        """Refuse a context in which a hook never ran: it edited nothing, and the numbers would be silently wrong."""
        if self.silent:
            raise RuntimeError(
                f"no forward pass reached {', '.join(sorted(self.silent))}: nothing was read or edited there; "
                "run the model, to its last hooked layer, inside the `with` block."
            )


def keeping(kept: dict[int, Tensor], layer: int, select: Select | None) -> Callable[[Tensor], None]:
    """A hook that stores the activation, or what `select` takes of it, under the layer's number."""

    def hook(tensor: Tensor) -> None:  # a hook that returns None leaves the activation as it is
        kept[layer] = tensor if select is None else select(tensor)

    return hook


def replacing(name: str, edit: Edit) -> Callable[[Tensor], Tensor]:
    """A hook that puts what `edit` returns in the activation's place, if it has the same shape."""

    def hook(tensor: Tensor) -> Tensor:  # what a hook returns takes the activation's place
        edited = edit(tensor)
        if not isinstance(edited, Tensor) or edited.shape != tensor.shape:
            got = tuple(edited.shape) if isinstance(edited, Tensor) else type(edited).__name__
            raise ValueError(f"the edit at {name} returned {got}, expected a tensor of shape {tuple(tensor.shape)}.")
        return edited

    return hook
