"""The main job on several tasks: effects, vectors, the best setting, the judgement with controls, completions; and,
with the built-in model, a short training.

`run_demo` computes, `write_demo` writes. Nothing is on disk before everything is computed, and no file is ever half
written, so an interrupted demo leaves the last complete one alone.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ivlens.common.files import filling
from ivlens.common.progress import showing_progress, ticking
from ivlens.effects.measure import head_effects
from ivlens.effects.results import HeadEffects
from ivlens.forward.borders import begins_with
from ivlens.forward.completions import complete, first_line
from ivlens.forward.hooks import SITES
from ivlens.forward.means import HeadMeans
from ivlens.models.boot import TransformerBridge
from ivlens.models.fingerprint import ModelIdentity, model_identity
from ivlens.models.load import load_model
from ivlens.prompts.recipe import PromptRecipe
from ivlens.show.demo.curves import swept_controls
from ivlens.show.demo.tuning import TuningDemo, can_tune, run_tuning
from ivlens.steering.evaluate import JudgeOptions, evaluate_intervention
from ivlens.steering.evaluation import Evaluation
from ivlens.steering.prompt_sets import PromptSets
from ivlens.steering.search import Grid, sweep_settings
from ivlens.steering.steer import steer
from ivlens.tasks.bank import load_task
from ivlens.tasks.task import Task
from ivlens.vectors.vector import InstructionVector

DEFAULT_TASKS = (
    "antonym",
    "synonym",
    "english_french",
    "english_german",
    "english_spanish",
    "capitalize",
    "first_letter",
    "last_letter",
)
N_DECODED = 8
MAX_NEW_TOKENS = 12
SMALL = 20_000_000  # parameters
GRID = Grid(alphas=(1.0, 2.0, 4.0, 8.0), n_screen=10, n_finalists=5)
# strength 0, once: the same prompts without a vector
NO_VECTOR = Grid(layers=(0,), alphas=(0.0,), sites=SITES[:1])


@dataclass(frozen=True)
class DemoOptions:
    """What the demo measures.

    Attributes:
        model: name or folder, as for `load_model`.
        tasks: names or paths, as for `load_task`; two or more.
        n_prompts: corrupted prompts per task on which effects are measured.
        k: heads per vector.
        n_draws: random vectors, and random sets of heads, per task.
        n_examples: test inputs per task that are completed with and without the vector.
        steps: of the training at the end; 0 leaves it out, and so does any other model than the built-in one.
        recipe: how prompts are made, with the seed of everything that is drawn.
    """

    model: str = "pocket"
    tasks: tuple[str, ...] = DEFAULT_TASKS
    n_prompts: int = 24
    k: int = 10
    n_draws: int = 5
    n_examples: int = 6
    steps: int = 120
    recipe: PromptRecipe = PromptRecipe()


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What the demo found; sequences are in the order of the tasks.

    Attributes:
        conditions: the tables of `evaluate_intervention` of every task on *test*, with a column `task`.
        sweep: `sweep_settings` of every task's own vector on *select*, with a column `task`; strength 0 is no vector.
        curves: the same beside that of the controls, told apart by a column `condition`.
        examples: task, input, prompt, answers, before, after, and whether each is right.
        decoded: `(token, logit)` pairs per task, largest logit first.
        seconds: wall time.
        tuning: what teaching a new task did; None where nothing was trained.
    """

    options: DemoOptions
    model: ModelIdentity
    tasks: tuple[Task, ...]
    effects: tuple[HeadEffects, ...]
    vectors: tuple[InstructionVector, ...]
    conditions: pd.DataFrame
    sweep: pd.DataFrame
    curves: pd.DataFrame
    examples: pd.DataFrame
    decoded: dict[str, list[tuple[str, float]]]
    seconds: float
    tuning: TuningDemo | None = None

    @property
    def able(self) -> tuple[str, ...]:
        """Names of the tasks that the model can do as it is asked, so that a vector has something to carry."""
        return tuple(each.task for each in self.effects if each.ability is None or each.ability.is_enough)

    def table(self) -> pd.DataFrame:
        """Accuracy on *test*: one row per task, one column per condition, and the setting of the vector."""
        rows: dict[str, dict[str, Any]] = {task.name: {"task": task.name} for task in self.tasks}
        for row in self.conditions.to_dict("records"):
            found = rows[row["task"]]
            found[row["condition"]] = row["accuracy"]
            if row["condition"] == "iv":
                found |= {name: row[name] for name in ("layer", "alpha", "site")}
        return pd.DataFrame(list(rows.values()))


def run_demo(
    options: DemoOptions, *, load: Callable[[], TransformerBridge] | None = None, progress: bool = False
) -> DemoResult:
    """Do the whole of it, with progress bars on stderr if asked for.

    Args:
        load: Opens the model, once the tasks are read; None: `options.model` is loaded.

    Raises:
        ValueError: fewer than two tasks, or two of one name; whatever loading and measuring raise.
    """
    start = time.perf_counter()
    tasks = _load_tasks(options.tasks)
    with showing_progress(progress):
        model = load_model(options.model) if load is None else load()
        with _few_threads(model):
            return _measured(model, tasks, options, start)


