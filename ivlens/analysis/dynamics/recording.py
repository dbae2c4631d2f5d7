"""Measuring a series of checkpoints, one at a time, each kept as soon as it is done."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ivlens.analysis.dynamics.comparison import Dynamics, compare
from ivlens.analysis.dynamics.stages import Stage, TrackOptions, check_k, measure_stage
from ivlens.common.progress import ticking
from ivlens.common.store.entries import TABLE, Entry
from ivlens.common.store.keys import canonical, versions
from ivlens.common.store.store import Store
from ivlens.models.boot import TransformerBridge
from ivlens.models.checkpoints import Checkpoint, CheckpointSeries
from ivlens.prompts.recipe import plain_options
from ivlens.tasks.task import Task

logger = logging.getLogger("ivlens")

KIND, STAGE_FILE = "stage", "stage.safetensors"


def track(
    series: CheckpointSeries,
    tasks: Sequence[Task],
    options: TrackOptions | None = None,
    *,
    folder: str | Path | None = None,
    on_checkpoint: Callable[[Checkpoint], None] = lambda checkpoint: None,
) -> Dynamics:
    """Measure every checkpoint of a series and compare it with the first.

    The first model stays open; of the others one at a time.

    Args:
        folder: A store (`ivlens.common.store`) for the measurements of each checkpoint: the same call goes on where it
            stopped, and opens no model whose measurements are there. None: nothing is kept.
        on_checkpoint: Told of each checkpoint before it is measured.

    Raises:
        ValueError: tasks that cannot be measured, models of another shape, or a folder with other things in it.
    """
    options = options or TrackOptions()
    store = None if folder is None else Store(folder)
    recording = {} if store is None else _recording(series.first.key(), tasks, options)
    first: TransformerBridge | None = None
    stages = []
    for number, checkpoint in enumerate(ticking(list(series), "checkpoints", "checkpoints")):
        on_checkpoint(checkpoint)

        def measure(checkpoint: Checkpoint = checkpoint, number: int = number) -> Stage:
            nonlocal first
            first = series.first.open() if first is None else first
            model, start = (first, None) if number == 0 else (checkpoint.open(), first)
            return measure_stage(model, tasks, options, name=checkpoint.name, step=checkpoint.step, first=start)

        if store is None:
            stages.append(measure())
        else:
            what = _what(recording, checkpoint.key(), checkpoint.name, checkpoint.step)
            stages.append(_kept(store, what, measure))
    return compare(stages)


@dataclass
class Recorder:
    """Measures a model while it is trained, without saving it: `finetune(..., along=Along(record=recorder))`.

        >>> recorder = Recorder(model, earlier_tasks)
        >>> finetune(model, new_task, along=Along(record=recorder, record_every=50))
        >>> recorder.dynamics().tasks

    Called with a step and a bridge, it can be used in any other training loop as well. The model it begins with is
    measured when the first record is made, or by the first call of `dynamics`.

    Attributes:
        model: The model before training.
        tasks: What is watched.
        options: What is measured.
        folder: A store (`ivlens.common.store`) for the records, so that a training that is interrupted and goes on has
            all of them; it may hold other results too. None: nothing is kept.
        offset: Added to the steps of what is recorded: steps of earlier trainings of the same model.

    Raises:
        ValueError: the options ask for more heads than the model has, or the folder has other things in it.
    """

    model: TransformerBridge
    tasks: Sequence[Task]
    options: TrackOptions = field(default_factory=TrackOptions)
    folder: str | Path | None = None
    offset: int = 0
    stages: dict[str, Stage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # here and not at the first record, after so many steps of training
        check_k(self.model, self.options.k)
        self._store = None if self.folder is None else Store(self.folder)
        if self._store is None:
            return
        self._recording = _recording(Checkpoint("first", self.model).key(), self.tasks, self.options)
        n_others = len(self._store.entries(KIND)) - len(self._records())
        if n_others:  # they do no harm, but whoever expects to go on from them should know
            what = "of another model, other tasks, options or versions, which are not used"
            logger.warning("store %s has %d records %s.", self.folder, n_others, what)

    def __call__(self, step: int, model: TransformerBridge) -> None:
        """Measure the model after `step` steps; a step that is in the store is not measured again."""
        self._begin()
        self._measure(step + self.offset, model)

    def dynamics(self) -> Dynamics:
        """All that was recorded, in order, compared with the first model.

        Raises:
            ValueError: nothing was recorded.
        """
        self._begin()
        found = dict(self.stages)
        for entry in self._records():
            if entry.labels["name"] not in found:
                found[str(entry.labels["name"])] = _stage_of(entry)
        return compare(sorted(found.values(), key=lambda stage: stage.step))

    def _begin(self) -> None:
        if not any(stage.step == 0 for stage in self.stages.values()):
            self._measure(0, self.model)

    def _measure(self, step: int, model: TransformerBridge) -> None:
        name, first = f"step-{step:06d}", None if step == 0 else self.model

        def measure() -> Stage:
            return measure_stage(model, self.tasks, self.options, name=name, step=step, first=first)

        if self._store is None:
            self.stages[name] = measure()
        else:
            what = _what(self._recording, Checkpoint(name, model).key(), name, step)
            self.stages[name] = _kept(self._store, what, measure)

    def _records(self) -> list[Entry]:
        """What the store has of this very recording."""
        found = [] if self._store is None else self._store.entries(KIND)
        return [entry for entry in found if entry.what.get("recording") == self._recording]


def _recording(first: Mapping[str, Any], tasks: Sequence[Task], options: TrackOptions) -> dict[str, Any]:
    """What all measurements of one series have in common; the first weights, as distances are measured from them."""
    hashes = [task.full_hash() for task in tasks]
    found = {"first": dict(first), "tasks": hashes, "options": plain_options(options), **versions()}
    return json.loads(canonical(found))  # as a store has it, to be compared with what is there


def _what(recording: Mapping[str, Any], model: Mapping[str, Any], name: str, step: int | None) -> dict[str, Any]:
    """Everything that one measurement depends on."""
    return {"kind": KIND, "recording": dict(recording), "model": dict(model), "name": name, "step": step}


def _kept(store: Store, what: Mapping[str, Any], measure: Callable[[], Stage]) -> Stage:
    """The measurement in the store; where there is none, it is made and kept."""
    kept = store.read(what, _stage_of)
    if kept is not None:
        return kept
    labels = {"name": what["name"], "step": what["step"]}
    return _stage_of(store.obtain(what, lambda folder: write_stage(measure(), folder), labels))


def _stage_of(entry: Entry) -> Stage:
    return Stage.load(entry.path(STAGE_FILE))


def write_stage(stage: Stage, folder: Path) -> None:
    """Put a measurement into the folder of a result: all of it, and a table of each task's means."""
    stage.save(folder / STAGE_FILE)
    rows = [
        {"task": task, **{name: float(getattr(found, name).mean()) for name in ("accuracy", "prob", "logprob")}}
        for task, found in stage.tasks.items()
    ]
    pd.DataFrame(rows).to_parquet(folder / TABLE, index=False)
