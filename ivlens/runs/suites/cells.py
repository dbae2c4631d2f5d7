"""Run one cell of a benchmark: train a model on a suite's tasks in turn, and judge it before and after each."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from ivlens.common.checks import check_counts
from ivlens.effects.measure import head_effects
from ivlens.effects.results import HeadEffects
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.recipe import PromptRecipe
from ivlens.runs.suites.results import Cell, CellResult
from ivlens.runs.suites.scores import Scorer
from ivlens.runs.suites.suite import Suite, for_training, split_examples
from ivlens.tasks.task import Task
from ivlens.tuning.builder import find_guidance, guidance_by_name
from ivlens.tuning.exams import mean_score
from ivlens.tuning.guidance import Guidance
from ivlens.tuning.learner import Learner
from ivlens.tuning.loop import Row
from ivlens.tuning.training.data import training_set
from ivlens.tuning.training.options import TuneOptions


@dataclass(frozen=True)
class BenchOptions:
    """Options that all cells of a benchmark share.

    Attributes:
        tune: How each task is trained; `n_prompts` is the number of its prompts in every judgement. The seed in it is
            replaced by the cell's.
        target: A score on *select*. Without `patience` in `tune`, a task's training ends as soon as its score reaches
            the target. With `patience` the training goes on, and among the judgements at or above the target the one
            with the highest score on old tasks is kept: so methods are compared at one score on the new task, each
            where it forgets least. None: a training takes all its steps, or ends by `patience` alone.
        n_general: Number of prompts of each general task.
        n_earlier: Number of general tasks that guidance keeps.
        few_shots: Number of demonstrations in the prompts for IP; with 0 IP is not measured.
        recipe: How prompts are made; its seed draws the prompts of judgements. A task without an instruction is asked
            with demonstrations. No seed changes how a suite divides its examples.
    """

    tune: TuneOptions = field(default_factory=lambda: TuneOptions(n_samples=400, n_prompts=64))
    target: float | None = None
    n_general: int = 16
    n_earlier: int = 6
    few_shots: int = 3
    recipe: PromptRecipe = PromptRecipe()

    def __post_init__(self) -> None:
        check_counts(self, n_general=1, n_earlier=1, few_shots=0)
        if self.target is not None and not 0 <= self.target <= 1:  # NaN, too
            raise ValueError(f"target is {self.target!r:.60}, expected a score from 0 to 1, or None.")

    @property
    def few_shot_recipe(self) -> PromptRecipe:
        """How prompts for IP are made: with demonstrations alone, and no instruction."""
        return replace(self.recipe, instruction=None, n_shots=self.few_shots)

    def ends_at(self, new: float) -> bool:
        """Whether this score on the new task ends its training."""
        return self.target is not None and self.tune.patience is None and bool(new >= self.target)


def run_cell(
    model: TransformerBridge,
    suite: Suite,
    cell: Cell,
    options: BenchOptions | None = None,
    *,
    effects: dict[str, HeadEffects] | None = None,
    on_step: Callable[[Row], None] = lambda row: None,
) -> CellResult:
    """Train a copy of the model on every task of the suite in turn, and judge all tasks before and after each.

    See docs/method.md, 10 Sequences of tasks.

    Args:
        effects: Effects of general tasks in `model`, measured with the cell's seed, by the tasks' names. If guidance
            needs others, they are measured and added to this dict.
        on_step: Called with the log's row after every training step.

    Raises:
        ValueError: a method, guidance or option that does not exist or does not suit the model.
    """
    options = options or BenchOptions()
    find_guidance(cell.guidance)  # a wrong name is an error before anything is measured
    started = time.perf_counter()
    run = _Run(model, suite, cell, options, {} if effects is None else effects)
    scores, gp, ip = [run.scores()], [run.gp()], [run.ip()]
    curves = []
    for number, task in enumerate(suite.tasks):
        curves.append(run.learn(number, task, on_step))
        scores.append(run.scores())
    gp.append(run.gp())
    ip.append(run.ip())
    kept_gp, kept_ip = (rows if all(rows) else [] for rows in (gp, ip))  # empty dicts where nothing was asked
    names = tuple(task.name for task in suite.tasks)
    rows = [[row[name] for name in names] for row in scores]
    return CellResult(cell, names, rows, kept_gp, kept_ip, curves, time.perf_counter() - started)


class _Run:
    """A cell that is being run: its learner, its judges and the effects that were measured so far."""

    def __init__(
        self,
        model: TransformerBridge,
        suite: Suite,
        cell: Cell,
        options: BenchOptions,
        effects: dict[str, HeadEffects],
    ) -> None:
        self._model, self._suite, self._cell, self._options = model, suite, cell, options
        self._learner = Learner(model, cell.method)
        self._test = Scorer(model, suite, suite.tasks, n_prompts=options.tune.n_prompts, recipe=options.recipe)
        n_general, few_shots = options.n_general, options.few_shot_recipe
        self._general = Scorer(model, suite, suite.general, n_prompts=n_general, recipe=options.recipe)
        self._few_shot = Scorer(model, suite, suite.general, n_prompts=n_general, recipe=few_shots)
        self._effects, self._own_effects = effects, dict[str, HeadEffects]()

    def scores(self) -> dict[str, float]:
        """Scores of all tasks of the suite on *test*, by name."""
        return self._test.scores(self._learner)

    def gp(self) -> dict[str, float]:
        """Scores of the general tasks without demonstrations."""
        return self._general.scores(self._learner) if self._suite.general else {}

    def ip(self) -> dict[str, float]:
        """Scores of the general tasks with demonstrations alone."""
        return self._few_shot.scores(self._learner) if self._suite.general and self._options.few_shots else {}

    def learn(self, number: int, task: Task, on_step: Callable[[Row], None]) -> list[Row]:
        """Train on one task, and return the judged rows of the log."""
        options, cell = self._options, self._cell
        tune = replace(options.tune, seed=cell.seed, lr=options.tune.lr if cell.lr is None else cell.lr)
        own = for_training(task)
        data = training_set(
            self._model, own, own.examples, recipe=options.recipe, n_samples=tune.n_samples, seed=cell.seed
        )
        log = self._learner.learn(
            data,
            tune,
            self._guidance(number, task),
            on_step=on_step,
            judge=self._judge(number, task),
            stop=lambda row: options.ends_at(row["new"]),
        )
        judged = log[log["judged"] == 1]
        columns = {name: judged[name].tolist() for name in ("step", "new", "old")}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _judge(self, number: int, task: Task) -> Callable[[nn.Module], dict[str, float]]:
        """A function that gives mean scores on *select*: `new` of the task, `old` of general and earlier tasks."""
        earlier = [*self._suite.tasks[:number], *self._suite.general]
        options = self._options
        ask = {
            name: Scorer(self._model, self._suite, tasks, n_prompts=n, split="select", recipe=options.recipe)
            for name, tasks, n in (("new", [task], options.tune.n_prompts), ("old", earlier, options.n_general))
        }

        def judge(plain: nn.Module) -> dict[str, float]:
            scores = {name: scorer.scores(self._learner) for name, scorer in ask.items()}
            # no general tasks and no earlier ones: nothing to forget
            row = {name: mean_score(found) if found else float("nan") for name, found in scores.items()}
            return row if options.target is None else row | {"merit": _merit(row, options.target)}

        return judge

    def _guidance(self, number: int, task: Task) -> Guidance | None:
        """Guidance by the model as it is now, which keeps `n_earlier` general tasks and all tasks learned so far.

        Each learned task counts as much as half of these general tasks together.
        """
        plan, _ = find_guidance(self._cell.guidance)
        if plan is None:
            return None
        recipe = replace(self._options.recipe, seed=self._cell.seed)  # effects on other prompts in every cell
        before = self._learner.bridge()
        general, n = self._suite.general, self._options.n_earlier
        # spread over the list, in which similar tasks may stand side by side
        general = [for_training(one) for one in general[:: max(1, len(general) // n)][:n]]
        own = [for_training(one) for one in self._suite.tasks[:number]]
        # effects of a task are measured once, in the model that knows it best: of a general task in the first model, of
        # a learned one right after its training
        if any(term.needs_heads for term in plan.terms):
            for known, tasks in ((self._effects, general), (self._own_effects, own)):
                missing = [one for one in tasks if one.name not in known]
                known |= {one.name: head_effects(before, one, recipe=recipe) for one in missing}
        return guidance_by_name(
            self._cell.guidance,
            before,
            for_training(task),
            recipe=recipe,
            earlier=general + own * max(1, len(general) // 2),  # listed several times: each entry counts the same
            examples=split_examples(task, "train"),
            effects=self._effects | self._own_effects,
            seed=self._cell.seed,
        )


def _merit(row: Mapping[str, float], target: float) -> float:
    """How good a judged state is: the score on old tasks if the new task has reached the target, else less than 0.

    Below the target it is minus the missing score, so that among such states the one nearest to the target is best.
    """
    # a score unlike itself is NaN: there are no old tasks, and all states at the target are equally good
    return row["new"] - target if row["new"] < target else row["old"] if row["old"] == row["old"] else 0.0
