"""`finetune`: one task, in one call. `Along`: what happens on the way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from ivlens.common.arguments import checked
from ivlens.common.checks import check_counts
from ivlens.common.files import ready_folder
from ivlens.common.names import path_of
from ivlens.common.progress import showing_progress
from ivlens.common.saves import listed
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.task import SplitName, Task, tasks_of
from ivlens.tuning.exams import Exam, make_exam, mean_score
from ivlens.tuning.guidance import Guidance
from ivlens.tuning.learner import Learner, alone_in
from ivlens.tuning.loop import Row
from ivlens.tuning.methods import Method
from ivlens.tuning.training.data import training_set
from ivlens.tuning.training.options import TuneOptions
from ivlens.tuning.training.state import check_state

MODEL = "model"  # of a training's folder: what came of it


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


@checked
@dataclass(frozen=True)
class Along:
    """What happens along a training.

    Attributes:
        folder: Keeps the state of the training there (see `Learner.learn`), and the model in the end.
        checkpoint_every: Also write the model every so many steps, under `folder`.
        on_step: Gets every row of the log as it is made.
        record: Given the step and the model as it is then every `record_every` steps, to measure it rather than write
            it; `ivlens.analysis.dynamics.Recorder` is made for that. The training goes on as if nobody had looked.
        record_every: Steps between two records.
        watch_recipe: How watched tasks are asked; None: as the new one, each by its own instructions.
        progress: Show bars: of the training and of its judgements.
    """

    folder: str | Path | None = None
    checkpoint_every: int | None = None
    on_step: Callable[[Row], None] = lambda row: None
    record: Callable[[int, TransformerBridge], object] | None = None
    record_every: int = 50
    watch_recipe: PromptRecipe | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.checkpoint_every is not None and self.folder is None:
            raise ValueError(f"checkpoint_every is {self.checkpoint_every}, expected a folder beside it; give one.")
        if self.folder is not None:
            path_of(self.folder, "folder")
        check_counts(self, checkpoint_every=1, record_every=1)


@checked
def finetune(
    model: TransformerBridge,
    task: Task,
    *,
    method: str | Method = "lora",
    guidance: Guidance | None = None,
    options: TuneOptions | None = None,
    recipe: PromptRecipe | None = None,
    watch: Sequence[Task] = (),
    along: Along | None = None,
) -> TuneResult:
    """Teach `model` one task, from the inputs of its `fit` split. The model given stays as it is.

        >>> finetune(model, task, options=TuneOptions(steps=100, seed=1), watch=[other], along=Along("out/task"))

    Args:
        method: `full`, `lora`, ... see `METHODS`.
        guidance: What keeps the old computation alive; see `iv_guidance`.
        options: How it is trained, on how many samples, with which seed.
        recipe: How prompts are made, of training and of judgements, and the seed of the splits; None: the task's
            instruction, or demonstrations where it has none. Watched tasks have instructions of their own.
        watch: Tasks that are judged along the training; the new one is, in any case.
        along: What happens on the way: files, checkpoints, records.

    Raises:
        TypeError: a name in the place of a watched task.
        ValueError: an option that does not exist or does not suit the model, prompts that do not fit it, another task
            of the same name to watch, or a folder with models that this one cannot take the place of.
        OSError: a folder that cannot be written, or that another training is using.
    """
    options, recipe, along = options or TuneOptions(), recipe or PromptRecipe(), along or Along()
    with showing_progress(along.progress):
        return _finetuned(model, task, method, guidance, options, recipe, watch, along)


def _finetuned(
    model: TransformerBridge,
    task: Task,
    method: str | Method,
    guidance: Guidance | None,
    options: TuneOptions,
    recipe: PromptRecipe,
    watch: Sequence[Task],
    along: Along,
) -> TuneResult:
    # before minutes of training, not after
    others = tasks_of("watch", watch, beside=[task])
    folder = None if along.folder is None else ready_folder(along.folder)
    if folder is not None:
        check_training(folder)
    learner = Learner(model, method)
    examples = task.split("fit", recipe.seed)
    data = training_set(model, task, examples, recipe=recipe, n_samples=options.n_samples, seed=options.seed)
    final, judged = (_exam(model, task, others, split, recipe, along, options) for split in ("test", "select"))
    before = final.sit(learner.trained)
    on_the_way = _OnTheWay(learner, along, folder)
    with alone_in(folder):  # until the model is written as well
        log = learner._learn(
            data,
            options,
            guidance,
            folder=folder,
            on_step=on_the_way,
            judge=lambda plain: _summed_up(judged.sit(plain), task),
        )
        if folder is not None:
            learner.save(folder / MODEL)
    after = final.sit(learner.trained)
    roles = ["new" if name == task.name else "watched" for name in after]
    scores = pd.DataFrame({"task": [*after], "role": roles, "before": [*before.values()], "after": [*after.values()]})
    tuned = learner.bridge(f"{model.cfg.model_name} + {task.name}")
    return TuneResult(tuned, log, scores, learner, on_the_way.checkpoints)


def check_training(folder: str | Path) -> None:
    """Refuse a folder that no training can go on in, or whose models it could not replace in the end.

    Raises:
        ValueError: the state there is damaged or of another version of ivlens, or a list of what was saved is not one.
    """
    root = Path(folder)
    check_state(root)
    for place in (root / MODEL, *sorted(root.glob("step-*"))):
        listed(place)


@dataclass
class _OnTheWay:
    """What is done with the model after a step: checkpoints, records, whatever the caller wants to be told."""

    learner: Learner
    along: Along
    folder: Path | None
    checkpoints: dict[int, Path] = field(default_factory=dict)

    def __call__(self, row: Row) -> None:
        step, along = int(row["step"]), self.along
        if along.checkpoint_every is not None and self.folder is not None and step % along.checkpoint_every == 0:
            self.checkpoints[step] = self.learner.save(self.folder / f"step-{step:06d}")
        if along.record is not None and step % along.record_every == 0:
            along.record(step, self.learner.bridge())
        along.on_step(row)


def _exam(
    model: TransformerBridge,
    task: Task,
    others: Sequence[Task],
    split: SplitName,
    recipe: PromptRecipe,
    along: Along,
    options: TuneOptions,
) -> Exam:
    theirs = recipe if along.watch_recipe is None else replace(along.watch_recipe, seed=recipe.seed)
    recipes = {task.name: recipe} | {one.name: theirs.for_other_tasks() for one in others}
    questions = [(one, one.split(split, recipe.seed)) for one in (task, *others)]
    return make_exam(model, questions, recipe=recipes, n_prompts=options.n_prompts, seed=options.seed)


def _summed_up(scores: Mapping[str, float], task: Task) -> dict[str, float]:
    watched = {name: score for name, score in scores.items() if name != task.name}
    return {"new": scores[task.name]} | ({"watched": mean_score(watched)} if watched else {})
