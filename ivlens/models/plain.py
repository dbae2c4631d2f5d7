"""The Hugging Face model behind a bridge as it was before it was wrapped, and where its parts are.

Wrapping changes a model in place, and a bridge's weights cannot be trained or saved as usual: adapters on fused
projections are silently ignored there, and their files get names that peft does not know. So what is trained is a fresh
copy of the plain model, made from the weights that the bridge itself still uses.
"""

import copy
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ivlens.models.boot import TransformerBridge


@dataclass(frozen=True)
class ModulePaths:
    """Names of modules inside the plain model, by layer.

    Attributes:
        blocks: The decoder blocks, whose output is `resid_post`.
        projections: Attention's output projection, whose input is all heads' `z` side by side.
        attn_out: The module whose output attention adds to the residual stream, as far as there is one: the
            projection, or the norm after it.
    """

    blocks: tuple[str, ...]
    projections: tuple[str, ...]
    attn_out: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Origin:
    kind: type[nn.Module]
    config: Any
    state: dict[str, Tensor]
    names: dict[int, str]


_PLAIN: WeakKeyDictionary[TransformerBridge, _Origin] = WeakKeyDictionary()


def plain_origin(hf_model: nn.Module) -> _Origin:
    """What is needed to make the model again; to be taken before it is wrapped. Holds its weights, no copies."""
    names = {id(module): name for name, module in hf_model.named_modules()}
    return _Origin(type(hf_model), copy.deepcopy(hf_model.config), dict(hf_model.state_dict()), names)


def remember_plain(model: TransformerBridge, origin: _Origin) -> None:
    """Keep it for as long as the bridge lives."""
    _PLAIN[model] = origin


def plain_model(model: TransformerBridge) -> Any:
    """A fresh Hugging Face model with the weights of `model`, in eval mode, on its device and in its dtype.

    Raises:
        TypeError: a bridge that `load_model` did not make.
        ValueError: the weights do not make the model again, as with adapters inside it or weights changed by hand.
    """
    origin = _origin(model)
    parameter = next(model.parameters())
    try:
        # clones: what fits is taken over as it is, and would then be shared with the bridge
        state = {name: tensor.detach().clone() for name, tensor in origin.state.items()}
        with torch.random.fork_rng(devices=[]):  # building a model draws, and callers' draws are theirs
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
    """Where blocks and projections are in the plain model.

    Raises:
        TypeError: a bridge that `load_model` did not make.
    """
    names = _origin(model).names
    blocks = [block.original_component for block in model.blocks]
    projections = [block.attn.o.original_component for block in model.blocks]
    written = [
        block.ln1_post.original_component if hasattr(block, "ln1_post") else projection
        for block, projection in zip(model.blocks, projections, strict=True)
    ]
    paths = (tuple(names[id(module)] for module in modules) for modules in (blocks, projections, written))
    return ModulePaths(*paths)


def _origin(model: TransformerBridge) -> _Origin:
    if model not in _PLAIN:
        raise TypeError("the model was not opened by ivlens.load_model, expected one that was.")
    return _PLAIN[model]


def _check_same(model: TransformerBridge, plain: nn.Module) -> None:
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