def _measured(model: TransformerBridge, tasks: Sequence[Task], options: DemoOptions, start: float) -> DemoResult:
    recipe, seed = options.recipe, options.recipe.seed
    effects = [
        head_effects(model, task, recipe=recipe, n_prompts=options.n_prompts)
        for task in ticking(tasks, "measuring effects", "tasks")
    ]
    vectors = [InstructionVector.from_effects(found, k=options.k, model=model) for found in effects]
    judged, swept, controls, shown = [], [], [], []
    for task, found in ticking(list(zip(tasks, effects, strict=True)), "judging vectors", "tasks"):
        vector = vectors[len(judged)]
        for grid in (GRID, NO_VECTOR):
            swept.append(sweep_settings(model, task, vector, grid=grid, seed=seed).assign(task=task.name))
        controls.append(swept_controls(model, task, vector, vectors, found, GRID, seed))
        evaluation = _judge(model, task, vector, vectors, found, options)
        judged.append(evaluation.table.assign(task=task.name))
        shown.append(_examples(model, task, vector, evaluation, options))
    tuning = None
    if options.steps and can_tune(options.model):
        tuning = run_tuning(model, steps=options.steps, recipe=recipe)
    return DemoResult(
        options=options,
        model=model_identity(model),
        tasks=tuple(tasks),
        effects=tuple(effects),
        vectors=tuple(vectors),
        conditions=_tasks_first(judged),
        sweep=_tasks_first(swept),
        curves=_tasks_first([*(frame.assign(condition="iv") for frame in swept), *controls]),
        examples=_tasks_first(shown),
        decoded={vector.task: vector.decode(model, k=N_DECODED) for vector in vectors},
        seconds=time.perf_counter() - start,
        tuning=tuning,
    )


def write_demo(result: DemoResult, folder: str | Path, *, also: Callable[[Path], object] | None = None) -> list[Path]:
    """Write tables as parquet, effects and vectors as safetensors; return the paths.

    Everything is written beside its place first and moved there at the end.

    Args:
        also: called with the folder that is being filled, to add files of its own (the page).

    Raises:
        OSError: the folder cannot be made or written to.
    """
    root = Path(folder)
    with filling(root) as scratch:
        for name in ("conditions", "sweep", "curves", "examples"):
            getattr(result, name).to_parquet(scratch / f"{name}.parquet")
        if result.tuning is not None:
            result.tuning.scores.to_parquet(scratch / "tuning.parquet")
            result.tuning.curves.to_parquet(scratch / "tuning_curves.parquet")
        heads = pd.concat([found.to_frame() for found in result.effects], ignore_index=True)
        heads.to_parquet(scratch / "effects.parquet")
        for found, vector in zip(result.effects, result.vectors, strict=True):
            found.save(scratch / "effects" / f"{file_name(found.task)}.safetensors")
            vector.save(scratch / "vectors" / f"{file_name(vector.task)}.safetensors")
        if also is not None:
            also(scratch)
        files = sorted(path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file())
    return [root / file for file in files]


def file_name(task: str) -> str:
    """The task's name as a file's name."""
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in task)


def summary(result: DemoResult) -> dict[str, Any]:
    """What a script wants to know, as plain values."""
    return {
        "model": asdict(result.model),
        "options": asdict(result.options) | {"recipe": result.options.recipe.to_dict()},
        "seconds": round(result.seconds, 1),
        "tasks": result.table().to_dict("records"),
        "able": list(result.able),
        "tuning": None if result.tuning is None else result.tuning.scores.to_dict("records"),
    }


@contextmanager
def _few_threads(model: TransformerBridge) -> Iterator[None]:
    """One thread for a small model: a second saves a quarter of the time, on a busy machine it triples it."""
    before = torch.get_num_threads()
    is_small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
    torch.set_num_threads(1 if is_small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _load_tasks(names: Sequence[str]) -> list[Task]:
    tasks = [load_task(name) for name in names]
    found = [task.name for task in tasks]
    if len(tasks) < 2 or len(set(found)) < len(found):
        raise ValueError(
            f"the demo got the tasks {found}, expected two or more with distinct names; each is a control for the rest."
        )
    return tasks


def _judge(
    model: TransformerBridge,
    task: Task,
    vector: InstructionVector,
    vectors: Sequence[InstructionVector],
    found: HeadEffects,
    options: DemoOptions,
) -> Evaluation:
    seed, means = options.recipe.seed, HeadMeans(found.mean_z, found.write_scale)
    judge = JudgeOptions(seed=seed, other_vectors=vectors, means=means)
    return evaluate_intervention(model, task, vector, at=GRID, n_draws=options.n_draws, options=judge)


def _examples(
    model: TransformerBridge, task: Task, vector: InstructionVector, evaluation: Evaluation, options: DemoOptions
) -> pd.DataFrame:
    """Completions of bare prompts, plain and with the vector at the setting found on *select*."""
    recipe = evaluation.recipe
    batch = PromptSets(model, task, recipe, n_prompts=options.n_examples, seed=recipe.seed, **GRID.passes).batch("test")
    before = complete(model, batch.texts, max_new_tokens=MAX_NEW_TOKENS)
    with steer(model, vector, at=evaluation.best):
        after = complete(model, batch.texts, max_new_tokens=MAX_NEW_TOKENS)
    return pd.DataFrame(
        {
            "task": task.name,
            "input": example.input,
            "prompt": prompt,
            "answers": list(example.answers),
            "before": first_line(plain),
            "after": first_line(steered),
            "right_before": any(begins_with(first_line(plain), answer) for answer in example.answers),
            "right_after": any(begins_with(first_line(steered), answer) for answer in example.answers),
        }
        for example, prompt, plain, steered in zip(batch.examples, batch.texts, before, after, strict=True)
    )


def _tasks_first(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    frame = pd.concat(frames, ignore_index=True)
    frame.insert(0, "task", frame.pop("task"))
    frame.attrs = {"tasks": [one.attrs for one in frames]}
    return frame
