"""`evaluate_tasks` measures effects, builds vectors and judges them, for several tasks of one model."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ivlens.analysis.dynamics.stages import check_k
from ivlens.common.arguments import checked
from ivlens.common.names import path_of
from ivlens.common.store.store import KEPT, Store
from ivlens.effects.again import measure_again
from ivlens.effects.measure import head_effects
from ivlens.effects.results import HeadEffects
from ivlens.forward.hooks import check_unsteered
from ivlens.models.boot import TransformerBridge
from ivlens.models.fingerprint import model_identity
from ivlens.runs.evaluation.keeping import (
    TABLE_FORM,
    Parts,
    effects_facts,
    effects_form,
    rows_facts,
    rows_form,
    settings_facts,
    vectors_form,
)
from ivlens.runs.evaluation.plan import PARTS, EvaluateOptions
from ivlens.runs.evaluation.results import Shown, TaskEvaluations
from ivlens.steering.controls import some_other_vectors
from ivlens.steering.evaluate import JudgeOptions, evaluate_intervention
from ivlens.steering.evaluation import Evaluation
from ivlens.steering.prompt_sets import PromptSets
from ivlens.steering.search import NO_VECTOR, sweep_settings
from ivlens.steering.summary import Judged
from ivlens.tasks.task import Task, tasks_of
from ivlens.vectors.vector import InstructionVector

logger = logging.getLogger("ivlens")

Say = Callable[[str], None]


@checked
def evaluate_tasks(
    model: TransformerBridge,
    tasks: Sequence[Task],
    options: EvaluateOptions | None = None,
    *,
    folder: str | Path | None = None,
    say: Say = lambda text: None,
) -> TaskEvaluations:
    """Judge the Instruction Vectors of several tasks, each beside all of its controls and the vectors of the others.

        >>> found = evaluate_tasks(model, [ivlens.load_task("third_person"), ivlens.load_task("present_past")])
        >>> found.table[["task", "condition", "variant", "accuracy"]]

    For each task: the effects of all heads, the strongest `k` measured again on *select*; their vector; its accuracy at
    every setting on *select*; and its judgement on *test* beside the controls, with the further rows of `options.more`.
    With two or more tasks, the vectors of the other tasks are controls, and their means replace head outputs; with one
    task, both come from built-in tasks.

    Args:
        folder: A store in this folder keeps every part as soon as it is made: an interrupted call with the same model,
            tasks and options goes on from there. None: nothing is kept.
        say: Called with one line of text when a part begins.

    Raises:
        ValueError: no tasks, two of one name, a task without inputs in a split, a recipe that does not suit them, more
            heads than the model has, or an unknown layer.
        RuntimeError: inside a `steer` context.

    Source: docs/method.md, 6 Intervention and its controls, and 14 Further rows of a judgement.
    """
    start = time.perf_counter()
    options = options or EvaluateOptions()
    listed = tasks_of("tasks", tasks)
    shown = [shown_prompts(model, task, options) for task in _possible(model, listed, options)]
    store = None if folder is None else Store(path_of(folder, "folder") / KEPT)
    alone = len(listed) == 1
    total = len(listed) * (3 + len(options.rows)) + alone
    parts = Parts(model, options, store, say, total)
    effects = [_effects(parts, task) for task in listed]
    vectors = [InstructionVector.from_effects(one, options.k, model=model) for one in effects]
    controls = [_other_vectors(parts, listed[0], vectors[0])] if alone else [vectors] * len(listed)
    settings, judged = [], []
    for number, (task, vector) in enumerate(zip(listed, vectors, strict=True)):
        settings.append(_settings(parts, task, vector))
        others = [one for place, one in enumerate(effects) if place != number]
        beside = [one for place, one in enumerate(listed) if place != number]
        given = [one for one in controls[number] if one is not vector]
        judged.append(_judged(parts, task, beside, vector, given, effects[number], others))
    return TaskEvaluations(
        options=options,
        model=model_identity(model),
        tasks=tuple(listed),
        effects=tuple(effects),
        vectors=tuple(vectors),
        evaluations=tuple(judged),
        settings=tuple(settings),
        shown=tuple(shown),
        seconds=time.perf_counter() - start,
    )


def shown_prompts(model: TransformerBridge, task: Task, options: EvaluateOptions) -> Shown:
    """One judged input with its clean and its bare prompt."""
    # of all judged prompts the first one: some may be too long for the model, and are left out
    prompts = PromptSets(model, task, options.recipe, n_prompts=options.n_judge_prompts, seed=options.recipe.seed)
    clean, bare = (prompts.batch("test", corrupted=corrupted) for corrupted in (False, True))
    return Shown(task.name, clean.texts[0], bare.texts[0], tuple(clean.examples[0].answers))


def _possible(model: TransformerBridge, tasks: Sequence[Task], options: EvaluateOptions) -> Sequence[Task]:
    """The same tasks, once it is known that nothing simple stands in the way: an error must not come after an hour."""
    if not tasks:
        raise ValueError("tasks is empty, expected one or more tasks; ivlens.load_task opens one by its name.")
    check_unsteered(model)
    check_k(model, options.k)
    options.grid.settings(model)  # which refuses layers that there are not
    options.recipe.check_for(tasks)
    for task in tasks:
        for split in ("fit", "select", "test"):
            task.split(split, options.recipe.seed)
    return tasks


def _effects(parts: Parts, task: Task) -> HeadEffects:
    """The effects of all heads, with the strongest ones measured again where the task has other prompts for that."""
    model, options = parts.model, parts.options

    def make() -> HeadEffects:
        found = head_effects(model, task, recipe=options.recipe, n_prompts=options.n_prompts)
        try:
            return measure_again(found, task, model=model, heads=options.k)
        except ValueError as error:  # no prompt of the same kind on *select*
            logger.warning("%s: the strongest heads are not measured again: %s", task.name, error)
            return found

    return parts.part(task, "effects", PARTS["effects"], effects_facts(options), effects_form(model), make)


def _other_vectors(parts: Parts, task: Task, vector: InstructionVector) -> list[InstructionVector]:
    """Vectors of built-in tasks with the same inputs, the controls of a task that is evaluated alone."""
    model, n = parts.model, parts.options.n_draws
    depends = effects_facts(parts.options) | {"n": n}
    make: Callable[[], list[InstructionVector]] = lambda: some_other_vectors(model, task, vector, n)  # noqa: E731
    return parts.part(task, "others", PARTS["others"], depends, vectors_form(model), make)


def _settings(parts: Parts, task: Task, vector: InstructionVector) -> pd.DataFrame:
    """Accuracy on *select* at every setting of the grid, and without a vector (strength 0)."""
    model, options = parts.model, parts.options

    def make() -> pd.DataFrame:
        asked = {"recipe": options.recipe, "n_prompts": options.n_judge_prompts, "seed": options.recipe.seed}
        tables = [sweep_settings(model, task, vector, grid=grid, **asked) for grid in (options.grid, NO_VECTOR)]
        return pd.concat(tables, ignore_index=True)

    return parts.part(task, "settings", PARTS["settings"], settings_facts(options), TABLE_FORM, make)


def _judged(
    parts: Parts,
    task: Task,
    beside: Sequence[Task],
    vector: InstructionVector,
    others: Sequence[InstructionVector],
    effects: HeadEffects,
    effects_of_others: Sequence[HeadEffects],
) -> Evaluation:
    """The judgement of one vector on *test*, part by part."""
    model, options = parts.model, parts.options
    form, more = rows_form(model_identity(model)), options.more
    if more is not None and effects_of_others:
        more = replace(more, others=tuple(effects_of_others))

    def keep(part: str, make: Callable[[], list[Judged]]) -> list[Judged]:
        title = PARTS.get(part, part.replace("_", " "))
        return parts.part(task, part, title, rows_facts(options, part, beside), form, make)

    return evaluate_intervention(
        model,
        task,
        vector,
        recipe=options.recipe,
        at=options.grid,
        n_prompts=options.n_judge_prompts,
        n_draws=options.n_draws,
        options=JudgeOptions(seed=options.recipe.seed, other_vectors=others, means=effects, more=more, keep=keep),
    )
