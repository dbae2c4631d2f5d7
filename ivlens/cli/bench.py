"""`ivlens bench`: sequences of tasks, methods with and without guidance, and what they forget."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ivlens.cli._options import AsJson, ModelOptions
from ivlens.cli._output import print_json, shows_progress
from ivlens.cli.tune import TrainOptions

if TYPE_CHECKING:
    from ivlens.runs.suites.results import Cell
    from ivlens.runs.suites.suite import Suite


@Parameter(name="*")
@dataclass(frozen=True)
class SuiteTrainOptions(TrainOptions):
    """How each task is trained: as for one task, with other defaults."""

    lr: float = 1e-3
    batch_size: int = 32
    decay: Literal["linear", "cosine", "constant"] = "constant"


def bench(
    *,
    out: Path,
    suite: str = "pocket",
    data: Path | None = None,
    where: ModelOptions | None = None,
    how: SuiteTrainOptions | None = None,
    methods: str = "lora,ewc",
    guidance: str = "none,instructions",
    orders: str = "0",
    tasks: str | None = None,
    seeds: int = 1,
    n_samples: int = 400,
    target: float | None = None,
    partial: bool = False,
    quick: Annotated[bool, Parameter(negative="")] = False,
    as_json: AsJson = False,
) -> int:
    """Lead a model through a suite's tasks, by every method with every guidance, and say what it forgets.

    The table has, with 95 % intervals where there are several runs: AP and FP, the mean score on each task right after
    it was learned and after the last one; Forget, AP less FP; BWT, the mean change of the tasks before the last; GP and
    IP change, what general tasks gained or lost, zero-shot and few-shot; and whether guidance at least halved what the
    method forgets (`half of Forget`) and loses on general tasks (`half of GP back`).

    Every finished cell (one method, one guidance, one order, one seed) is kept in `--out`; the same command goes on
    where it was interrupted.

    Example: `ivlens bench --suite pocket --methods lora,ewc --guidance none,instructions --seeds 3 --out out/bench`

    Args:
        out: Folder for the cells, table.md, table.tex, and cells.parquet, scores.parquet and curves.parquet.
        suite: pocket, trace, func, long, ni-c1, ni-g1 or ni-m1.
        data: Folder with the suite's files; none for pocket.
        methods: Separated by commas: full, lora, inclora, ewc, olora, lwf, replay.
        guidance: Separated by commas: none, or the names that `ivlens tune --help` lists; with a control behind a slash
            (iv/zero_vector, heads/random_heads).
        orders: Numbers of the suite's orders, separated by commas, or all.
        tasks: Only these tasks of the suite, separated by commas, in this order.
        seeds: So many seeds, from 0.
        n_samples: Training prompts of each task.
        target: End a task's training as soon as its score on *select* reaches this.
        partial: Take what there is where files of the suite are missing.
        quick: Two tasks, 60 steps, one seed, few test prompts: to see it work.
    """
    from ivlens.common.files import ready_folder
    from ivlens.runs.suites.cells import BenchOptions
    from ivlens.runs.suites.report import markdown, write_report
    from ivlens.runs.suites.runner import Grid, all_cells

    train = how or SuiteTrainOptions()
    wanted, kinds = _known_methods(methods), _known_guidance(guidance)
    if seeds < 1:
        raise ValueError(f"--seeds is {seeds}, expected 1 or more.")
    names = None if tasks is None else _listed("tasks", tasks)
    suites = _Suites(suite, data, names, partial, 2 if quick else None)
    cells = all_cells(wanted, kinds, suites.orders(orders), range(1 if quick else seeds))
    for cell in cells:
        suites(cell.order)  # whatever is missing is said before anything is trained
    ready_folder(out)
    options = BenchOptions(tune=train.options(), n_samples=n_samples, target=target)
    if quick:
        options = replace(options, tune=replace(options.tune, n_steps=60), n_general=8, n_test=32)
    with _Bar(cells, suites(cells[0].order), options.tune.n_steps, shows_progress(as_json)) as bar:
        grid = Grid(
            (where or ModelOptions()).load(), suites, options, out, on_step=bar.step_done, on_cell=bar.cell_done
        )
        results = grid.run(cells)
    if not results:
        raise ValueError(f"none of {len(cells)} cells could be run; see {out / 'failed'}.")
    table = write_report(results, out)
    if as_json:
        print_json({"rows": table.to_dict("records"), "failed": [cell.name for cell in grid.failed], "out": str(out)})
    else:
        print(markdown(table))
        print(f"written: {out}")
    if grid.failed:
        print(f"ivlens: {len(grid.failed)} of {len(cells)} cells failed; see {out / 'failed'}", file=sys.stderr)
    return 1 if grid.failed else 0


def _known_methods(text: str) -> list[str]:
    from ivlens.tuning.methods import METHODS

    wanted = _listed("methods", text)
    unknown = [name for name in wanted if name not in METHODS]
    if unknown:
        raise ValueError(f"--methods has {', '.join(unknown)}, expected some of {', '.join(METHODS)}.")
    return wanted


def _known_guidance(text: str) -> list[str]:
    from ivlens.tuning.builder import find_recipe

    kinds = _listed("guidance", text)
    for kind in kinds:
        find_recipe(kind)
    return kinds


def _listed(name: str, text: str) -> list[str]:
    listed = [part.strip() for part in text.split(",") if part.strip()]
    if not listed or len(set(listed)) < len(listed):
        raise ValueError(f"--{name} is {text!r}, expected different names separated by commas.")
    return listed


class _Suites:
    """The suite in any of its orders, read once each."""

    def __init__(self, name: str, data: Path | None, tasks: list[str] | None, partial: bool, n: int | None) -> None:
        self._name, self._data, self._tasks, self._partial, self._n = name, data, tasks, partial, n
        self._read: dict[int, Suite] = {}

    def __call__(self, order: int) -> "Suite":
        from ivlens.runs.suites.suite import load_suite

        if order not in self._read:
            chosen = self._tasks or order
            n = self._n if self._tasks is None else None
            self._read[order] = load_suite(self._name, self._data, order=chosen, partial=self._partial, n=n)
        return self._read[order]

    def orders(self, text: str) -> list[int]:
        """`all`, or numbers separated by commas."""
        if self._tasks is not None:
            return [0]
        if text == "all":
            from ivlens.runs.suites.suite import n_orders

            return list(range(n_orders(self._name)))
        listed = _listed("orders", text)
        if not all(part.isdecimal() for part in listed):
            raise ValueError(f"--orders is {text!r}, expected numbers separated by commas, or all.")
        return [int(part) for part in listed]


class _Bar:
    """One bar for all cells, in training steps."""

    def __init__(self, cells: "list[Cell]", suite: "Suite", n_steps: int, shown: bool) -> None:
        from tqdm import tqdm

        self._shown, self._n_cells = shown, len(cells)
        self._per_cell = len(suite.tasks) * n_steps
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
        self._done += 1
        if not self._shown:
            print(f"ivlens: {self._done} of {self._n_cells} cells done ({cell.name})", file=sys.stderr)
        self._bar.update(self._done * self._per_cell - self._bar.n)
