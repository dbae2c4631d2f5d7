"""Whether somebody else's hooks are on a model: what was found without them does not hold, and the other way round."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ivlens.models.boot import TransformerBridge


def is_hooked(model: TransformerBridge, *, by_ivlens: bool = True) -> bool:
    """Whether anybody's hooks are on the model: at a hook point or on any module. The libraries' own do not count.

    transformers leaves one on every layer that ever collected `output_hidden_states`; it does nothing in other calls.
    Neither does the one that asks whether a pass is still wanted.

    Args:
        by_ivlens: Whether hooks of ivlens itself count.
    """
    libraries = ("transformer_lens", "transformers.", "ivlens.forward.sharing", *(() if by_ivlens else ("ivlens.",)))
    points = model.hook_dict.values()
    at_points = (handle.user_hook for point in points for handle in point.fwd_hooks)
    at_modules = (hook for module in model.modules() for hooks in _hooks_of(module) for hook in hooks.values())
    return not all(_is_of(libraries, hook) for hook in (*at_points, *at_modules))


def _is_of(libraries: tuple[str, ...], hook: Any) -> bool:
    return (getattr(hook, "__module__", None) or "").startswith(libraries)


def _hooks_of(module: nn.Module) -> tuple[Mapping[int, Any], ...]:
    return module._forward_pre_hooks, module._forward_hooks
