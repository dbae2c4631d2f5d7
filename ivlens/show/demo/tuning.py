"""The demo's last part: what the built-in model forgets while LoRA trains it on a new task, guided or not."""

import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pandas as pd

from ivlens.common.progress import ticking
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.recipe import PromptRecipe
from ivlens.runs.suites.drills import drilled
from ivlens.tasks.bank import load_task
from ivlens.tuning.builder import guidance_by_name
from ivlens.tuning.finetuning import finetune
from ivlens.tuning.training.options import TuneOptions

NEW_TASK = "middle_of_three"  # the built-in model was not trained on it
EARLIER_TASKS = ("antonym", "english_french", "capitalize")
GUIDANCE = ("none", "instructions_lighter")
LR, BATCH_SIZE, JUDGE_EVERY, N_JUDGED = 4e-3, 32, 10, 32  # judged every 10 steps, on 32 inputs of each task


@dataclass(frozen=True, eq=False)
class TuningDemo:
    """Accuracies on the new task and on earlier ones, during and after the training.

    Attributes:
        scores: Accuracy on *test*, one row per task: its `role` (new or watched), the accuracy `before` training, and
            a column for the accuracy after training with each guidance.
        curves: Accuracy on *select* along the training, one row per guidance and judged `step`: on the `new` task, and
            the mean over the `watched` ones.
        steps: Optimizer steps of each training.
        seconds: Wall time of all trainings together.
    """

    scores: pd.DataFrame
    curves: pd.DataFrame
    steps: int
    seconds: float


def can_tune(model: str) -> bool:
    """Whether this part can run: the task is new to the built-in model only, and LoRA needs the package peft."""
    return model == "pocket" and find_spec("peft") is not None


def run_tuning(model: TransformerBridge, *, steps: int, recipe: PromptRecipe) -> TuningDemo:
    """Train on the new task once with each guidance; the given model itself is not changed."""
    start = time.perf_counter()
    new, earlier = drilled(load_task(NEW_TASK)), [load_task(name) for name in EARLIER_TASKS]
    options = TuneOptions(
        lr=LR, steps=steps, batch_size=BATCH_SIZE, judge_every=JUDGE_EVERY, n_prompts=N_JUDGED, seed=recipe.seed
    )
    scores, curves = pd.DataFrame(), list[dict[str, Any]]()
    for name in ticking(GUIDANCE, "teaching a task", "trainings"):
        guidance = guidance_by_name(name, model, new, recipe=recipe, earlier=earlier, seed=recipe.seed)
        result = finetune(model, new, guidance=guidance, options=options, recipe=recipe, watch=earlier)
        scores = result.scores[["task", "role", "before"]] if scores.empty else scores
        scores = scores.assign(**{name: result.scores["after"]})
        judged = [row for row in result.log.to_dict("records") if row["judged"] == 1]
        curves += [{"guidance": name, **{key: row[key] for key in ("step", "new", "watched")}} for row in judged]
    return TuningDemo(scores, pd.DataFrame(curves), steps, time.perf_counter() - start)
