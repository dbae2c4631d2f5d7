"""`finetune`: teach a model one task, in one call. `Along`: files, checkpoints and records on the way."""

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

MODEL = "model"  # the folder of the tuned model, inside the folder of its training


@dataclass(frozen=True, eq=False)
class TuneResult:
    """The result of `finetune`: the tuned model, its log and its scores.

    Attributes:
        model: The tuned model, with adapters merged into its weights.
        log: One row for every step: the loss and its weighted terms, learning rate, gradient norm, seconds. Judged rows
            also have `new` and `watched`: accuracy on *select* for the new task, and its mean over watched tasks.
        scores: One row for the new task and one for each watched task: accuracy on *test* inputs `before` and `after`.
        learner: The model with its method, to learn a further task or to save the adapters.
        checkpoints: Folders of checkpoints, by step; with several processes only the first has any.
    """

    model: TransformerBridge
    log: pd.DataFrame
    scores: pd.DataFrame
    learner: Learner
    checkpoints: Mapping[int, Path]


@checked
@dataclass(frozen=True)
class Along:
    """What `finetune` writes, records and reports while it trains.

    Attributes:
        folder: Folder for the state of the training (see `Learner.learn`) and, in the end, for the model.
        checkpoint_every: Also write the model into `folder` every so many steps.
        on_step: Called with every row of the log as soon as it is made.
        record: Called with the step and a copy of the model every `record_every` steps, to measure the model along the
            way; `ivlens.analysis.dynamics.Recorder` is made for that. It does not change the training.
        record_every: Steps between two records.
        watch_recipe: How prompts of watched tasks are made; None: as those of the new task, with instructions of their
            own.
        progress: Show progress bars of the training and of its judgements.
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
    """Teach a copy of `model` one task, from the inputs of its `fit` split, and judge it before and after.

    Example:
        >>> import ivlens
        >>> from ivlens.tuning import TuneOptions, finetune
        >>> model, new = ivlens.load_model("pocket"), ivlens.load_task("middle_of_three")
        >>> options = TuneOptions(steps=2, batch_size=4, n_prompts=8)  # far too few: to see what comes back
        >>> tuned = finetune(model, new, method="lora", options=options, watch=[ivlens.load_task("antonym")])
        >>> list(tuned.scores["task"]), list(tuned.scores.columns)
        (['middle_of_three', 'antonym'], ['task', 'role', 'before', 'after'])

    Args:
        method: Name of a method, such as `full` or `lora` (see `METHODS`), or a method with options of its own.
        guidance: Terms that keep what the model computed before; `iv_guidance` makes them. None: plain training.
        options: Learning rate, number of steps and samples, seed and so on.
        recipe: How prompts of training and of judgements are made, with the seed of the splits; None: the task's
            instruction, or demonstrations where it has none. Watched tasks have instructions of their own.
        watch: Tasks that are judged along with the new one, to see what is forgotten.
        along: Files, checkpoints and records on the way.

    Raises:
        TypeError: a name in the place of a watched task.
        ValueError: an option that does not exist or does not suit the model, prompts that do not fit the model, two
            tasks of the same name, or a folder that holds something which this training cannot replace.
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
    """The training and its judgements, once the arguments are checked."""
    # everything else that can be refused is checked before minutes of training, not after
    others = tasks_of("watch", watch, beside=[task])
    folder = None if along.folder is None else ready_folder(along.folder)  # made, and tried for writing
    if folder is not None:
        check_training(folder)
    learner = Learner(model, method)
    examples = task.split("fit", recipe.seed)
    data = training_set(model, task, examples, recipe=recipe, n_samples=options.n_samples, seed=options.seed)
    final, judged = (_exam(model, task, others, split, recipe, along, options) for split in ("test", "select"))
    before = final.sit(learner.trained)  # of the first model: its weights are not trained yet
    on_the_way = _OnTheWay(learner, along, folder)
    with alone_in(folder):  # the folder stays locked until the model is written as well
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
    """Refuse a folder where no training can go on, or where its models could not be replaced at the end.

    Raises:
        ValueError: the state in the folder is damaged or of another version of ivlens, or the list of files that
            belong to a saved model is damaged.
    """
    root = Path(folder)
    check_state(root)
    for place in (root / MODEL, *sorted(root.glob("step-*"))):
        listed(place)


@dataclass
class _OnTheWay:
    """Called after every step: writes checkpoints, makes records, and calls the caller's `on_step`."""

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
    """Prompts of the new task and of the watched tasks, from one split."""
    # the new task's seed for all: an input that two tasks share must be in the same split in both
    watch_recipe = recipe if along.watch_recipe is None else replace(along.watch_recipe, seed=recipe.seed)
    recipes = {task.name: recipe} | {one.name: watch_recipe.for_other_tasks() for one in others}
    questions = [(one, one.split(split, recipe.seed)) for one in (task, *others)]
    return make_exam(model, questions, recipe=recipes, n_prompts=options.n_prompts, seed=options.seed)


def _summed_up(scores: Mapping[str, float], task: Task) -> dict[str, float]:
    """The score of the new task, and the mean over watched tasks where there are any."""
    watched = {name: score for name, score in scores.items() if name != task.name}
    return {"new": scores[task.name]} | ({"watched": mean_score(watched)} if watched else {})
