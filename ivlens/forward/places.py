"""Places of hooks: a hook point of the bridge or a module of the plain model, and how heads' outputs are seen there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from ivlens.forward.firing import Edit, Select, replacing
from ivlens.models.boot import TransformerBridge
from ivlens.models.mixers import Columns, columns, mixer_of


@dataclass(frozen=True)
class Place:
    """Where a hook goes: to a hook point of the bridge, or to a module of the plain model.

    Attributes:
        name: The name of the hook point, and of the place in errors.
        module: The module; None for a hook point.
        what: What of the module: the `heads` in its input, its `output`, or the `weights` beside its output.
        n_heads: Number of heads in its input.
        wide: Where the heads' outputs are seen as columns of a layer (`ivlens.models.mixers`): what these are.
        first: The column of the first head.
    """

    name: str
    module: nn.Module | None = None
    what: str = "output"
    n_heads: int = 0
    wide: Columns | None = None
    first: int = 0

    def attach(self, hook: Callable[..., Tensor | None]) -> RemovableHandle:
        """Put the hook on a module; not for hook points."""
        assert self.module is not None
        if self.what == "heads":

            def before(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
                edited = hook(given[0].unflatten(-1, (self.n_heads, -1)), None)
                return None if edited is None else (edited.flatten(-2), *given[1:])

            return self.module.register_forward_pre_hook(before)
        if self.what == "weights":  # eager attention returns its weights beside its output

            def beside(module: nn.Module, given: object, out: Any) -> None:
                hook(out[1], None)

            return self.module.register_forward_hook(beside)
        return self.module.register_forward_hook(lambda module, given, out: hook(out, None))

    def widened(self, z: Float[Tensor, "*rows heads own"]) -> Float[Tensor, "*rows columns width"]:
        """Heads' outputs as columns of the layer; zeros where they are none."""
        if self.wide is None:
            return z
        behind = self.wide.n - self.first - z.shape[-2]
        return functional.pad(z, (0, self.wide.width - z.shape[-1], self.first, behind))

    def editing(self, edit: Edit) -> Edit:
        """The edit of heads' outputs, which sees and returns columns, as an edit of what the place shows."""
        if self.wide is None:
            return replacing(self.name, edit)

        def narrow(z: Tensor) -> Tensor:
            wide = replacing(self.name, edit)(self.widened(z))
            return wide[..., self.first : self.first + z.shape[-2], : z.shape[-1]]

        return narrow


def mixer_place(model: TransformerBridge, layer: int, what: str) -> Place | None:
    """The place of a mixer's heads, or of its projection's output; None in a layer without such a mixer."""
    mixer = mixer_of(model.blocks[layer])
    if mixer is None:
        return None
    wide = columns(model)
    return Place(f"the mixer of layer {layer}", mixer.projection, what, mixer.n_heads, wide, wide.n_attention)


def joining(
    found: dict[int, Tensor], places: Mapping[int, Sequence[Place]], select: Select | None
) -> dict[Place, Callable[[Tensor], None]]:
    """Hooks that store the columns of each layer under its number.

    Attention and a mixer in one layer come one after the other; each is zero in the columns of the other one, so that
    their sum has both. `select` has to pick entries, as it is applied to each of them.
    """
    parts: dict[int, dict[str, Tensor]] = {layer: {} for layer in places}

    def keep(place: Place, layer: int) -> Callable[[Tensor], None]:
        def hook(z: Tensor) -> None:
            wide = place.widened(z)
            parts[layer][place.name] = wide if select is None else select(wide)
            found[layer] = torch.stack([*parts[layer].values()]).sum(0)

        return hook

    return {place: keep(place, layer) for layer, own in places.items() for place in own}
