"""Run the demo: for several tasks, the effects of all heads, a vector, its best setting, its judgement beside controls,
and completions; for the built-in model, also a short training.

`run_demo` computes, `write_demo` (in `writing.py`) writes. Nothing is written before everything is computed, and no
file is ever half written, so an interrupted demo leaves the results of an earlier one as they are.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch

from ivlens.common.checks import Texts, set_items
from ivlens.common.progress import showing_progress, ticking
from ivlens.effects.measure import EffectOptions, head_effects
from ivlens.effects.results import HeadEffects
from ivlens.forward.borders import begins_with
from ivlens.forward.completions import complete, first_line
from ivlens.forward.means import HeadMeans
from ivlens.forward.remembered import auto_recipe
from ivlens.models.boot import TransformerBridge
from ivlens.models.fingerprint import ModelIdentity, is_built_in, model_identity
from ivlens.models.load import load_model
from ivlens.prompts.recipe import PromptRecipe
from ivlens.show.demo.curves import swept
from ivlens.show.demo.plans import DemoPlan, demo_grid, plan_for
from ivlens.show.demo.tuning import TuningDemo, can_tune, run_tuning
from ivlens.steering.evaluate import JudgeOptions, evaluate_intervention
from ivlens.steering.evaluation import Evaluation
from ivlens.steering.prompt_sets import PromptSets
from ivlens.steering.search import NO_VECTOR, sweep_settings
from ivlens.steering.steer import steer
from ivlens.steering.summary import corrected
from ivlens.tasks.bank import load_task
from ivlens.tasks.task import Task
from ivlens.vectors.vector import InstructionVector

N_DECODED = 8  # tokens that each vector is decoded to
MAX_NEW_TOKENS = 8
SMALL = 20_000_000  # parameters; a model with fewer is run on one thread


@dataclass(frozen=True)
class DemoOptions:
    """What the demo measures. Where an option is None, the plan for the model decides, see `plan_for`.

    Attributes:
        model: name or folder, as for `load_model`.
        tasks: names or paths, as for `load_task`; two or more.
        n_prompts: corrupted prompts per task on which effects are measured.
        k: heads per vector.
        n_draws: random vectors, and random sets of heads, per task.
        n_examples: test inputs per task that are completed with and without the vector.
        steps: optimizer steps of the training at the end; 0: no training. Only the built-in model is trained.
        recipe: how prompts are made. None: as the plan says; for a task that the plan does not name, the best recipe
            is looked for (see `auto_recipe`), except on the built-in model, which is asked as it was trained.
        seed: decides everything that is drawn. Where a recipe is given, the seed of the recipe does.
    """

    model: str = "pocket"
    tasks: Texts | None = None
    n_prompts: int | None = None
    k: int = 10
    n_draws: int | None = None
    n_examples: int = 6
    steps: int = 120
    recipe: PromptRecipe | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        set_items(self, "tasks")

    @property
    def plan(self) -> DemoPlan:
        """The plan for the model, with the values that these options give in place of its own."""
        plan = plan_for(self.model)
        return replace(
            plan,
            tasks=self.tasks or plan.tasks,
            n_draws=plan.n_draws if self.n_draws is None else self.n_draws,
            n_prompts=plan.n_prompts if self.n_prompts is None else self.n_prompts,
        )

    @property
    def drawn_seed(self) -> int:
        """The seed of everything that is drawn: that of the recipe, if there is one."""
        return self.seed if self.recipe is None else self.recipe.seed


@dataclass(frozen=True, eq=False)
class DemoResult:
    """The results of a demo; tuples have one entry per task, in the order of `tasks`.

    Attributes:
        conditions: accuracy of every task under every condition on *test*: the tables of `evaluate_intervention`, with
            a column `task`.
        sweep: accuracy of every task's own vector at every setting on *select*: the tables of `sweep_settings`, with a
            column `task`. Rows of strength 0 are without a vector.
        curves: the rows of `sweep` and those of the controls; the column `condition` tells them apart.
        examples: one completed prompt per row, with the columns task, input, prompt, answers, `before` and `after`
            (completions without and with the vector), and whether each of the two is right.
        decoded: for each task, the tokens that its vector makes likely, as `(token, logit)` pairs, largest first.
        seconds: wall time.
        tuning: the results of the training on a new task; None where nothing was trained.
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
        """Names of the tasks that the model can do with these prompts; for any other a vector has nothing to carry."""
        return tuple(each.task for each in self.effects if each.ability is None or each.ability.is_enough)

    def table(self) -> pd.DataFrame:
        """Accuracy on *test*: one row per task, one column per condition, and the vector's layer, strength and site."""
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
    """Run all measurements of the demo and return their results.

    Args:
        load: Opens the model; it is called after the tasks are read. None: `options.model` is loaded.
        progress: Show progress bars on stderr.

    Raises:
        ValueError: fewer than two tasks, or two of one name; any error of loading and measuring.
    """
    start = time.perf_counter()
    tasks = _load_tasks(options.plan.tasks)
    with showing_progress(progress):
        model = load_model(options.model) if load is None else load()
        with _few_threads(model):
            return _measured(model, tasks, options, start)


