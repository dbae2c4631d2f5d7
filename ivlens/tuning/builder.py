"""`iv_guidance`: guidance for a task from the model as it is before it, and the controls that it has to beat."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ivlens._heads import choose_heads
from ivlens.effects import HeadEffects, head_effects
from ivlens.models import TransformerBridge
from ivlens.tasks import Task
from ivlens.tuning.guidance import IVKL, Guidance, HeadConsistency, Progressive
from ivlens.vectors import InstructionVector

CONTROLS = ("zero_vector", "random_vector", "random_heads", "all_heads")
_DEFAULT_KL, _DEFAULT_PROGRESSIVE = IVKL(), Progressive()


def iv_guidance(
    model: TransformerBridge,
    task: Task,
    *,
    earlier: Sequence[Task] = (),
    progressive: Progressive | None = _DEFAULT_PROGRESSIVE,
    kl: IVKL | None = _DEFAULT_KL,
    heads_weight: float = 30.0,
    layer: int = 0,
    site: str = "resid_post",
    alpha: float = 1.0,
    k: int = 10,
    n_prompts: int = 32,
    seed: int = 0,
    earlier_effects: Sequence[HeadEffects] = (),
) -> Guidance:
    """Guidance for training `model` on `task`.

    `θ` is the Instruction Vector of `task` in the model before training, from its training prompts. `S`, the heads that
    are held where they are, are the `k` with the largest effect averaged over `earlier` tasks; without any, those of
    `task` itself.

    Args:
        model: The model as it is now: of a `Learner`, its `bridge()`.
        earlier: Tasks whose heads shall be kept.
        progressive, kl: Parts of the guidance; None leaves one out.
        heads_weight: Of head consistency; 0 leaves it out.
        layer, site, alpha: Where and how strongly `θ` is added.
        k: Heads in the vector, and in `S`.
        n_prompts: Prompts that effects are measured on, from the `fit` split.
        earlier_effects: Effects of `earlier` tasks where they have been measured before: `earlier` is not read then.

    Raises:
        ValueError: an option that does not exist, or a task that effects cannot be measured on.
    """
    theta = None
    own: HeadEffects | None = None
    if progressive is not None or kl is not None or not (earlier or earlier_effects):
        own = head_effects(model, task, n_prompts=n_prompts, seed=seed)
    if own is not None and (progressive is not None or kl is not None):
        theta = InstructionVector.from_effects(own, k, model=model).theta
    heads = None
    if heads_weight:
        known = list(earlier_effects) or [head_effects(model, one, n_prompts=n_prompts, seed=seed) for one in earlier]
        pool = known or [effects for effects in (own,) if effects is not None]
        heads = HeadConsistency(choose_heads(pool, k), heads_weight)
    return Guidance(theta=theta, layer=layer, site=site, alpha=alpha, progressive=progressive, kl=kl, heads=heads)


def control(guidance: Guidance, kind: str, model: TransformerBridge, *, seed: int = 0) -> Guidance:
    """The same guidance without what should make it work.

    Args:
        kind: `zero_vector`: `θ` is zeros; `random_vector`: a random direction of `θ`'s norm; `random_heads`: as many
            heads, drawn from those not in `S`; `all_heads`: every head, at the same total weight.

    Raises:
        ValueError: there is no such control, or the guidance lacks what it replaces.
    """
    if kind not in CONTROLS:
        raise ValueError(f"control is {kind!r}, expected one of {', '.join(CONTROLS)}.")
    needed = guidance.theta if kind.endswith("vector") else guidance.heads
    if needed is None:
        what = "vector" if kind.endswith("vector") else "heads"
        raise ValueError(f"control {kind!r} replaces the {what}, but this guidance has none; use another control.")
    if guidance.theta is not None and kind == "zero_vector":
        return replace(guidance, theta=torch.zeros_like(guidance.theta))
    generator = torch.Generator().manual_seed(seed)
    if guidance.theta is not None and kind == "random_vector":
        drawn = torch.randn(guidance.theta.shape, generator=generator).to(guidance.theta)
        return replace(guidance, theta=drawn * (guidance.theta.norm() / drawn.norm()))
    assert guidance.heads is not None
    return replace(guidance, heads=_other_heads(guidance.heads, kind, model, generator))


def _other_heads(
    heads: HeadConsistency, kind: str, model: TransformerBridge, generator: torch.Generator
) -> HeadConsistency:
    everyone = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    if kind == "all_heads":
        return HeadConsistency(tuple(everyone), heads.weight * len(heads.heads) / len(everyone))
    free = [place for place in everyone if place not in heads.heads]
    drawn = torch.randperm(len(free), generator=generator)[: len(heads.heads)].tolist()
    if not drawn:
        raise ValueError("control 'random_heads' has no heads left to draw from: S holds all of them; use fewer.")
    return HeadConsistency(tuple(free[n] for n in drawn), heads.weight)
