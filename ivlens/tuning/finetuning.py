"""`finetune`: one task, in one call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ivlens.common.files import ready_folder
from ivlens.models.boot import TransformerBridge
from ivlens.tasks.task import SplitName, Task
from ivlens.tuning.data import training_set
from ivlens.tuning.exams import Exam, make_exam, mean_score
from ivlens.tuning.guidance import Guidance
from ivlens.tuning.learner import Learner, alone_in
from ivlens.tuning.loop import Row
from ivlens.tuning.methods import Method
from ivlens.tuning.options import TuneOptions


@dataclass(frozen=True, eq=False)
class TuneResult:
    """What `finetune` made.

    Attributes:
        model: The tuned model, adapters merged.
        log: One row for every step: loss and its terms as they are weighted, lr, gradient norm, seconds; `new` and
            `watched`, accuracies on *select*, in every judged one.
        scores: Accuracy on *test* inputs, `before` and `after`, of the new task and of every watched one.
        learner: Goes on to the next task, or saves the adapters.
        checkpoints: Folders written on the way, by step; of several processes, in the first.
    """

    model: TransformerBridge
    log: pd.DataFrame
    scores: pd.DataFrame
    learner: Learner
    checkpoints: Mapping[int, Path]


def finetune(
    model: TransformerBridge,
    task: Task,
    *,
    method: str | Method = "lora",
    guidance: Guidance | None = None,
    options: TuneOptions | None = None,
    watch: Sequence[Task] = (),
    n_watched: int = 32,
    n_samples: int | None = None,
    template: str = "plain",
    seed: int = 0,
    folder: str | Path | None = None,
    checkpoint_every: int | None = None,
    on_step: Callable[[Row], None] = lambda row: None,
    record: Callable[[int, TransformerBridge], object] | None = None,
    record_every: int = 50,
) -> TuneResult:
    """Teach `model` one task, from the inputs of its `fit` split. The model given stays as it is.

    Args:
        method: `full`, `lora`, ... see `METHODS`.
        guidance: What keeps the old computation alive; see `iv_guidance`.
        watch: Tasks that the model should not forget.
        n_watched: Prompts of each task in every judgement.
        n_samples: Prompts, with instructions drawn for each; None: one for every input.
        folder: Keeps the state of the training there (see `Learner.learn`), and the model in the end.
        checkpoint_every: Also write the model every so many steps, under `folder`.
        record: Given the step and the model as it is then every `record_every` steps, to measure it rather than write
            it; `ivlens.analysis.dynamics.Recorder` is made for that. The training goes on as if nobody had looked.

    Raises:
        ValueError: an option that does not exist or does not suit the model, or prompts that do not fit it.
        OSError: a folder that cannot be written, or that another training is using.
    """
    if checkpoint_every is not None and (folder is None or checkpoint_every < 1):
        raise ValueError(f"checkpoint_every is {checkpoint_every}, expected 1 or more, and a folder beside it.")
    if record_every < 1:
        raise ValueError(f"record_every is {record_every}, expected 1 or more.")
    if folder is not None:
        ready_folder(folder)  # before minutes of training, not after
    learner = Learner(model, method, seed=seed)
    data = training_set(model, task, list(task.split("fit", seed)), n_samples=n_samples, template=template, seed=seed)
    final, along = (_exams(model, task, watch, split, n_watched, template, seed) for split in ("test", "select"))
    before = final.sit(learner.trained)
    place = None if folder is None else Path(folder)
    along_the_way = _Along(learner, place, checkpoint_every, record, record_every, on_step)
    with alone_in(folder):  # until the model is written as well
        log = learner._learn(
            data,
            options,
            guidance,
            folder=place,
            on_step=along_the_way,
            judge=lambda plain: _summed_up(along.sit(plain), task),
        )
        if folder is not None:
            learner.save(Path(folder) / "model")
    after = final.sit(learner.trained)
    roles = ["new" if name == task.name else "watched" for name in after]
    scores = pd.DataFrame({"task": [*after], "role": roles, "before": [*before.values()], "after": [*after.values()]})
    tuned = learner.bridge(f"{model.cfg.model_name} + {task.name}")
    return TuneResult(tuned, log, scores, learner, along_the_way.checkpoints)


@dataclass
class _Along:
    """What is done with the model on its way: checkpoints, records, whatever the caller wants to be told."""

    learner: Learner
    folder: Path | None
    checkpoint_every: int | None
    record: Callable[[int, TransformerBridge], object] | None
    record_every: int
    on_step: Callable[[Row], None]
    checkpoints: dict[int, Path] = field(default_factory=dict)

    def __call__(self, row: Row) -> None:
        step = int(row["step"])
        if self.checkpoint_every is not None and self.folder is not None and step % self.checkpoint_every == 0:
            self.checkpoints[step] = self.learner.save(self.folder / f"step-{step:06d}")
        if self.record is not None and step % self.record_every == 0:
            self.record(step, self.learner.bridge())
        self.on_step(row)


def _exams(
    model: TransformerBridge, task: Task, watch: Sequence[Task], split: SplitName, n: int, template: str, seed: int
) -> Exam:
    asked = [task, *(one for one in watch if one.name != task.name)]
    return make_exam(model, [(one, one.split(split, seed)) for one in asked], n=n, template=template, seed=seed)


def _summed_up(scores: Mapping[str, float], task: Task) -> dict[str, float]:
    watched = {name: score for name, score in scores.items() if name != task.name}
    return {"new": scores[task.name]} | ({"watched": mean_score(watched)} if watched else {})
