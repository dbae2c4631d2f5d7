"""Whether somebody else's hooks are on a model: what was found without them does not hold, and the other way round."""

from collections.abc import MutableMapping
from typing import Any
from weakref import ref

from torch import nn

from ivlens.models.boot import TransformerBridge


def is_hooked(model: TransformerBridge, *, by_ivlens: bool = True) -> bool:
    """Whether anybody's hooks are on the model: at a hook point or on any module. The libraries' own do not count.

    transformers leaves one on every layer that ever collected `output_hidden_states`; it does nothing in other calls.

    Args:
        by_ivlens: Whether hooks of ivlens itself count.
    """
    libraries = ("transformer_lens", "transformers.", *(() if by_ivlens else ("ivlens.",)))
    points = model.hook_dict.values()
    at_points = (handle.user_hook for point in points for handle in point.fwd_hooks)
    at_modules = (hook for module in model.modules() for hooks in _hooks_of(module) for hook in hooks.values())
    return not all(_is_of(libraries, hook) for hook in (*at_points, *at_modules))


def whole_passes(model: TransformerBridge) -> set[nn.Module]:
    """The modules whose forward is a whole pass: the wrapped model, and the one without its head, for loops by hand."""
    wrapped = model.original_model
    return {wrapped, getattr(wrapped, "base_model", wrapped)}


def _is_of(libraries: tuple[str, ...], hook: Any) -> bool:
    return (getattr(hook, "__module__", None) or "").startswith(libraries)


def _hooks_of(module: nn.Module) -> tuple[MutableMapping[int, Any], ...]:
    return module._forward_pre_hooks, module._forward_hooks


def remove_left_hooks(model: "ref[TransformerBridge]") -> None:
    """Take away what reading and steering contexts hooked, where nobody is left to end them."""
    bridge = model()
    if bridge is None:
        return
    ours = ("ivlens.forward.hooks", "ivlens.steering.prompt_ends")
    for point in bridge.hook_dict.values():
        for handle in [each for each in point.fwd_hooks if _is_of(ours, each.user_hook)]:
            handle.hook.remove()
            point.fwd_hooks.remove(handle)
    for module in bridge.modules():
        for hooks in _hooks_of(module):
            for number in [number for number, hook in hooks.items() if _is_of(ours, hook)]:
                del hooks[number]
