"""Two checkpoints side by side: vectors, heads, effects, hidden states, performance."""

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
    """A series compared with its first checkpoint.

    Attributes:
        stages: What was measured at each, the first one first.
        tasks: One row for each checkpoint and task, see `compare`.
        heads: One row for each checkpoint, task and head: `z_cosine`, `drift`, `aie_before`, `aie_after`.
        layers: One row for each checkpoint, task and layer: `cosine` of the hidden state and the first vector.
    """

    stages: tuple[Stage, ...]
    tasks: "pd.DataFrame"
    heads: "pd.DataFrame"
    layers: "pd.DataFrame"

    def drift_map(self, checkpoint: str | None = None) -> Float[Tensor, "n_layers n_heads"]:
        """Mean drift of every head over tasks, at one checkpoint; None: the last.

        Raises:
            KeyError: no such checkpoint.
        """
        name = self.stages[-1].name if checkpoint is None else checkpoint
        stage = next((one for one in self.stages if one.name == name), None)
        if stage is None:
            raise KeyError(f"no checkpoint {name!r}, expected one of {', '.join(one.name for one in self.stages)}.")
        return torch.stack([drift(self.stages[0].tasks[task], found) for task, found in stage.tasks.items()]).mean(0)


def compare(stages: Sequence[Stage]) -> Dynamics:
    """Each checkpoint against the first: all of docs/method.md, section 8, that needs no intervention.

    Per checkpoint and task:

    - `iv_cosine_fixed`: cosine of `θ^0` and `θ^t` with `S` as chosen in the first model; `iv_cosine_rechosen`: with `S`
      chosen anew in each; `norm_ratio`: `‖θ^t‖ / ‖θ^0‖`, fixed `S`;
    - `z_cosine`: mean over `S` of the cosine of `z̄` before and after;
    - `head_overlap`: Jaccard index of the two `S`; `aie_rank_correlation`: Spearman's, over all heads;
    - `activation_cosine`: mean cosine of `θ^0` and the hidden state under clean prompts, in the layer where it is
      largest in the first model (`activation_layer`);
    - `accuracy`, `prob`, `logprob` of clean prompts, `n` of them; `distance`: `‖ΔW‖ / ‖W_0‖`;
    - `step`: training steps before it, NaN where they are not known.

    To be read beside `split_half` (cosine of two halves of the prompts in the first model) and `between_mean` and
    `between_max` (cosine with the other tasks' vectors there).

    The drift of a head is `‖w^t - w^0‖ / ‖w^0‖`, `w` what it writes on average; 1 for a head that falls silent.

    Raises:
        ValueError: fewer than two stages, or stages with other tasks, options or shapes.
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
    """What has to be the same in two stages, in words."""
    shape = ", ".join(f"{name} {getattr(stage.model, name)}" for name in ("n_layers", "n_heads", "d_model"))
    options = ", ".join(f"{name} {stage.settings[name]}" for name in TrackOptions.__dataclass_fields__)
    return f"the tasks {', '.join(stage.tasks) or 'none'}, {shape}, {options}"


def drift(before: TaskStage, after: TaskStage) -> Float[Tensor, "n_layers n_heads"]:
    """`‖w^t - w^0‖ / ‖w^0‖` of every head; 0 for one that never wrote anything."""
    moved, length = (after.writes - before.writes).norm(dim=-1), before.writes.norm(dim=-1)
    return torch.where(moved == 0, torch.zeros_like(moved), moved / length.clamp_min(1e-30))


def _task_row(first: Stage, stage: Stage, task: str) -> dict[str, Any]:
    before, after, k = first.tasks[task], stage.tasks[task], int(first.settings["k"])
    old, new = before.top_heads(k), after.top_heads(k)
    theta = before.theta(old)
    cosines = [_cosine(theta, first.tasks[other].theta(first.tasks[other].top_heads(k)))
               for other in first.tasks if other != task]  # fmt: skip
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
    ]


def _layer_rows(first: Stage, stage: Stage, task: str) -> list[dict[str, Any]]:
    before = first.tasks[task]
    cosines = _with_vector(stage.tasks[task], before.theta(before.top_heads(int(first.settings["k"]))))
    return [{"layer": layer, "cosine": value} for layer, value in enumerate(cosines.tolist())]


def _with_vector(found: TaskStage, theta: Float[Tensor, " d_model"]) -> Float[Tensor, " n_layers"]:
    return found.directions @ (theta / theta.norm().clamp_min(1e-30))


def _z_cosines(before: TaskStage, after: TaskStage) -> Float[Tensor, "n_layers n_heads"]:
    return torch.cosine_similarity(before.mean_z.double(), after.mean_z.double(), dim=-1).float()


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one.double(), other.double(), dim=0))


def _rank_correlation(before: Tensor, after: Tensor) -> float:
    if bool((before == before.flatten()[0]).all()) or bool((after == after.flatten()[0]).all()):
        return float("nan")  # no order
    found: Any = spearmanr(before.flatten().numpy(), after.flatten().numpy())
    return float(found.statistic)
