"""`compare`: each checkpoint beside the first, by its vectors, heads, effects, hidden states and performance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor

from ivlens.analysis.dynamics.stages import Stage, TaskStage, TrackOptions

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Dynamics:
    """All checkpoints of a series, compared with the first.

    Attributes:
        stages: The measurements at each checkpoint, in order.
        tasks: One row for each checkpoint and task; `compare` explains the columns.
        heads: One row for each checkpoint, task and head: `z_cosine`, `drift`, `aie_before`, `aie_after`.
        layers: One row for each checkpoint, task and layer: `cosine` of the hidden state with the first model's vector.
    """

    stages: tuple[Stage, ...]
    tasks: "pd.DataFrame"
    heads: "pd.DataFrame"
    layers: "pd.DataFrame"

    def drift_map(self, checkpoint: str | None = None) -> Float[Tensor, "n_layers n_heads"]:
        """The drift of every head at one checkpoint, averaged over tasks.

        Args:
            checkpoint: Name of the checkpoint; None: the last one.

        Raises:
            KeyError: there is no such checkpoint.
        """
        name = self.stages[-1].name if checkpoint is None else checkpoint
        stage = next((one for one in self.stages if one.name == name), None)
        if stage is None:
            raise KeyError(f"no checkpoint {name!r}, expected one of {', '.join(one.name for one in self.stages)}.")
        return torch.stack([drift(self.stages[0].tasks[task], found) for task, found in stage.tasks.items()]).mean(0)


def compare(stages: Sequence[Stage]) -> Dynamics:
    """Compare each checkpoint of a series with the first, without any intervention.

    For each checkpoint and task (docs/method.md, section 8 Vectors along a training):

    - `iv_cosine_fixed`: cosine of `θ^0` and `θ^t`, with the heads `S` of the first model; `iv_cosine_rechosen`: with
      `S` chosen anew at each checkpoint; `norm_ratio`: `‖θ^t‖ / ‖θ^0‖` with the heads of the first model;
    - `z_cosine`: cosine of `z̄` in the first model and now, averaged over `S`;
    - `head_overlap`: Jaccard index of the two `S`; `aie_rank_correlation`: Spearman's correlation over all heads;
    - `activation_cosine`: mean cosine of `θ^0` and the hidden state under clean prompts, in the layer where it is
      largest in the first model (`activation_layer`);
    - `accuracy`, `prob`, `logprob`: means over the `n` clean prompts; `distance`: `‖ΔW‖ / ‖W_0‖`;
    - `step`: training steps before the checkpoint, NaN where they are not known.

    Read the cosines beside their references in the first model: `split_half`, between vectors of two halves of the
    prompts, and `between_mean` and `between_max`, with other tasks' vectors.

    The drift of a head is `‖u^t - u^0‖ / ‖u^0‖`, where `u` is what the head writes on average; a head that stops
    writing has drift 1.

    Raises:
        ValueError: fewer than two stages, or stages with different tasks, options or shapes.
    """
    import pandas as pd

    if len(stages) < 2:
        raise ValueError(f"compare got {len(stages)} stages, expected two or more.")
    first = stages[0]
    for stage in stages[1:]:
        if _measured(stage) != _measured(first):
            raise ValueError(
                f"stage {stage.name!r} has {_measured(stage)}, expected {_measured(first)} of {first.name!r}; measure "
                "checkpoints of one model alike."
            )
    rows: dict[str, list[dict[str, Any]]] = {"tasks": [], "heads": [], "layers": []}
    for stage in stages:
        for task in stage.tasks:
            about = {"checkpoint": stage.name, "step": float("nan") if stage.step < 0 else stage.step, "task": task}
            rows["tasks"].append(about | _task_row(first, stage, task))
            rows["heads"] += [about | row for row in _head_rows(first.tasks[task], stage.tasks[task])]
            rows["layers"] += [about | row for row in _layer_rows(first, stage, task)]
    return Dynamics(tuple(stages), *(pd.DataFrame(rows[name]) for name in ("tasks", "heads", "layers")))


def _measured(stage: Stage) -> str:
    """Tasks, shape and options of a stage in words; two stages can be compared if these are equal."""
    shape = ", ".join(f"{name} {getattr(stage.model, name)}" for name in ("n_layers", "n_heads", "d_model"))
    options = ", ".join(f"{name} {stage.settings[name]}" for name in TrackOptions.__dataclass_fields__)
    return f"the tasks {', '.join(stage.tasks) or 'none'}, {shape}, {options}"


def drift(before: TaskStage, after: TaskStage) -> Float[Tensor, "n_layers n_heads"]:
    """How far the write of every head has moved, `‖u^t - u^0‖ / ‖u^0‖`; 0 for a head that never wrote anything."""
    moved, length = (after.writes - before.writes).norm(dim=-1), before.writes.norm(dim=-1)
    # 0 / 0 would be NaN, and a mean over tasks with it
    return torch.where(moved == 0, torch.zeros_like(moved), moved / length.clamp_min(1e-30))


def _task_row(first: Stage, stage: Stage, task: str) -> dict[str, Any]:
    """The measures of one task at one checkpoint, in the order of the table's columns."""
    before, after, k = first.tasks[task], stage.tasks[task], int(first.settings["k"])
    old, new = before.top_heads(k), after.top_heads(k)
    theta = before.theta(old)
    cosines = [_cosine(theta, first.tasks[other].theta(first.tasks[other].top_heads(k)))
               for other in first.tasks if other != task]  # fmt: skip
    # the layer of the first model for all checkpoints: a layer chosen at each would hide a fall
    layer = int(_with_vector(before, theta).argmax())
    layers, numbers = (list(part) for part in zip(*old, strict=True))
    return {
        "iv_cosine_fixed": _cosine(theta, after.theta(old)),
        "iv_cosine_rechosen": _cosine(theta, after.theta(new)),
        "norm_ratio": float(after.theta(old).norm() / theta.norm().clamp_min(1e-30)),
        "z_cosine": float(_z_cosines(before, after)[layers, numbers].mean()),
        "head_overlap": len({*old} & {*new}) / len({*old} | {*new}),
        "aie_rank_correlation": _rank_correlation(before.aie, after.aie),
        "activation_layer": layer,
        "activation_cosine": float(_with_vector(after, theta)[layer]),
        "accuracy": float(after.accuracy.mean()),
        "prob": float(after.prob.mean()),
        "logprob": float(after.logprob.mean()),
        "n": len(after.accuracy),
        "distance": stage.distance,
        "split_half": float(before.split_half),
        "between_mean": float(np.mean(cosines)) if cosines else float("nan"),
        "between_max": max(cosines, default=float("nan")),
    }


