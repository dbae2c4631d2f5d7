"""`build_terse`: teach a model to answer the instructions of half of the built-in tasks with nothing but the answer."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from ivlens.common.names import path_of
from ivlens.common.saves import filling
from ivlens.models.boot import TransformerBridge
from ivlens.models.known import known_model
from ivlens.models.load import load_model
from ivlens.runs.terse.plan import TAUGHT, TerseOptions, tasks_named, taught_instructions
from ivlens.tuning.finetuning import MODEL
from ivlens.tuning.learner import Learner
from ivlens.tuning.loop import Row
from ivlens.tuning.training.data import TrainingSet, training_set

RECORD = "record.json"


@dataclass(frozen=True)
class Built:
    """A model that was taught.

    Attributes:
        folder: The folder of the adapter (in peft's format) or of the whole model, in half precision; `load_model`
            opens it.
        seconds: The time of the steps of this call, without what an earlier one had done.
    """

    folder: Path
    seconds: float


def lessons(model: TransformerBridge, options: TerseOptions) -> TrainingSet:
    """The prompts of all taught tasks, as many of each: *fit* inputs, each with one of the taught instructions."""
    n_each = -(-options.tune.n_samples // len(TAUGHT)) if options.tune.n_samples else None
    parts = []
    for task in tasks_named(TAUGHT):
        recipe = replace(options.recipe, instruction=taught_instructions(task))
        fit = task.split("fit", options.recipe.seed)
        parts.append(training_set(model, task, fit, recipe=recipe, n_samples=n_each, seed=options.seed))
    return TrainingSet.joined(parts)


def build_terse(
    folder: str | Path,
    options: TerseOptions | None = None,
    *,
    model: TransformerBridge | None = None,
    on_step: Callable[[Row], None] = lambda row: None,
) -> Built:
    """Teach a model to answer instructions tersely, and write it; the same call goes on after an interruption.

    Only *fit* inputs of `TAUGHT` tasks are trained on, with four in five of their instructions. The state of the
    training is saved in `folder` every `save_every` steps.

    Args:
        folder: Gets the adapter or the whole model in `model/`, `record.json` (how it was made, with the loss of every
            step) and the state of the training; `load_model` opens it.
        model: A model that is open; None: `options.model` is loaded, in float32.
        on_step: Called with every row of the log.

    Raises:
        ValueError: the folder holds the state of another training.
    """
    import json
    import time

    options, target = options or TerseOptions(), path_of(folder, "folder")
    first = load_model(options.model, dtype="float32") if model is None else model
    learner = Learner(first, options.trained)
    data, began = lessons(first, options), time.perf_counter()
    log = learner.learn(data, options.tune, folder=target, on_step=on_step)
    seconds = time.perf_counter() - began
    learner.trained = learner.trained.to(torch.float16)  # half of the size, far below the step of a training
    if known_model(options.model) is not None:
        # by its name: its folder is another one on every machine
        for config in cast("dict[str, Any]", getattr(learner.trained, "peft_config", {})).values():
            config.base_model_name_or_path = options.model
    written = learner.save(target / MODEL)
    with filling(target) as scratch:
        record = {
            "options": asdict(options) | {"lr": options.tune.lr},
            "taught": TAUGHT,
            "n_prompts": len(data),
            "log": log.to_dict("records"),
        }
        (scratch / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    return Built(written, seconds)
