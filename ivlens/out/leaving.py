"""A vector that is about to leave ivlens: what it adds, where, and the checks that all formats share."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ivlens.common.precision import rounding_share
from ivlens.forward.hooks import captured_residual, check_layers, check_site, model_lock
from ivlens.forward.writes import attention_factor
from ivlens.models.boot import TransformerBridge
from ivlens.models.plain import ModulePaths
from ivlens.models.selfcheck import probe_prompts
from ivlens.steering.edits import Positions
from ivlens.steering.positions import check_positions
from ivlens.steering.summary import Setting
from ivlens.vectors.vector import InstructionVector, check_belongs


@dataclass(frozen=True, eq=False)
class Leaving:
    """A vector with the model that it belongs to, its setting, and the positions that it is added at."""

    model: TransformerBridge
    iv: InstructionVector
    at: Setting
    positions: Positions

    def __post_init__(self) -> None:
        check_belongs(self.iv, self.model)
        check_layers(self.model, [self.at.layer])
        check_site(self.at.site)
        check_positions(self.positions)
        if not math.isfinite(self.at.alpha):
            raise ValueError(f"alpha is {self.at.alpha}, expected a finite number; 0.5 to 8 are usual.")

    @property
    def delta(self) -> Float[Tensor, " d_model"]:
        """What the residual stream receives: `alpha * theta`."""
        return self.at.alpha * self.iv.theta

    @cached_property
    def factor(self) -> float:
        """The number by which the block multiplies what its module writes; 1 in nearly all families.

        In other tools the vector is added to the output of a module: the block, attention's output projection, or the
        norm behind that.

        Raises:
            ValueError: the block makes no fixed multiple of it.
        """
        return _attention_share(self.model, self.at.layer) if self.at.site == "attn_out" else 1.0

    @property
    def shown(self) -> Float[Tensor, " d_model"]:
        """What has to be added at the site so that the stream receives `delta`."""
        return self.delta / self.factor

    @property
    def words(self) -> str:
        """The vector and its place, in a line for people."""
        layer, alpha, site = self.at
        return f"{self.iv.task} at layer {layer}, alpha {alpha:g}, {site}, positions {self.positions}"

    def check_all(self, tool: str) -> None:
        """Refuse a vector that is not added at every position, as the other tool would.

        Raises:
            ValueError: other positions than `all`.
        """
        if self.positions != "all":
            raise ValueError(
                f"{tool} adds a vector at every position, so it cannot express positions={self.positions!r}, expected "
                'positions="all"; search a setting for these (Grid(positions="all")), or export as python.'
            )


def _attention_share(model: TransformerBridge, layer: int) -> float:
    """The number by which the stream receives what attention's last module writes, from two passes."""
    block: Any = model.blocks[layer]
    module = getattr(block, "ln1_post", None) or block.attn.o
    tokens = probe_prompts(model.original_model)[0][:1]  # the one without padding
    parameter = next(model.parameters())
    delta = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0)).to(parameter)

    def write(_: nn.Module, given: Any, output: Tensor) -> Tensor:
        return output + delta

    with model_lock(model), torch.no_grad():
        with captured_residual(model, layer, "attn_out") as plain:
            model(tokens, use_cache=False)
        handle = module.original_component.register_forward_hook(write)
        try:
            with captured_residual(model, layer, "attn_out") as moved:
                model(tokens, use_cache=False)
        finally:
            handle.remove()
    shown = (moved[layer] - plain[layer]).float()
    share = float((shown * delta.float()).sum() / (delta.float().square().sum() * shown[..., 0].numel()))
    within = rounding_share(parameter.dtype, 1e-2) * float(delta.abs().max())
    if share < 1e-3 or not bool(((shown - share * delta.float()).abs() <= within).all()):
        raise ValueError(
            f"attention of layer {layer} of {model.cfg.architecture} writes no fixed multiple of its module's output, "
            "so the vector cannot be added there by other tools; use site 'resid_post'."
        )
    share = 1.0 if abs(share - 1) < 1e-3 else share
    return share * attention_factor(model, layer)


def module_name(paths: ModulePaths, layer: int, site: str) -> str:
    """The name of the module in the Hugging Face model whose output is changed.

    Raises:
        ValueError: a layer without attention has no site `attn_out`.
    """
    name = (paths.blocks if site == "resid_post" else paths.attn_out)[layer]
    if name is None:
        raise ValueError(f"layer {layer} has no attention, expected one that has, or the site resid_post.")
    return name


def place_name(model: TransformerBridge, name: str) -> str:
    """The name of a module below the part of the Hugging Face model that has no unembedding (`base_model`)."""
    prefix = getattr(model.original_model, "base_model_prefix", "")
    return name.removeprefix(f"{prefix}.") if prefix else name


def plain_vector(vector: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """A float32 copy on the CPU that shares its memory with nothing."""
    return vector.detach().to("cpu", torch.float32).clone()