def _head_rows(before: TaskStage, after: TaskStage) -> list[dict[str, Any]]:
    """Cosine, drift and effects of every head in the first model and at one checkpoint."""
    cosines, moved = _z_cosines(before, after), drift(before, after)
    n_layers, n_heads = moved.shape
    return [
        {
            "layer": layer,
            "head": head,
            "label": f"L{layer}H{head}",
            "z_cosine": float(cosines[layer, head]),
            "drift": float(moved[layer, head]),
            "aie_before": float(before.aie[layer, head]),
            "aie_after": float(after.aie[layer, head]),
        }
        for layer in range(n_layers)
        for head in range(n_heads)
        if not before.aie[layer, head].isnan()  # layers without heads
    ]


def _layer_rows(first: Stage, stage: Stage, task: str) -> list[dict[str, Any]]:
    """The cosine of the hidden state with the first model's vector, in every layer."""
    before = first.tasks[task]
    cosines = _with_vector(stage.tasks[task], before.theta(before.top_heads(int(first.settings["k"]))))
    return [{"layer": layer, "cosine": value} for layer, value in enumerate(cosines.tolist())]


def _with_vector(found: TaskStage, theta: Float[Tensor, " d_model"]) -> Float[Tensor, " n_layers"]:
    """Mean cosine of the hidden states with `theta`, by layer."""
    # `directions` are means of unit vectors, so a product with a unit vector is the mean of the cosines
    return found.directions @ (theta / theta.norm().clamp_min(1e-30))


def _z_cosines(before: TaskStage, after: TaskStage) -> Float[Tensor, "n_layers n_heads"]:
    """The cosine of every head's mean output in the first model and at one checkpoint."""
    # float64: cosines near 1 are compared, where float32 has few digits left
    return torch.cosine_similarity(before.mean_z.double(), after.mean_z.double(), dim=-1).float()


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one.double(), other.double(), dim=0))


def _rank_correlation(before: Tensor, after: Tensor) -> float:
    """Spearman's correlation of two maps over all heads; layers without heads are NaN, and left out."""
    known = before.isfinite() & after.isfinite()
    before, after = before[known], after[known]
    if bool((before == before.flatten()[0]).all()) or bool((after == after.flatten()[0]).all()):
        return float("nan")  # equal values have no order; scipy would warn
    found: Any = spearmanr(before.flatten().numpy(), after.flatten().numpy())
    return float(found.statistic)
