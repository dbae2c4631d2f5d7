"""`terse_card`: what a terse model answers on *test* inputs, of what it was taught and of what was kept from it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from ivlens.common.intervals import t_interval, wilson
from ivlens.common.progress import ticking
from ivlens.forward.asking import Room, prompts_for
from ivlens.forward.scoring import greedy_correct
from ivlens.models.boot import TransformerBridge
from ivlens.models.fingerprint import model_identity
from ivlens.prompts.recipe import PromptRecipe
from ivlens.runs.terse.plan import HELD_OUT, TAUGHT, TerseOptions, kept_instructions, tasks_named, taught_instructions
from ivlens.tasks.task import SplitName, Task


@dataclass(frozen=True, eq=False)
class TerseCard:
    """What was measured.

    Attributes:
        table: One row for each task and condition: `taught` (its instructions that were trained on), `kept` (those that
            were not), `bare` (no instruction), `shots` (five demonstrations, no instruction); `role`: `taught` or
            `held out`. `accuracy` and `exact` with Wilson's 95 % interval, and `n`, the number of inputs.
        about: The model, the split and the number of prompts.
    """

    table: pd.DataFrame
    about: dict[str, Any]

    def means(self) -> pd.DataFrame:
        """Mean accuracy over tasks for each role and condition, with a 95 % t interval over tasks."""
        rows = []
        groups: dict[tuple[str, str], list[dict[Any, Any]]] = {}
        for row in self.table.to_dict("records"):
            groups.setdefault((row["role"], row["condition"]), []).append(row)
        for (role, condition), own in groups.items():
            mean, low, high = t_interval([row["accuracy"] for row in own])
            row = {"role": role, "condition": condition, "accuracy": mean, "low": low, "high": high}
            rows.append(row | {"exact": sum(row["exact"] for row in own) / len(own), "n_tasks": len(own)})
        return pd.DataFrame(rows)


def terse_card(
    model: TransformerBridge,
    *,
    options: TerseOptions | None = None,
    split: SplitName = "test",
    n_prompts: int = 48,
    tasks: Sequence[str] = (*TAUGHT, *HELD_OUT),
) -> TerseCard:
    """Measure a terse model on inputs that it was not trained on.

    Held-out tasks have no trained instruction, so all of theirs are in the condition `kept`.

    Args:
        model: The taught model.
        options: How it was taught: template and seed are those of the prompts.
        n_prompts: At most so many inputs of each task.
    """
    options = options or TerseOptions()
    rows: list[dict[str, Any]] = []
    for task in ticking(tasks_named(tuple(tasks)), "the card", "tasks"):
        role = "taught" if task.name in TAUGHT else "held out"
        for condition, recipe in _conditions(task, options.recipe).items():
            rows.append(
                {
                    "task": task.name,
                    "role": role,
                    "condition": condition,
                    **_asked(model, task, recipe, split, n_prompts),
                }
            )
    made = {"model": model_identity(model).key, "split": split, "n_prompts": n_prompts, "template": options.template}
    return TerseCard(pd.DataFrame(rows), made)


def _conditions(task: Task, recipe: PromptRecipe) -> dict[str, PromptRecipe]:
    """How the task is asked under each condition."""
    if task.name in TAUGHT:
        told = {"taught": taught_instructions(task), "kept": kept_instructions(task)}
    else:
        told = {"kept": task.instructions}
    found = {name: replace(recipe, instruction=texts, n_shots=0) for name, texts in told.items()}
    bare, shots = (replace(recipe, instruction=None, n_shots=n) for n in (0, 5))
    return found | {"bare": bare, "shots": shots}


def _asked(model: TransformerBridge, task: Task, recipe: PromptRecipe, split: SplitName, n: int) -> dict[str, Any]:
    """Accuracy on the inputs of one split."""
    examples = task.split(split, recipe.seed)[:n]
    batch = prompts_for(model, task, examples, recipe, corruption=None, room=Room("answer"))
    right = greedy_correct(model, batch)
    found: dict[str, Any] = {"n": len(batch)}
    for name in ("accuracy", "exact"):
        k = int(getattr(right, name).sum())
        low, high = wilson(k, len(batch))
        found |= {name: k / len(batch), f"{name}_lo": low, f"{name}_hi": high}
    return found
