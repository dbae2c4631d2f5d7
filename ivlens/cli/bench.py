"""`ivlens bench`: train on sequences of tasks by several methods, with and without guidance, and measure forgetting."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ivlens.cli._options import AsJson, ModelOptions, PromptOptions
from ivlens.cli._output import print_json, shows_progress
from ivlens.cli.tune import TrainOptions

if TYPE_CHECKING:
    from ivlens.runs.suites.results import Cell
    from ivlens.runs.suites.suite import Suite

MOST_SEEDS = 10_000  # all cells are listed before the first one is run


@Parameter(name="*")
@dataclass(frozen=True)
class SuiteTrainOptions(TrainOptions):
    """How each task is trained: the options of `ivlens tune`, with other defaults."""

    lr: float = 1e-3
    batch_size: int = 32
    decay: Literal["linear", "cosine", "constant"] = "constant"
    n_samples: int | None = 400
    n_prompts: int = 64


@Parameter(name="*")
@dataclass(frozen=True)
class SuiteOptions:
    """The suite, its tasks and their orders.

    Attributes:
        suite: pocket, trace, func, long, ni-c1, ni-g1 or ni-m1.
        data: Folder with the suite's files; not for pocket, which is built in.
        orders: Numbers of the suite's orders, separated by commas, or all.
        tasks: Only these tasks of the suite, separated by commas, in this order.
        partial: Leave out tasks whose files are missing. Without this option they are an error.
    """

    suite: str = "pocket"
    data: Path | None = None
    orders: str = "0"
    tasks: str | None = None
    partial: bool = False


@Parameter(name="*")
@dataclass(frozen=True)
class CellOptions:
    """The cells that each order of tasks is run with.

    Attributes:
        methods: Methods of training, separated by commas: full, lora, inclora, ewc, olora, lwf, replay.
        guidance: Kinds of guidance, separated by commas: none, or names as in `ivlens tune`; a control follows a
            slash (iv/zero_vector, heads/random_heads).
        seeds: Number of seeds of the trainings, from 0.
        target: End a task's training as soon as its score on *select* reaches this value.
        quick: Run two tasks with 60 steps, one seed and few prompts, to try the command.
    """

    methods: str = "lora,ewc"
    guidance: str = "none,instructions"
    seeds: int = 1
    target: float | None = None
    quick: Annotated[bool, Parameter(negative="")] = False


def bench(
    *,
    out: Path,
    which: SuiteOptions | None = None,
    where: ModelOptions | None = None,
    cells: CellOptions | None = None,
    how: SuiteTrainOptions | None = None,
    prompts: PromptOptions | None = None,
    as_json: AsJson = False,
) -> int:
    """Train a model on a suite's tasks in turn, by every method with every guidance, and measure what it forgets.

    The table shows: AP, the mean score on each task right after it was learned; FP, the mean score on the same tasks
    after the last one; Forget, which is AP minus FP; BWT, the mean change of all tasks but the last; GP change and IP
    change, the zero-shot and few-shot change on general tasks; and whether guidance at least halved what the method
    forgets (`half of Forget`) and what it loses on general tasks (`half of GP back`). With several runs there are 95 %
    t intervals, which with fewer than six runs only describe these runs.

    Prompts are made as the options say, by default with each task's instruction. No form is looked for, because the
    suites' scores depend on how they ask: GP without demonstrations, IP with demonstrations.

    Every finished cell (one method, one guidance, one order, one seed) is kept in `--out`. The same command goes on
    where it was interrupted.

    Example: `ivlens bench --suite pocket --methods lora,ewc --guidance none,instructions --seeds 3 --out out/bench`

    Args:
        out: Folder for table.md, table.tex, cells.parquet, scores.parquet and curves.parquet, and for store/, which
            keeps every finished cell.
    """
    from ivlens.common.disk import check_folder
    from ivlens.runs.suites.cells import BenchOptions
    from ivlens.runs.suites.report import markdown, write_report
    from ivlens.runs.suites.runner import Grid, all_cells

    check_folder(out)
    which, asked, train = which or SuiteOptions(), cells or CellOptions(), how or SuiteTrainOptions()
    wanted, kinds = _known_methods(asked.methods), _known_guidance(asked.guidance)
    if not 1 <= asked.seeds <= MOST_SEEDS:
        what = "1 or more" if asked.seeds < 1 else f"1 to {MOST_SEEDS:,}"
        raise ValueError(f"--seeds is {asked.seeds}, expected {what}.")
    suites = _Suites(which, 2 if asked.quick else None)
    todo = all_cells(wanted, kinds, suites.orders(), range(1 if asked.quick else asked.seeds))
    for cell in todo:
        suites(cell.order)  # missing files are an error before anything is trained
    recipe = (prompts or PromptOptions()).recipe()
    options = BenchOptions(tune=train.options(), target=asked.target, recipe=recipe)
    if asked.quick:
        options = replace(options, tune=replace(options.tune, steps=60, n_prompts=32), n_general=8)
    with _Bar(todo, suites(todo[0].order), options.tune.steps, shows_progress(as_json)) as bar:
        grid = Grid(
            (where or ModelOptions()).load(), suites, options, out, on_step=bar.step_done, on_cell=bar.cell_done
        )
        results = grid.run(todo)
    if not results:
        (why, *_) = grid.failed.values()
        raise ValueError(f"none of {len(todo)} cells could be run, the first one: {why}")
    table = write_report(results, out)
    if as_json:
        rows, failed = table.to_dict("records"), {cell.name: why for cell, why in grid.failed.items()}
        print_json({"rows": rows, "failed": failed, "recipe": recipe.to_dict(), "out": str(out)})
    else:
        print(markdown(table))
        print(f"written: {out}")
    if grid.failed:
        listed = f"ivlens store ls {grid.store.folder}"
        print(f"ivlens: {len(grid.failed)} of {len(todo)} cells failed; see {listed}", file=sys.stderr)
    return 1 if grid.failed else 0


def _known_methods(text: str) -> list[str]:
    """The names in `--methods`; an unknown one is an error."""
    from ivlens.tuning.methods import METHODS

    wanted = _listed("methods", text)
    unknown = [name for name in wanted if name not in METHODS]
    if unknown:
        raise ValueError(f"--methods has {', '.join(unknown)}, expected some of {', '.join(METHODS)}.")
    return wanted


def _known_guidance(text: str) -> list[str]:
    """The names in `--guidance`; an unknown one is an error."""
    from ivlens.tuning.builder import find_guidance

    kinds = _listed("guidance", text)
    for kind in kinds:
        find_guidance(kind)
    return kinds


def _listed(name: str, text: str) -> list[str]:
    """The parts of a value that are separated by commas; one that is given twice is an error."""
    listed = [part.strip() for part in text.split(",") if part.strip()]
    if not listed or len(set(listed)) < len(listed):
        raise ValueError(f"--{name} is {text!r}, expected different names separated by commas.")
    return listed


class _Suites:
    """Gives the suite in the order with a number; each order is read once."""

    def __init__(self, which: SuiteOptions, n: int | None) -> None:
        self._which, self._n = which, n
        self._tasks = None if which.tasks is None else _listed("tasks", which.tasks)
        self._read: dict[int, Suite] = {}

    def __call__(self, order: int) -> "Suite":
        from ivlens.runs.suites.suite import load_suite

        if order not in self._read:
            about = self._which
            n = self._n if self._tasks is None else None
            self._read[order] = load_suite(
                about.suite, about.data, order=self._tasks or order, partial=about.partial, n=n
            )
        return self._read[order]

    def orders(self) -> list[int]:
        """The numbers in `--orders`; 0 alone where `--tasks` gives the order."""
        text = self._which.orders
        if self._tasks is not None:
            return [0]
        if text == "all":
            from ivlens.runs.suites.suite import n_orders

            return list(range(n_orders(self._which.suite)))
        listed = _listed("orders", text)
        if not all(part.isdecimal() and len(part) < 7 for part in listed):
            raise ValueError(f"--orders is {text!r}, expected numbers separated by commas, or all.")
        return [int(part) for part in listed]


class _Bar:
    """One progress bar for all cells together, in training steps."""

    def __init__(self, cells: "list[Cell]", suite: "Suite", steps: int, shown: bool) -> None:
        from tqdm import tqdm

        self._shown, self._n_cells = shown, len(cells)
        self._per_cell = len(suite.tasks) * steps
        self._done = 0
        self._bar: Any = tqdm(total=len(cells) * self._per_cell, disable=not shown, leave=False, unit="step")

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def step_done(self, cell: "Cell", row: dict[str, Any]) -> None:
        self._bar.set_description(cell.name, refresh=False)
        self._bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
        self._bar.update(1)

    def cell_done(self, cell: "Cell") -> None:
        from ivlens.common.progress import say

        # a cell may have fewer steps than planned, or be in the store: the bar moves to where this cell ends
        self._done += 1
        if not self._shown:
            say(f"ivlens: {self._done} of {self._n_cells} cells done ({cell.name})")
        self._bar.update(self._done * self._per_cell - self._bar.n)
