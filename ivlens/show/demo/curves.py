"""The demo's sweep of every task's vector beside the same sweep of its controls: the curves of a paper's figure."""

from collections.abc import Iterator, Sequence

import pandas as pd

from ivlens.effects.results import HeadEffects
from ivlens.models.boot import TransformerBridge
from ivlens.steering.controls import random_head_vectors, random_vectors
from ivlens.steering.search import Grid, sweep_settings
from ivlens.tasks.task import Task
from ivlens.vectors.vector import InstructionVector

N_DRAWS = 2  # of each control and task; over the demo's eight tasks these are sixteen


def swept_controls(
    model: TransformerBridge,
    task: Task,
    vector: InstructionVector,
    others: Sequence[InstructionVector],
    found: HeadEffects,
    grid: Grid,
    n_prompts: int | None,
) -> pd.DataFrame:
    """`sweep_settings` of a task's controls on *select*, with the columns `task` and `condition`.

    Args:
        others: vectors of several tasks, this one's among them or not.
        found: the effects the vector was built from; their seed draws the controls and the prompts.
        n_prompts: at most so many; None: all.
    """
    seed = found.recipe.seed
    frames = [
        sweep_settings(model, task, vectors, grid=grid, n_prompts=n_prompts, seed=seed).assign(
            task=task.name, condition=condition
        )
        for condition, vectors in _controls(model, vector, others, found, seed)
        if vectors
    ]
    return pd.concat(frames, ignore_index=True)


def _controls(
    model: TransformerBridge,
    vector: InstructionVector,
    others: Sequence[InstructionVector],
    found: HeadEffects,
    seed: int,
) -> Iterator[tuple[str, list[InstructionVector]]]:
    yield "random", random_vectors(vector, N_DRAWS, seed)
    yield "random_heads", random_head_vectors(model, vector, found, N_DRAWS, seed)
    yield "other_tasks", [other for other in others if other.task != vector.task][:N_DRAWS]
