"""Makes the plain Hugging Face model of a bridge again, as it was before wrapping, for training and saving.

Wrapping changes a model in place. In a bridge, adapters on fused projections would be ignored without an error, and
saved adapters would get names that peft does not know. So fine-tuning works on a fresh copy of the plain model, made
from the weights that the bridge uses.
"""

import copy
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ivlens.models.attention import attention_of
from ivlens.models.boot import TransformerBridge


@dataclass(frozen=True)
class ModulePaths:
    """Names of modules inside the plain model, by layer.

    Attributes:
        blocks: The decoder blocks, whose output is `resid_post`.
        projections: Attention's output projections, whose input is all heads' `z` side by side; None in layers without
            attention.
        attn_out: The modules whose output attention adds to the residual stream: the projections, or the norms that
            follow them; None in layers without attention.
    """

    blocks: tuple[str, ...]
    projections: tuple[str | None, ...]
    attn_out: tuple[str | None, ...]


@dataclass(frozen=True, eq=False)
class _Origin:
    """What is kept of a plain model: its class, configuration, weights, and the names of its modules by `id`."""

    kind: type[nn.Module]
    config: Any
    state: dict[str, Tensor]
    names: dict[int, str]


_PLAIN: WeakKeyDictionary[TransformerBridge, _Origin] = WeakKeyDictionary()


def plain_origin(hf_model: nn.Module) -> _Origin:
    """What is needed to make a model again; call it before wrapping. It holds the weights themselves, no copies."""
    names = {id(module): name for name, module in hf_model.named_modules()}
    return _Origin(type(hf_model), copy.deepcopy(hf_model.config), dict(hf_model.state_dict()), names)


def remember_plain(model: TransformerBridge, origin: _Origin) -> None:
    """Keep `origin` for `plain_model`, as long as the bridge is in memory."""
    _PLAIN[model] = origin


def plain_model(model: TransformerBridge) -> Any:
    """A new Hugging Face model with copies of the weights of `model`, in eval mode, on its device and in its dtype.

    Raises:
        TypeError: `load_model` did not make the bridge.
        ValueError: the copy cannot be made or gives other logits, as with adapters inside the bridge or weights that
            were changed by hand.
    """
    origin = _origin(model)
    parameter = next(model.parameters())
    try:
        # clones, because from_pretrained may use tensors as they are: training the copy would change the bridge
        state = {name: tensor.detach().clone() for name, tensor in origin.state.items()}
        with torch.random.fork_rng(devices=[]):  # building a model draws random numbers
            made: Any = origin.kind
            plain = made.from_pretrained(
                None, config=copy.deepcopy(origin.config), state_dict=state, dtype=parameter.dtype
            )
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise ValueError(f"a plain copy of {model.cfg.model_name!r} could not be made: {error}.") from error
    plain = plain.to(parameter.device).eval()
    _check_same(model, plain)
    return plain


def module_paths(model: TransformerBridge) -> ModulePaths:
    """The names of blocks and projections in the plain model.

    Raises:
        TypeError: `load_model` did not make the bridge.
    """
    names = _origin(model).names
    projections: list[str | None] = []
    written: list[str | None] = []
    for block in model.blocks:
        attention = attention_of(block)
        own = None if attention is None else names[id(attention.projection)]
        # the norm after attention, where the family has one; in a hybrid, layers without attention may have it too
        norm = getattr(block, "ln1_post", None)
        projections.append(own)
        written.append(own if own is None or norm is None else names[id(norm.original_component)])
    blocks = tuple(names[id(block.original_component)] for block in model.blocks)
    return ModulePaths(blocks, tuple(projections), tuple(written))


def mlp_paths(model: TransformerBridge) -> tuple[str | None, ...]:
    """For each layer the name in the plain model of the projection by which its MLP writes; None where none is alone.

    Raises:
        TypeError: `load_model` did not make the bridge.
    """
    names = _origin(model).names
    written = [getattr(getattr(block, "mlp", None), "out", None) for block in model.blocks]
    return tuple(names.get(id(getattr(module, "original_component", module))) for module in written)


def _origin(model: TransformerBridge) -> _Origin:
    """What was remembered of the bridge's plain model."""
    if model not in _PLAIN:
        raise TypeError("model was not opened by ivlens.load_model, expected a bridge of it; open it with load_model.")
    return _PLAIN[model]


def _check_same(model: TransformerBridge, plain: nn.Module) -> None:
    """Refuse a copy that gives other logits than the bridge."""
    parameter = next(model.parameters())
    probe = torch.arange(8, device=parameter.device)[None] * 7 % model.cfg.d_vocab
    with torch.no_grad():
        want, got = model(probe, use_cache=False), plain(probe, use_cache=False).logits
    error = float((got - want).abs().max())
    tolerance = (1e-3 if parameter.element_size() >= 4 else 5e-2) * max(1.0, float(want.abs().max()))
    if not error <= tolerance:  # so that NaN fails
        raise ValueError(
            f"a plain copy of {model.cfg.model_name!r} gives logits that are off by {error:.3g}; if it has adapters, "
            "merge them before load_model (peft_model.merge_and_unload()); if its weights were changed through the "
            "bridge, change the Hugging Face model instead and load that."
        )
