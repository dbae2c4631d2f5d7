"""One cell of a benchmark: a model led through a suite's tasks by one method, one kind of guidance, one seed."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from ivlens.effects.measure import head_effects
from ivlens.effects.results import HeadEffects
from ivlens.models.boot import TransformerBridge
from ivlens.runs.suites.results import Cell, CellResult
from ivlens.runs.suites.scores import Scorer
from ivlens.runs.suites.suite import Suite, for_training, split_examples
from ivlens.tasks.task import Task
from ivlens.tuning.builder import find_recipe, guidance_by_name
from ivlens.tuning.data import training_set
from ivlens.tuning.exams import mean_score
from ivlens.tuning.guidance import Guidance
from ivlens.tuning.learner import Learner
from ivlens.tuning.loop import Row
from ivlens.tuning.options import TuneOptions


@dataclass(frozen=True)
class BenchOptions:
    """What all cells have in common.

    Attributes:
        tune: How each task is trained, `patience` on *select* included.
        n_samples: Training prompts of each task.
        target: A task's training ends as soon as its score on *select* reaches this; None: after all steps. With
            `patience`, which only begins there, it goes on instead, and of the judgements at this score or above, the
            one with the highest score on old tasks is kept: methods are compared at one score on the new task, each
            where it forgets least.
        n_test: Prompts of each task in a judgement.
        n_general: Prompts of each general task.
        n_earlier: General tasks whose heads guidance keeps.
        few_shots: Demonstrations in the prompts for IP; 0 leaves IP out.
        template: Of prompts.
    """

    tune: TuneOptions = field(default_factory=TuneOptions)
    n_samples: int = 400
    target: float | None = None
    n_test: int = 64
    n_general: int = 16
    n_earlier: int = 6
    few_shots: int = 3
    template: str = "plain"

    def ends_at(self, new: float) -> bool:
        """Whether a score on the new task ends its training."""
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
    """Train on every task of the suite in turn, and judge after each.

    Args:
        effects: Of general tasks in `model` with the cell's seed, by name; those that are missing are measured where
            guidance needs them, and added.

    Raises:
        ValueError: a method, guidance or option that does not exist or does not suit the model.
    """
    options = options or BenchOptions()
    find_recipe(cell.guidance)
    started = time.perf_counter()
    run = _Run(model, suite, cell, options, {} if effects is None else effects)
    scores, gp, ip = [run.scores()], [run.gp()], [run.ip()]
    curves = []
    for number, task in enumerate(suite.tasks):
        curves.append(run.learn(number, task, on_step))
        scores.append(run.scores())
    gp.append(run.gp())
    ip.append(run.ip())
    kept_gp, kept_ip = (rows if all(rows) else [] for rows in (gp, ip))
    names = tuple(task.name for task in suite.tasks)
    rows = [[row[name] for name in names] for row in scores]
    return CellResult(cell, names, rows, kept_gp, kept_ip, curves, time.perf_counter() - started)


class _Run:
    """A cell on its way."""

    def __init__(
        self,
        model: TransformerBridge,
        suite: Suite,
        cell: Cell,
        options: BenchOptions,
        effects: dict[str, HeadEffects],
    ) -> None:
        self._model, self._suite, self._cell, self._options = model, suite, cell, options
        self._learner = Learner(model, cell.method, seed=cell.seed)
        self._test = Scorer(model, suite, suite.tasks, n=options.n_test, template=options.template)
        self._general = Scorer(model, suite, suite.general, n=options.n_general, template=options.template)
        self._few_shot = Scorer(
            model, suite, suite.general, n=options.n_general, template=options.template, n_shots=options.few_shots
        )
        self._effects, self._own_effects = effects, dict[str, HeadEffects]()

    def scores(self) -> dict[str, float]:
        return self._test.scores(self._learner)

    def gp(self) -> dict[str, float]:
        return self._general.scores(self._learner) if self._suite.general else {}

    def ip(self) -> dict[str, float]:
        return self._few_shot.scores(self._learner) if self._suite.general and self._options.few_shots else {}

    def learn(self, number: int, task: Task, on_step: Callable[[Row], None]) -> list[Row]:
        """Train on one task; the judged rows of its log."""
        options, seed = self._options, self._cell.seed
        tune = options.tune if self._cell.lr is None else replace(options.tune, lr=self._cell.lr)
        data = training_set(
            self._model,
            task,
            split_examples(task, "train"),
            n_samples=options.n_samples,
            template=options.template,
            seed=seed,
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
        """Scores on *select* by the suite's metrics, of the new task and of all that came before it."""
        old = [*self._suite.tasks[:number], *self._suite.general]
        options = self._options
        ask = {
            name: Scorer(self._model, self._suite, tasks, n=n, side="select", template=options.template)
            for name, tasks, n in (("new", [task], options.n_test), ("old", old, options.n_general))
        }

        def judge(plain: nn.Module) -> dict[str, float]:
            scores = {name: scorer.scores(self._learner) for name, scorer in ask.items()}
            row = {name: mean_score(found) if found else float("nan") for name, found in scores.items()}
            return row if options.target is None else row | {"merit": _merit(row, options.target)}

        return judge

    def _guidance(self, number: int, task: Task) -> Guidance | None:
        """From the model as it is now; it keeps some general tasks, and all that were learned so far.

        Each of these counts for as much as half of the general ones together.
        """
        recipe, _ = find_recipe(self._cell.guidance)
        if recipe is None:
            return None
        before = self._learner.bridge()
        general, n = self._suite.general, self._options.n_earlier
        general = [for_training(one) for one in general[:: max(1, len(general) // n)][:n]]
        own = [for_training(one) for one in self._suite.tasks[:number]]
        if recipe.heads_weight or recipe.rehearse_heads:  # measured once: in the first model, or when just learned
            for known, tasks in ((self._effects, general), (self._own_effects, own)):
                missing = [one for one in tasks if one.name not in known]
                known |= {one.name: head_effects(before, one, seed=self._cell.seed) for one in missing}
        return guidance_by_name(
            self._cell.guidance,
            before,
            for_training(task),
            earlier=general + own * max(1, len(general) // 2),
            examples=split_examples(task, "train"),
            effects=self._effects | self._own_effects,
            seed=self._cell.seed,
        )


def _merit(row: Mapping[str, float], target: float) -> float:
    """The score on old tasks where that on the new one is at the target; else below 0, by what is missing."""
    return row["new"] - target if row["new"] < target else row["old"] if row["old"] == row["old"] else 0.0
