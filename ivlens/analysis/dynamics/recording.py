"""Measure Instruction Vectors in checkpoints, or in a model in training; a store keeps each measurement at once."""

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
    """Measure every checkpoint of a series, and compare each with the first.

    At most two models are open at a time: the first one, and the one that is measured.

    Args:
        folder: A store (`ivlens.common.store`) that keeps the measurement of each checkpoint as soon as it is made. The
            same call goes on where it stopped, and opens no model whose measurement is there. None: nothing is kept.
        on_checkpoint: Called with each checkpoint before it is measured.

    Raises:
        ValueError: a task cannot be measured, a model has another shape than the first, or the folder holds other
            things.
    """
    options = options or TrackOptions()
    store = None if folder is None else Store(folder)
    recording = {} if store is None else _recording(series.first.key(), tasks, options)
    first: TransformerBridge | None = None  # opened by the first measurement that needs it: often all are in the store
    stages = []
    for number, checkpoint in enumerate(ticking(list(series), "checkpoints", "checkpoints")):
        on_checkpoint(checkpoint)

        # the defaults keep this round's values; without them a function made in a loop uses the latest ones
        def measure(checkpoint: Checkpoint = checkpoint, number: int = number) -> Stage:
            nonlocal first
            first = series.first.open() if first is None else first
            model, start = (first, None) if number == 0 else (checkpoint.open(), first)
            return measure_stage(model, tasks, options, name=checkpoint.name, step=checkpoint.step, first=start)

        if store is None:
            stages.append(measure())
        else:
            what = _description(recording, checkpoint.key(), checkpoint.name, checkpoint.step)
            stages.append(_measured_once(store, what, measure))
    return compare(stages)


@dataclass
class Recorder:
    """Measures a model during training, without saving checkpoints: `finetune(..., along=Along(record=recorder))`.

        >>> recorder = Recorder(model, earlier_tasks)
        >>> finetune(model, new_task, along=Along(record=recorder, record_every=50))
        >>> recorder.dynamics().tasks

    Another training loop can call it, too, with the number of a step and a bridge. The model before training is
    measured with the first record, or by the first call of `dynamics`.

    Attributes:
        model: The model before training.
        tasks: Tasks that are measured in every record.
        options: How they are measured.
        folder: The folder of a store (`ivlens.common.store`) for the records, one for each training: one that was
            interrupted and goes on finds its earlier records there. None: nothing is kept.
        offset: Added to the step of every record: the number of steps of earlier trainings of the same model.
        stages: The measurements that were made or read since the recorder was made, by name (`step-000050`).
        training: What tells this training from others with records in the same folder, as plain values: only its own
            records are read. None: the folder has records of one training alone.

    Raises:
        ValueError: the options ask for more heads than the model has, or the folder holds other things.
    """

    model: TransformerBridge
    tasks: Sequence[Task]
    options: TrackOptions = field(default_factory=TrackOptions)
    folder: str | Path | None = None
    offset: int = 0
    stages: dict[str, Stage] = field(default_factory=dict)
    training: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        # checked here, and not at the first record, which comes after many steps of training
        check_k(self.model, self.options.k)
        self._store = None if self.folder is None else Store(self.folder)
        if self._store is None:
            return
        self._recording = _recording(Checkpoint("first", self.model).key(), self.tasks, self.options)
        if self.training is not None:
            self._recording["training"] = json.loads(canonical(self.training))
        n_others = len(self._store.entries(KIND)) - len(self._records())
        if n_others:  # no error, but the user may have expected to go on from these records
            what = "of another model or training, other tasks, options or versions, which are not used"
            logger.warning("store %s has %d records %s.", self.folder, n_others, what)

    def __call__(self, step: int, model: TransformerBridge) -> None:
        """Measure the model after `step` steps; a measurement of the same model in the store is read instead."""
        self._begin()
        self._measure(step + self.offset, model)

    def dynamics(self) -> Dynamics:
        """All records in the order of their steps, compared with the model before training.

        Raises:
            ValueError: nothing was recorded, or the folder has records of several trainings.
        """
        self._begin()
        found = dict(self.stages)
        # steps before an interruption were measured by another process, and are only in the store; later ones than the
        # first that was measured now are of another training
        begun = min((stage.step for stage in found.values() if stage.step > 0), default=None)
        earlier = [entry for entry in self._records() if begun is None or entry.what["step"] < begun]
        names = [str(entry.labels["name"]) for entry in earlier]
        if len(set(names)) < len(names):
            raise ValueError(
                f"store {str(self.folder)!r} has records of several trainings of one model, expected one; give "
                "each training a folder of its own."
            )
        for name, entry in zip(names, earlier, strict=True):
            found.setdefault(name, _stage_of(entry))
        return compare(sorted(found.values(), key=lambda stage: stage.step))

    def _begin(self) -> None:
        """Measure the model before training, if that has not been done."""
        if not any(stage.step == 0 for stage in self.stages.values()):
            self._measure(0, self.model)

    def _measure(self, step: int, model: TransformerBridge) -> None:
        name, first = f"step-{step:06d}", None if step == 0 else self.model

        def measure() -> Stage:
            return measure_stage(model, self.tasks, self.options, name=name, step=step, first=first)

        if self._store is None:
            self.stages[name] = measure()
        else:
            what = _description(self._recording, Checkpoint(name, model).key(), name, step)
            self.stages[name] = _measured_once(self._store, what, measure)

    def _records(self) -> list[Entry]:
        """The store's measurements with the same first model, tasks, options and versions."""
        found = [] if self._store is None else self._store.entries(KIND)
        return [entry for entry in found if entry.what.get("recording") == self._recording]


def _recording(first: Mapping[str, Any], tasks: Sequence[Task], options: TrackOptions) -> dict[str, Any]:
    """What all measurements of one series depend on: the first model, as distances start there, tasks and options."""
    hashes = [task.full_hash() for task in tasks]
    found = {"first": dict(first), "tasks": hashes, "options": plain_options(options), **versions()}
    return json.loads(canonical(found))  # lists in place of tuples, as descriptions read from a store have


def _description(recording: Mapping[str, Any], model: Mapping[str, Any], name: str, step: int | None) -> dict[str, Any]:
    """The description in a store of one measurement: everything that it depends on."""
    return {"kind": KIND, "recording": dict(recording), "model": dict(model), "name": name, "step": step}


def _measured_once(store: Store, what: Mapping[str, Any], measure: Callable[[], Stage]) -> Stage:
    """The measurement of this description in the store; where there is none, it is made and kept."""
    kept = store.read(what, _stage_of)
    if kept is not None:
        return kept
    labels = {"name": what["name"], "step": what["step"]}
    return _stage_of(store.obtain(what, lambda folder: write_stage(measure(), folder), labels))


def _stage_of(entry: Entry) -> Stage:
    """The measurement that a store's result holds."""
    return Stage.load(entry.path(STAGE_FILE))


def write_stage(stage: Stage, folder: Path) -> None:
    """Write a measurement into the folder of a result: all of it as safetensors, and each task's means as a table."""
    stage.save(folder / STAGE_FILE)
    rows = [
        {"task": task, **{name: float(getattr(found, name).mean()) for name in ("accuracy", "prob", "logprob")}}
        for task, found in stage.tasks.items()
    ]
    pd.DataFrame(rows).to_parquet(folder / TABLE, index=False)
