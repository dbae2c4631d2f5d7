"""The demo's sweep of every task's vector beside the same sweep of its controls: the curves of a paper's figure."""

from collections.abc import Sequence

import pandas as pd

from ivlens.effects.results import HeadEffects
from ivlens.models.boot import TransformerBridge
from ivlens.steering.controls import random_head_vectors, random_vectors
from ivlens.steering.search import Grid, sweep_settings
from ivlens.tasks.task import Task
from ivlens.vectors.vector import InstructionVector

N_DRAWS = 2  # of each control and task; over the demo's eight tasks these are sixteen


def swept(
    model: TransformerBridge,
    task: Task,
    vector: InstructionVector,
    others: Sequence[InstructionVector],
    found: HeadEffects,
    grid: Grid,
    n_prompts: int | None,
) -> pd.DataFrame:
    """`sweep_settings` of a task's vector and of its controls on *select*, with the columns `task` and `condition`.

    Args:
        others: vectors of several tasks, this one's among them or not.
        found: the effects the vector was built from; their seed draws the controls and the prompts.
        n_prompts: at most so many; None: all.
    """
    seed = found.recipe.seed
    conditions = {
        "iv": [vector],
        "random": random_vectors(vector, N_DRAWS, seed),
        "random_heads": random_head_vectors(model, vector, found, N_DRAWS, seed),
        "other_tasks": [other for other in others if other.task != vector.task][:N_DRAWS],
    }
    # all in one sweep: vectors of one place share their passes
    named = {
        f"{condition} {number}": each for condition, many in conditions.items() for number, each in enumerate(many)
    }
    frame = sweep_settings(model, task, named, grid=grid, n_prompts=n_prompts, seed=seed)
    names = {name: (name.rpartition(" ")[0], each.task) for name, each in named.items()}
    return frame.assign(
        task=task.name,
        condition=[names[name][0] for name in frame["vector"]],
        vector=[names[name][1] for name in frame["vector"]],
    )
