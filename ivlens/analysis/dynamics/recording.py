"""Measuring a series of checkpoints, one at a time, each kept as soon as it is done."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ivlens.analysis.dynamics.comparison import Dynamics, compare
from ivlens.analysis.dynamics.stages import Stage, TrackOptions, check_k, measure_stage
from ivlens.common.files import file_name
from ivlens.common.kept import check_key, check_version, key_of, version_in
from ivlens.common.names import path_of
from ivlens.common.progress import ticking
from ivlens.models.boot import TransformerBridge
from ivlens.models.checkpoints import Checkpoint, CheckpointSeries
from ivlens.prompts.recipe import plain_options
from ivlens.tasks.task import Task

logger = logging.getLogger("ivlens")


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
        folder: Keeps each checkpoint's measurements (`<name>.safetensors`): the same call goes on where it stopped, and
            opens no model whose measurements are there.
        on_checkpoint: Told of each checkpoint before it is measured.

    Raises:
        ValueError: tasks that cannot be measured, models of another shape, or measurements of something else in the
            folder.
    """
    options = options or TrackOptions()
    kept = _Kept(None if folder is None else path_of(folder, "folder"), tasks, options, series.first.key())
    keys = {one.name: kept.key(one.key(), is_first=number == 0) for number, one in enumerate(series)}
    # what cannot be gone on from is said before anything is measured
    there = {name: kept.load(name, key) for name, key in keys.items()}
    first: TransformerBridge | None = None
    stages = []
    for number, checkpoint in enumerate(ticking(list(series), "checkpoints", "checkpoints")):
        on_checkpoint(checkpoint)
        stage = there[checkpoint.name]
        if stage is None:
            first = series.first.open() if first is None else first
            model = first if number == 0 else checkpoint.open()
            start = None if number == 0 else first
            stage = measure_stage(model, tasks, options, name=checkpoint.name, step=checkpoint.step, first=start)
            del model
            kept.save(stage, keys[checkpoint.name])
        stages.append(stage)
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
        folder: Keeps each record, for trainings that are interrupted and go on; None: nowhere.
        offset: Added to the steps of what is recorded: steps of earlier trainings of the same model.

    Raises:
        ValueError: the options ask for more heads than the model has, or the folder has records of another version of
            ivlens.
    """

    model: TransformerBridge
    tasks: Sequence[Task]
    options: TrackOptions = field(default_factory=TrackOptions)
    folder: Path | None = None
    offset: int = 0
    stages: dict[str, Stage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # here and not at the first record, after so many steps of training
        check_k(self.model, self.options.k)
        self._kept().check_versions()

    def __call__(self, step: int, model: TransformerBridge) -> None:
        """Measure the model after `step` steps; a step that is kept in the folder is not measured again."""
        self._begin()
        self._measure(step + self.offset, model)

    def dynamics(self) -> Dynamics:
        """All that was recorded, in order, compared with the first model.

        Raises:
            ValueError: nothing was recorded, or the folder has a record of other tasks or options.
        """
        self._begin()
        kept = self._kept()
        found = {stage.name: stage for stage in kept.all()} | self.stages
        return compare(sorted(found.values(), key=lambda stage: stage.step))

    def _begin(self) -> None:
        if not any(stage.step == 0 for stage in self.stages.values()):
            self._measure(0, self.model)

    def _measure(self, step: int, model: TransformerBridge) -> None:
        kept, name = self._kept(), f"step-{step:06d}"
        key = kept.key(Checkpoint(name, model).key(), is_first=step == 0)
        stage = kept.load(name, key)
        if stage is None:
            first = None if step == 0 else self.model
            stage = measure_stage(model, self.tasks, self.options, name=name, step=step, first=first)
            kept.save(stage, key)
        self.stages[name] = stage

    def _kept(self) -> "_Kept":
        return _Kept(self.folder, self.tasks, self.options, Checkpoint("first", self.model).key())


@dataclass(frozen=True)
class _Kept:
    """Measurements on disk; `first` tells the model that all others are measured against."""

    folder: Path | None
    tasks: Sequence[Task]
    options: TrackOptions
    first: dict[str, Any]

    def load(self, name: str, key: str) -> Stage | None:
        path = self._path(name)
        if path is None or not path.exists():
            return None
        try:
            stage, found = Stage.load(path)
        except ValueError as error:
            logger.warning("%s; it is measured again.", error)
            return None
        check_key(path, found, key)
        return stage

    def save(self, stage: Stage, key: str) -> None:
        path = self._path(stage.name)
        if path is not None:
            stage.save(path, key)

    def all(self) -> list[Stage]:
        """All stages in a recorder's folder; those of another recording are refused, as they are of other models.

        Raises:
            ValueError: a record of other tasks or options, or a damaged one.
        """
        found = []
        for path in [] if self.folder is None else sorted(self.folder.glob("step-*.safetensors")):
            stage, key = Stage.load(path)
            check_key(path, key, self.key({"model": stage.model.key}, is_first=stage.step == 0))
            found.append(stage)
        return found

    def check_versions(self) -> None:
        """Refuse a recorder's folder with records of another version of ivlens."""
        for path in [] if self.folder is None else sorted(self.folder.glob("step-*.safetensors")):
            try:
                _, key = Stage.load(path)
            except ValueError:  # a damaged one is measured again
                continue
            check_version(path, version_in(key))

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / file_name(name, ".safetensors")

    def key(self, checkpoint: dict[str, Any], *, is_first: bool) -> str:
        """The key of a measurement; the first weights are part of it, as the distance from them is measured."""
        tasks = [task.full_hash() for task in self.tasks]
        first = None if is_first else self.first
        return key_of(
            {"checkpoint": checkpoint, "first": first, "tasks": tasks, "options": plain_options(self.options)}
        )
