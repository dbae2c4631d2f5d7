"""Accuracy by layer and strength for the vector of a task and for its controls: the data of the demo's curves."""

from collections.abc import Sequence

import pandas as pd

from ivlens.effects.results import HeadEffects
from ivlens.models.boot import TransformerBridge
from ivlens.steering.controls import random_head_vectors, random_vectors
from ivlens.steering.search import Grid, sweep_settings
from ivlens.tasks.task import Task
from ivlens.vectors.vector import InstructionVector

N_DRAWS = 2  # vectors of each control for each task: over the demo's eight tasks, sixteen of each control


def swept(
    model: TransformerBridge,
    task: Task,
    vector: InstructionVector,
    others: Sequence[InstructionVector],
    found: HeadEffects,
    grid: Grid,
    n_prompts: int | None,
) -> pd.DataFrame:
    """The table of `sweep_settings` for a task's vector and its controls on *select*.

    The columns `task` and `condition` (`iv`, `random`, `random_heads`, `other_tasks`) are added.

    Args:
        others: vectors of several tasks; that of this task may be among them and is left out.
        found: the effects that the vector was built from; their seed draws the controls and the prompts.
        n_prompts: the largest number of *select* prompts; None: all.
    """
    seed = found.recipe.seed
    conditions = {
        "iv": [vector],
        "random": random_vectors(vector, N_DRAWS, seed),
        "random_heads": random_head_vectors(model, vector, found, N_DRAWS, seed),
        "other_tasks": [other for other in others if other.task != vector.task][:N_DRAWS],
    }
    # one sweep for all of them: vectors that are added at the same place share forward passes
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