def _measured(model: TransformerBridge, tasks: Sequence[Task], options: DemoOptions, start: float) -> DemoResult:
    """All measurements on a loaded model; `start` is when the demo began, in seconds of `time.perf_counter`."""
    plan, seed, grid = options.plan, options.drawn_seed, demo_grid(model)
    measuring = EffectOptions(n_mean_prompts=plan.n_mean_prompts)
    effects = [
        head_effects(model, task, recipe=_recipe(model, task, options), n_prompts=plan.n_prompts, options=measuring)
        for task in ticking(tasks, "measuring effects", "tasks")
    ]
    # all vectors before the first judgement: each is also a control for the other tasks
    vectors = [InstructionVector.from_effects(found, k=options.k, model=model) for found in effects]
    judged, curves, shown = [], [], []
    for task, found in ticking(list(zip(tasks, effects, strict=True)), "judging vectors", "tasks"):
        vector, n_tried = vectors[len(judged)], plan.n_curve_prompts
        tried = swept(model, task, vector, vectors, found, grid, n_tried)
        # strength 0, once per task: the level without any vector
        plain = sweep_settings(model, task, vector, grid=NO_VECTOR, n_prompts=n_tried, seed=seed)
        curves.append(pd.concat([tried, plain.assign(task=task.name, condition="iv")], ignore_index=True))
        # the effects hold the mean head outputs already, so they need not be measured again
        means = HeadMeans(found.mean_z, found.write_scale)
        evaluation = evaluate_intervention(
            model, task, vector, at=grid, n_prompts=plan.n_judged, n_draws=plan.n_draws,
            options=JudgeOptions(seed=seed, other_vectors=vectors, means=means),
        )  # fmt: skip
        judged.append(evaluation.table.assign(task=task.name))
        shown.append(_examples(model, task, vector, evaluation, options))
    tuning = None
    if options.steps and can_tune(options.model):
        tuning = run_tuning(model, steps=options.steps, recipe=PromptRecipe(seed=seed))
    return DemoResult(
        options=options,
        model=model_identity(model),
        tasks=tuple(tasks),
        effects=tuple(effects),
        vectors=tuple(vectors),
        conditions=corrected(_tasks_first(judged)),
        sweep=_tasks_first([one[one["condition"] == "iv"].drop(columns="condition") for one in curves]),
        curves=_tasks_first(curves),
        examples=_tasks_first(shown),
        decoded={vector.task: vector.decode(model, k=N_DECODED) for vector in vectors},
        seconds=time.perf_counter() - start,
        tuning=tuning,
    )


@contextmanager
def _few_threads(model: TransformerBridge) -> Iterator[None]:
    """Run the body on one thread if the model is small.

    With a second thread the demo takes a quarter less time on an idle machine, and three times as long on a busy one.
    """
    before = torch.get_num_threads()
    is_small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
    torch.set_num_threads(1 if is_small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _load_tasks(names: Sequence[str]) -> list[Task]:
    """The tasks of these names or paths, at least two, since each task's vector is a control for the others."""
    tasks = [load_task(name) for name in names]
    found = [task.name for task in tasks]
    if len(tasks) < 2 or len(set(found)) < len(found):
        raise ValueError(
            f"the demo got the tasks {found}, expected two or more with distinct names; each is a control for the rest."
        )
    return tasks


def _recipe(model: TransformerBridge, task: Task, options: DemoOptions) -> PromptRecipe:
    """How the prompts of a task are made: as the options say, else as the plan says, else in the best form found."""
    if options.recipe is not None:
        return options.recipe
    pinned = options.plan.recipes.get(task.name)
    if pinned is not None:
        return replace(pinned, seed=options.seed)
    return PromptRecipe(seed=options.seed) if is_built_in(model) else auto_recipe(model, [task], seed=options.seed)


def _examples(
    model: TransformerBridge, task: Task, vector: InstructionVector, evaluation: Evaluation, options: DemoOptions
) -> pd.DataFrame:
    """Completions of bare *test* prompts, without the vector and with it at the setting found on *select*."""
    recipe = evaluation.recipe
    batch = PromptSets(model, task, recipe, n_prompts=options.n_examples, seed=recipe.seed).batch("test")
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
    """One table of all rows, with `task` as its first column; its `attrs` list the settings of each table."""
    frame = pd.concat(frames, ignore_index=True)
    frame.insert(0, "task", frame.pop("task"))
    frame.attrs = {"tasks": [one.attrs for one in frames]}
    return frame
