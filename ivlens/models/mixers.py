"""Heads of mixers that are not attention: where they are, and how they are numbered beside attention's.

Mamba-2, gated delta nets and their kin run a recurrence in each of several heads, whose outputs meet at an output
projection as attention's do. Where these are measured too, every layer has *columns*: first attention's heads, then the
mixer's. Head 7 of the mixer in layer 3 is `L3M7`, column `n_heads + 7`. A layer lacks the columns of what it does not
have. Outputs have one width, the wider one of both kinds; the narrower kind ends in zeros.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ivlens.models.attention import attention_layers
from ivlens.models.projection import adapted_weight, head_matrices, is_plain

MixerKind = Literal["attention", "all"]


@dataclass(frozen=True, eq=False)
class Mixer:
    """A mixer with heads, as modules of the plain model.

    Attributes:
        projection: Its output projection, whose input is the outputs of all heads side by side.
        n_heads, d_head: Number of heads, and the width of the output of one.
    """

    projection: nn.Module
    n_heads: int
    d_head: int


@dataclass(frozen=True)
class Columns:
    """What the columns of a model's layers are.

    Attributes:
        n_attention: Attention's heads, the first columns.
        n_mixer: The mixers' heads, behind them; 0 for models without such mixers.
        width: Width of an output: that of the wider kind.
        layers: The layers with a mixer that has heads.
        fault: Why the mixers' heads are left out; empty where they are not, or where there are none.
    """

    n_attention: int
    n_mixer: int
    width: int
    layers: tuple[int, ...]
    fault: str = ""

    @property
    def n(self) -> int:
        """Columns of a layer."""
        return self.n_attention + self.n_mixer


_COLUMNS: WeakKeyDictionary[Any, Columns] = WeakKeyDictionary()


def mixer_of(block: Any) -> Mixer | None:
    """The mixer of a wrapped block; None where it has none, or one without heads (Mamba, a short convolution)."""
    for module in getattr(block, "original_component", block).modules():
        # by what modules hold, since families call them by many names: one decay for each head, and a projection. The
        # decay of Mamba has two axes, channels and states: its channels are no heads
        decay: Any = module._parameters.get("A_log")
        name = next((name for name in ("out_proj", "o_proj") if name in module._modules), None)
        if decay is None or decay.ndim != 1 or name is None:
            continue
        projection: Any = getattr(module, name)
        projection = getattr(projection, "original_component", None) or projection
        weight = getattr(projection, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2 and not weight.shape[1] % len(decay):
            return Mixer(projection, len(decay), weight.shape[1] // len(decay))
    return None


def columns(model: Any) -> Columns:
    """What the columns of this model's layers are; attention's alone where mixers have heads of several shapes."""
    if model not in _COLUMNS:
        found = {layer: mixer for layer, block in enumerate(model.blocks) if (mixer := mixer_of(block)) is not None}
        shapes = {(mixer.n_heads, mixer.d_head) for mixer in found.values()}
        if len(shapes) > 1:
            fault = f"the mixers of {model.cfg.architecture} have heads of several numbers and widths {sorted(shapes)}"
            _COLUMNS[model] = Columns(model.cfg.n_heads, 0, model.cfg.d_head, (), fault)
        else:
            n, width = shapes.pop() if shapes else (0, 0)
            _COLUMNS[model] = Columns(model.cfg.n_heads, n, max(model.cfg.d_head, width), tuple(found))
    return _COLUMNS[model]


def check_mixer(model: Any, mixer: str) -> bool:
    """Whether heads of all mixers are meant.

    Raises:
        ValueError: an unknown kind, or a model whose other mixers have no heads, or heads of several shapes.
    """
    if mixer not in ("attention", "all"):
        raise ValueError(f"mixer is {mixer!r:.60}, expected 'attention' or 'all'.")
    if mixer == "all" and not columns(model).n_mixer:
        why = columns(model).fault or f"no layer of {model.cfg.architecture} has a mixer with heads beside attention"
        raise ValueError(f"mixer is 'all', but {why}; use mixer='attention'.")
    return mixer == "all"


def mixer_settings(model: Any, mixer: str) -> dict[str, Any]:
    """What results record of the mixers that were measured: their heads and the width of outputs; nothing without."""
    if not check_mixer(model, mixer):
        return {}
    return {"mixer": mixer, "mixer_heads": columns(model).n_mixer, "width": columns(model).width}


def recorded_columns(settings: Mapping[str, Any], n_heads: int, d_head: int) -> tuple[int, int]:
    """Heads of a layer and width of an output in a result with these settings, made on a model of this shape.

    Raises:
        TypeError, ValueError: the settings do not hold whole numbers of that size.
    """
    if settings.get("mixer") is None:
        return n_heads, d_head
    n, width = settings["mixer_heads"], settings["width"]
    if not (isinstance(n, int) and isinstance(width, int) and n > 0 and width >= d_head):
        raise ValueError(f"mixer_heads {n!r:.20} and width {width!r:.20} are no numbers of heads")
    return n_heads + n, width


def existing(model: Any) -> Bool[Tensor, "n_layers columns"]:
    """Which columns each layer has."""
    what = columns(model)
    found = torch.zeros(model.cfg.n_layers, what.n, dtype=torch.bool)
    found[list(attention_layers(model)), : what.n_attention] = True
    found[list(what.layers), what.n_attention :] = True
    return found


def mixer_with(model: Any, heads: Iterable[tuple[int, int]]) -> MixerKind:
    """The kind of means that hold these heads: `all` where one of them is a recurrent mixer's."""
    return "all" if any(head >= model.cfg.n_heads for _, head in heads) else "attention"


def heads_beside(model: Any, heads: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Every head of the kinds that are among these heads."""
    found = existing(model)
    if mixer_with(model, heads) == "attention":
        found = found[:, : model.cfg.n_heads]
    return [(layer, head) for layer, head in found.nonzero().tolist()]


def column_matrices(model: Any, layer: int) -> Float[Tensor, "columns width d_model"]:
    """`W_O` of every column of a layer: the rows behind a head's own width, and columns it does not have, are zeros."""
    what, parts = columns(model), []
    if layer in attention_layers(model):
        parts.append((0, head_matrices(model, layer)))
    mixer = mixer_of(model.blocks[layer])
    if mixer is not None:
        parts.append((what.n_attention, _mixer_matrices(mixer, layer)))
    like = parts[0][1] if parts else next(model.parameters())
    weight = like.new_zeros(what.n, what.width, model.cfg.d_model)
    for first, own in parts:
        weight[first : first + len(own), : own.shape[1]] = own
    return weight


def _mixer_matrices(mixer: Mixer, layer: int) -> Float[Tensor, "heads d_head d_model"]:
    """`W_O` of every head of a mixer, with the effect of active adapters."""
    projection: Any = mixer.projection
    if is_plain(projection):
        return projection.weight.detach().T.unflatten(0, (mixer.n_heads, mixer.d_head))
    return adapted_weight(projection, mixer.n_heads, mixer.d_head, f"the mixer's output projection of layer {layer}")


def head_label(layer: int, head: int, n_heads: int) -> str:
    """The name of a head: `L20H5` is attention's head 5 of layer 20, `L3M7` head 7 of the mixer in layer 3."""
    return f"L{layer}H{head}" if head < n_heads else f"L{layer}M{head - n_heads}"


def head_labels(heads: Iterable[tuple[int, int]], n_heads: int) -> list[str]:
    """The names of these heads in a model with so many attention heads in a layer."""
    return [head_label(layer, head, n_heads) for layer, head in heads]
