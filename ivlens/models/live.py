"""Keeps peft adapters inside a wrapped model trainable, and checks that forward passes still use them."""

from typing import Any

import torch
from torch import nn

_OF_THE_MODEL = ("base_layer", "original_module")  # parts of an adapter's layer that belong to the model


class LiveAdapters:
    """The adapters of a model before it is wrapped, to be compared with those that the bridge uses."""

    def __init__(self, hf_model: nn.Module) -> None:
        # recognised by its module's name, so that peft, which is optional, need not be imported
        self._layers = {
            module: name for name, module in hf_model.named_modules() if type(module).__module__.startswith("peft.")
        }
        self._trained = [weight for weight in _own_weights([*self._layers]) if weight.requires_grad]
        self._reached = self._passed(hf_model) if self._layers else set()

    def keep(self, model: Any, label: str) -> None:
        """Make the adapters that were trainable before trainable in the bridge.

        Raises:
            ValueError: passes of the bridge leave out an adapter, so that training it would have no effect.
        """
        # wrapping has frozen all parameters
        for weight in self._trained:
            weight.requires_grad_(True)
        lost = sorted(self._layers[layer] for layer in self._reached - (self._passed(model) if self._layers else set()))
        if lost:
            raise ValueError(
                f"model {label!r} has adapters that its wrapped passes leave out ({lost[0]}; {len(lost)} modules: "
                "fused projections are split); merge them (peft_model.merge_and_unload())."
            )

    def _passed(self, model: Any) -> set[nn.Module]:
        """The adapters' layers that one forward pass of the model calls."""
        found: set[nn.Module] = set()
        handles = [layer.register_forward_pre_hook(lambda layer, given: found.add(layer)) for layer in self._layers]
        try:
            with torch.no_grad():
                model(torch.arange(4, device=next(model.parameters()).device)[None], use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return found


def _own_weights(layers: list[nn.Module]) -> list[nn.Parameter]:
    """The parameters of the adapters themselves, without those of the layers that they change."""
    named = [pair for layer in layers for pair in layer.named_parameters()]
    return [weight for name, weight in named if not any(part in _OF_THE_MODEL for part in name.split("."))]
