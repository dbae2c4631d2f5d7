"""Causal tests: is a vector erased or overlaid? Vectors of one checkpoint are added in another, beside controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ivlens.analysis.dynamics.stages import Stage
from ivlens.common.checks import as_items, check_counts
from ivlens.common.intervals import grouped_interval, p_of_draws
from ivlens.common.progress import ticking
from ivlens.forward.means import HeadMeans
from ivlens.models.boot import TransformerBridge
from ivlens.models.fingerprint import model_identity
from ivlens.prompts.corruptions import Corruption
from ivlens.prompts.recipe import PromptRecipe
from ivlens.steering.controls import random_head_vectors, random_vectors
from ivlens.steering.judging import judged_constant, judged_vectors
from ivlens.steering.prompt_sets import PromptSets, followed_recipe
from ivlens.steering.search import Grid
from ivlens.steering.summary import DRAWN, Judged, Scores, n_as_good, summary
from ivlens.steering.trials import Trials
from ivlens.tasks.task import SplitName, Task
from ivlens.vectors.vector import InstructionVector

if TYPE_CHECKING:
    import pandas as pd

# each test by its name: which vector is added in which model, on which prompts, and the question it answers
TESTS = {
    "write": "the tuned model's vector in the first model, without instruction: is it still written?",
    "read": "the first model's vector in the tuned one, without instruction: is it still read?",
    "reinjection": "the first model's vector in the tuned one, with the instruction: does it restore what was lost?",
    "subtraction": "the new task's vector taken away from the tuned model, with the instruction: was it in the way?",
}


@dataclass(frozen=True)
class CausalOptions:
    """How the vectors of causal tests are judged.

    Attributes:
        grid: The layers, strengths and sites that are searched on *select*, for each vector and control on its own.
        split: The split whose inputs the vectors are judged on.
        n_prompts: At most so many prompts of each split; None: all.
        n_draws: Number of random vectors, and of sets of random heads; 19 or more for a table.
        recipe: How clean prompts are made; None: as in the stages. Its seed draws prompts and controls; the splits are
            always those of the vectors.
    """

    grid: Grid = field(default_factory=lambda: Grid(alphas=(1.0, 2.0, 4.0, 8.0)))
    split: SplitName = "test"
    n_prompts: int | None = None
    n_draws: int = 19
    recipe: PromptRecipe | None = None

    def __post_init__(self) -> None:
        check_counts(self, n_prompts=1, n_draws=1)

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return (self.recipe or PromptRecipe()).seed


@dataclass(frozen=True, eq=False)
class CausalTest:
    """The result of one causal test on one task.

    Attributes:
        test: Name of the test, a key of `TESTS`.
        task: Name of the task.
        conditions: The scores under each condition, by its name, with a row for each vector: `clean` (prompts as the
            recipe makes them), `baseline` (the prompts that vectors are added to), `iv`, `own` (in re-injection, the
            tuned model's own vector), the controls, `constant`.
        strongest: The kind of control whose vectors do best on *select*, on average; None without controls.
        best_draw: The single control vector that does best on *select*: its kind, and its row in that kind's scores.
    """

    test: str
    task: str
    conditions: Mapping[str, Judged]
    strongest: str | None
    best_draw: tuple[str, int] | None

    def accuracy(self, condition: str) -> np.ndarray:
        """Accuracy on every prompt under one condition, averaged over its vectors.

        Args:
            condition: A key of `conditions`; `control` for the strongest kind of control, or `best_draw` for the single
                best control vector.
        """
        if condition == "best_draw" and self.best_draw is not None:
            name, row = self.best_draw
            return self.conditions[name].scores.accuracy[row].numpy()
        if condition in ("control", "best_draw"):  # without controls, the prompts with nothing added
            condition = self.strongest or "baseline"
        return self.conditions[condition].scores.accuracy.mean(0).numpy()

    def frame(self) -> "pd.DataFrame":
        """One row for each condition, with the columns of `evaluate_intervention`, `test`, `task` and these.

        `n_as_good` counts the vectors that reach the Instruction Vector's accuracy, `p` is
        `(1 + n_as_good) / (1 + n_vectors)`: with 19 draws never below 0.05. `strongest` marks the kind of control that
        did best on *select*. `best_draw` is the accuracy of the best single control vector, in the row of its kind.
        """
        import pandas as pd

        mean = float(self.accuracy("iv").mean())
        rows = []
        for name, judged in self.conditions.items():
            as_good = n_as_good(judged, mean) if name in DRAWN else None
            p = None if as_good is None else p_of_draws(as_good, len(judged.scores.accuracy))
            about = {"test": self.test, "task": self.task}
            is_best = self.best_draw is not None and self.best_draw[0] == name
            best = float(self.accuracy("best_draw").mean()) if is_best else float("nan")
            own = {"n_as_good": as_good, "p": p, "strongest": self.strongest == name, "best_draw": best}
            rows.append({**about, **summary(judged), **own})
        return pd.DataFrame(rows)


def _check_tasks(stage: Stage, tasks: Sequence[Task]) -> None:
    """Refuse a stage that lacks one of the tasks, or was measured on a task of the same name with other content."""
    missing = [task.name for task in tasks if task.name not in stage.tasks]
    if missing:
        raise ValueError(f"stage {stage.name!r} lacks {', '.join(missing)}, expected all tasks; measure them too.")
    measured = dict(stage.settings.get("tasks", ()))
    others = [task.name for task in tasks if measured.get(task.name, task.content_hash()) != task.content_hash()]
    if others:
        raise ValueError(
            f"stage {stage.name!r} has measured other tasks called {', '.join(others)}, expected the same; measure "
            "these again."
        )


def causal_tests(
    before: TransformerBridge,
    after: TransformerBridge,
    stages: tuple[Stage, Stage],
    tasks: Sequence[Task],
    *,
    new: InstructionVector | None = None,
    tests: str | Sequence[str] = tuple(TESTS),
    options: CausalOptions | None = None,
) -> list[CausalTest]:
    """Add vectors in the first or the tuned model, and judge them beside controls: one result for each task and test.

    - **write**: `θ^t` (heads as chosen in the first model) in the first model, without instruction;
    - **read**: `θ^0` in the tuned model, without instruction;
    - **reinjection**: `θ^0` in the tuned model, with the instruction, beside `θ^t` itself (`own`);
    - **subtraction**: `-θ_new` in the tuned model, with the instruction.

    A vector is *overlaid*, not erased, if it is still written and still read while the instructed model fails. Success
    of re-injection alone does not tell the two apart.

    Controls come from the model that the vector is from: random vectors of equal norm, vectors of as many random heads,
    and the vectors of other tasks. Every vector has its own search on *select*. `control` is the kind of control whose
    vectors did best on *select* on average, `best_draw` the best single vector there (with some 40 draws it may consist
    of the very heads that matter). `constant` is the answer that is right most often on *select*; it needs no model.
    Random heads write their means on the judged task's prompts, for the new task's vector as well, because the stages
    have no means on the new task.

    See docs/method.md, section 8 Vectors along a training.

    Args:
        before, after: The first and the tuned model; both are in memory.
        stages: What `measure_stage` measured in each of the two, for these tasks.
        tasks: Tasks to test, which must be in both stages.
        new: The new task's vector in the tuned model; None leaves `subtraction` out.
        tests: Names of the tests to make.

    Raises:
        ValueError: an unknown test, or stages that are of other models or lack one of the tasks.
    """
    options = options or CausalOptions()
    options = replace(options, recipe=options.recipe or PromptRecipe.recorded(stages[0].settings))
    tests = as_items("tests", tests)
    unknown = [test for test in tests if test not in TESTS]
    if unknown:
        raise ValueError(f"tests has {', '.join(unknown)}, expected some of {', '.join(TESTS)}.")
    first, last = stages
    tasks = as_items("tasks", tasks, Task, meant="ivlens.load_task opens one by its name")
    for stage in stages:
        _check_tasks(stage, tasks)
    found = []
    for task in tasks if len(tasks) == 1 else ticking(tasks, "causal tests", "tasks"):
        # the first model's heads in both models: a new choice of heads would look like a change of the vector
        heads = first.tasks[task.name].top_heads(int(first.settings["k"]))
        old, own = first.vector(task.name), last.vector(task.name, heads)
        # for each test: the model that runs, what its prompts lack, and the vectors that are added
        sources = {
            "write": (before, "drop", _groups(after, last, task, own, options)),
            "read": (after, "drop", _groups(before, first, task, old, options)),
            "reinjection": (after, None, _groups(before, first, task, old, options) | {"own": [own]}),
        }
        if new is not None:
            taken = _groups(after, last, task, new, options)  # added with the opposite sign
            sources["subtraction"] = (after, None, {name: [-iv for iv in ivs] for name, ivs in taken.items()})
        asked = _Asked(before)
        for test in tests:
            if test in sources:
                model, corruption, groups = sources[test]
                # one model at a time: what is kept of its prompts takes memory
                asked = asked if asked.model is model else _Asked(model)
                found.append(_judged(test, asked, task, groups, corruption, options))
    return found


def leads(tests: Sequence[CausalTest], over: str = "control") -> dict[str, dict[str, tuple[float, float, float]]]:
    """Mean accuracies and differences of each test over its tasks, with 95 % t intervals over tasks.

    Args:
        tests: Results of `causal_tests`.
        over: The condition that `lead` compares with: `control`, or a key of `CausalTest.conditions`.

    Returns:
        For each test, by name (mean, lower end, upper end): accuracies `clean`, `baseline`, `iv`, `control` and
        `best_draw`; `lead`, the vector's accuracy less that of `over` on the same prompts; `gain`, the vector's
        accuracy less the baseline's.
    """
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for name in dict.fromkeys(test.test for test in tests):
        own = [test for test in tests if test.test == name]
        names = ("clean", "baseline", "iv", "control", "best_draw")
        values = {what: [test.accuracy(what) for test in own] for what in names}
        values["lead"] = [test.accuracy("iv") - test.accuracy(over) for test in own]
        values["gain"] = [test.accuracy("iv") - test.accuracy("baseline") for test in own]
        found[name] = {what: grouped_interval(groups) for what, groups in values.items()}
    return found


_Groups = dict[str, list[InstructionVector]]  # vectors by condition


@dataclass(eq=False)
class _Asked:
    """What the tests of one task share in one model: its prompts, run up to their last tokens, and clean scores."""

    model: TransformerBridge
    trials: dict[tuple[object, ...], Trials] = field(default_factory=dict)
    clean: dict[Trials, Scores] = field(default_factory=dict)


def _groups(
    model: TransformerBridge, stage: Stage, task: Task, iv: InstructionVector, options: CausalOptions
) -> _Groups:
    """A vector and its controls, all from the model that the vector is from."""
    # neither the judged task's vector nor the tested one's is a control
    others = [stage.vector(name) for name in stage.tasks if name not in (task.name, iv.task)]
    means = stage.tasks[task.name]
    own_heads = HeadMeans(means.mean_z, means.write_scale)
    return {
        "iv": [iv],
        "random": random_vectors(iv, options.n_draws, options.seed),
        "random_heads": random_head_vectors(model, iv, own_heads, options.n_draws, options.seed),
        "other_tasks": others,
    }


def _judged(
    test: str, asked: _Asked, task: Task, groups: _Groups, corruption: Corruption | None, options: CausalOptions
) -> CausalTest:
    """Search for each vector's best setting, judge all vectors on the same prompts, and find the strongest control."""
    model, own, seed = asked.model, model_identity(asked.model), options.seed
    groups = {name: [vector.for_model(model, own) for vector in vectors] for name, vectors in groups.items()}
    every = [vector for vectors in groups.values() for vector in vectors]
    recipe = followed_recipe(every, options.recipe, task, options.split, seed)
    prompts = PromptSets(
        model, task, recipe, corruption, options.n_prompts, seed, **options.grid.passes, kept=asked.trials
    )
    judge = prompts.trials(options.split)
    if (clean := prompts.trials(options.split, corrupted=False)) not in asked.clean:
        asked.clean[clean] = clean.unsteered()
    # with corruption None nothing is taken away, and clean prompts and baseline are the same
    bare = asked.clean[clean] if judge is clean else judge.unsteered()
    judged = {"clean": Judged("clean", asked.clean[clean]), "baseline": Judged("baseline", bare)}
    judged |= {one.condition: one for one in judged_vectors(groups, prompts, judge, options.grid)}
    judged = {name: one for name, one in judged.items() if name not in groups or groups[name]}
    judged["constant"] = judged_constant(prompts, judge)
    return CausalTest(test, task.name, judged, *_strongest(judged, groups, prompts))


def _strongest(
    judged: Mapping[str, Judged], groups: _Groups, prompts: PromptSets
) -> tuple[str | None, tuple[str, int] | None]:
    """The kind of control that does best on *select*, on average over its vectors, and the best single vector."""
    # on *select*: a control chosen on the prompts that are reported would look better than it is
    places = [(name, row) for name in DRAWN for row in range(len(groups.get(name, [])))]
    if not places:
        return None, None
    goodness = [judged[name].on_select[row] for name, row in places if judged[name].on_select]
    if not goodness:  # nothing was searched
        thetas = torch.stack([groups[name][row].theta for name, row in places])
        at = [judged[name].settings[row] for name, row in places]
        goodness = prompts.trials("select").at(at, thetas, part="no logprob").goodness().tolist()
    each = {name: [value for (at, _), value in zip(places, goodness, strict=True) if at == name] for name in DRAWN}
    means = {name: sum(values) / len(values) for name, values in each.items() if values}
    return max(means, key=lambda name: means[name]), places[goodness.index(max(goodness))]
