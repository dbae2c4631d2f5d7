"""Whether hooks are on a model, and how those that were left behind are removed.

Hooks change what a model computes, so a result that was found without them does not hold with them, or the reverse.
"""

from collections.abc import MutableMapping
from typing import Any
from weakref import ref

import torch
from torch import nn

from ivlens.models.boot import TransformerBridge


def is_hooked(model: TransformerBridge, *, by_ivlens: bool = True) -> bool:
    """Whether hooks are on the model, at a hook point or on any module; hooks of libraries do not count.

    Args:
        by_ivlens: Whether hooks of ivlens itself count.
    """
    # transformers leaves a hook on layers that once collected `output_hidden_states`, and `sharing.stopping` adds one
    # that may end a pass: neither changes a number
    libraries = ("transformer_lens", "transformers.", "ivlens.forward.sharing", *(() if by_ivlens else ("ivlens.",)))
    points = model.hook_dict.values()
    at_points = (handle.user_hook for point in points for handle in point.fwd_hooks)
    # the plain model itself, and its parts outside of the blocks that the bridge has not wrapped, are no modules of it
    modules = {*model.modules(), *model.original_model.modules()}
    at_modules = (hook for module in modules for hooks in _hooks_of(module) for hook in hooks.values())
    return not all(_is_of(libraries, hook) for hook in (*at_points, *at_modules))


def is_unembedding_hooked(model: TransformerBridge) -> bool:
    """Whether a hook, of others than ivlens, sees the logits or the stream that they are made of."""
    modules = (*model.unembed.modules(), *whole_passes(model), model)
    known = ("transformers.", "ivlens.")
    points = (handle.user_hook for each in modules for handle in getattr(each, "fwd_hooks", ()))
    at_modules = (hook for each in modules for hooks in _hooks_of(each) for hook in hooks.values())
    return not all(_is_of((*known, "transformer_lens"), hook) for hook in at_modules) or any(True for _ in points)


def is_recomputing() -> bool:
    """Whether a backward pass is running a block a second time (gradient checkpointing)."""
    return getattr(torch._C, "_current_graph_task_id", lambda: -1)() != -1  # private to torch; False where it is gone


def whole_passes(model: TransformerBridge) -> set[nn.Module]:
    """The modules whose forward is a whole pass: the wrapped model, and the same model without its unembedding."""
    # the second one, because a decoding loop written by hand may call it and unembed on its own
    wrapped = model.original_model
    return {wrapped, getattr(wrapped, "base_model", wrapped)}


def _is_of(libraries: tuple[str, ...], hook: Any) -> bool:
    """Whether a hook was defined in a module whose name begins with one of these names."""
    return (getattr(hook, "__module__", None) or "").startswith(libraries)


def _hooks_of(module: nn.Module) -> tuple[MutableMapping[int, Any], ...]:
    return module._forward_pre_hooks, module._forward_hooks


def remove_left_hooks(model: "ref[TransformerBridge]") -> None:
    """Remove the hooks of contexts of ivlens that cannot end any more, such as those of a thread that died."""
    bridge = model()
    if bridge is None:
        return
    ours = ("ivlens.forward.hooks", "ivlens.forward.firing", "ivlens.forward.places", "ivlens.steering.prompt_ends")
    for point in bridge.hook_dict.values():
        # torch and TransformerLens each keep a list of their own, and both have to forget the hook
        for handle in [each for each in point.fwd_hooks if _is_of(ours, each.user_hook)]:
            handle.hook.remove()
            point.fwd_hooks.remove(handle)
    for module in bridge.modules():
        for hooks in _hooks_of(module):
            for number in [number for number, hook in hooks.items() if _is_of(ours, hook)]:
                del hooks[number]
