"""`ivlens sweep`: make every result of a grid; a store keeps each at once."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ivlens.cli._options import AsJson, quiet_libraries
from ivlens.cli._output import print_json, print_table
from ivlens.common.names import expanded

if TYPE_CHECKING:
    from ivlens.common.store.store import Store
    from ivlens.runs.sweep.runner import Outcome, Plan, Progress


@Parameter(name="*")
@dataclass(frozen=True)
class GridOptions:
    """Options that replace those in the grid.

    Attributes:
        device: auto, cpu, cuda, cuda:1 ...
        dtype: auto (as stored), float32, bfloat16 or float16.
        template: plain, after, qa, chat, or a JSON file with the fields of a template.
        n_shots: Demonstrations in each prompt.
        instruction: task (one of the task's own), none (demonstrations alone), or the instruction itself.
    """

    device: str | None = None
    dtype: str | None = None
    template: str | None = None
    n_shots: int | None = None
    instruction: str | None = None

    def given(self) -> dict[str, Any]:
        """The options that were given, by name."""
        # a template's file gets its whole path here: a relative one would be taken as relative to the grid's file
        found = {name: value for name, value in asdict(self).items() if value is not None}
        if str(found.get("template", "")).lower().endswith(".json"):
            found["template"] = str(expanded(found["template"]).absolute())
        return found


def sweep(
    grid: Path,
    /,
    *,
    store: Path,
    options: GridOptions | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    scheduler: str | None = None,
    workers: int | None = None,
    as_json: AsJson = False,
) -> int:
    """Make every result of a grid, models x tasks x options x seeds, and keep each as soon as it is done.

    The same command goes on where it was interrupted: results that are in the store are not made again. How prompts are
    made is said by the grid, or by options here; no form is looked for. Ctrl-C ends the sweep after the cells that were
    begun. The error of a cell that fails is kept with its traceback, and the other cells are made. Exit status: 0 all
    done, 1 some cells failed, 2 an error in the grid or of the disk, 130 interrupted.

    Example: `ivlens sweep grid.toml --store out/store`, with this `grid.toml`:
    `tasks = ["antonym", "synonym"]`, `[interventions]`, `k = [5, 10]`

    Args:
        grid: File in TOML with the lists of models, tasks, seeds and options; see docs/cluster.md.
        store: Folder for the results, which `ivlens store` lists and exports.
        dry_run: Print which cells would be made and what they cost; no weights are loaded.
        scheduler: Address of a dask scheduler (tcp://host:8786), whose workers make the cells.
        workers: Number of worker processes to start on this machine; each gets a GPU, if there are any.
    """
    from ivlens.common.disk import check_folder
    from ivlens.common.store.store import Store
    from ivlens.runs.sweep.grid import read_grid
    from ivlens.runs.sweep.runner import make_plan, run_sweep

    if workers is not None and (scheduler is not None or not 1 <= workers <= 256):
        raise ValueError(f"--workers is {workers}, expected 1 to 256, and no --scheduler beside it.")
    check_folder(store)
    quiet_libraries()
    read = read_grid(grid, instead=(options or GridOptions()).given())
    opened = Store(store)
    executor = _executor(opened, scheduler, workers)
    try:
        plan = make_plan(read, opened, executor, load=not dry_run)
        if dry_run:
            _print_plan(plan, as_json)
            return 0
        outcome = run_sweep(plan, executor, on_cell=_say)
    finally:
        executor.close()
    _print_outcome(outcome, opened, as_json)
    return 130 if outcome.interrupted else 1 if outcome.failed else 0


def _executor(store: "Store", scheduler: str | None, workers: int | None) -> Any:
    """The object that makes cells: in this process, or on workers."""
    from ivlens.runs.sweep.cluster import ClusterExecutor
    from ivlens.runs.sweep.local import LocalExecutor

    if scheduler is None and workers is None:
        return LocalExecutor(store)
    return ClusterExecutor(store, scheduler=scheduler, n_workers=workers)


def _say(progress: "Progress") -> None:
    """Print a line about a finished cell."""
    from ivlens.common.progress import say

    report, left = progress.report, "" if progress.left is None else f", about {_duration(progress.left)} left"
    what = f"failed: {report.error}" if report.status == "failed" else f"{report.status} in {report.seconds:.1f} s"
    say(f"ivlens: {progress.n} of {progress.total}: {progress.cell.name}: {what}{left}")


def _duration(seconds: float) -> str:
    """Seconds as text in the largest unit of which there are at least one and a half."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _print_plan(plan: "Plan", as_json: bool) -> None:
    """Print what a sweep would do: for each kind and model the number of cells and their cost."""
    if as_json:
        rows = [asdict(estimate) for estimate in plan.estimates]
        print_json({"cells": len(plan.todo) + plan.n_done, "done": plan.n_done, "seconds": plan.seconds, "kinds": rows})
        return
    rows = [
        [
            each.kind,
            each.model,
            each.n_cells,
            each.n_done,
            f"{each.operations / 1e12:.3g}",
            _duration(each.seconds),
            "cells in the store" if each.measured else "arithmetic, a lower bound",
        ]
        for each in plan.estimates
    ]
    print_table(["kind", "model", "cells", "done", "Tflop left", "time left", "by"], rows)
    print(f"\n{len(plan.todo)} cells to make, about {_duration(plan.seconds)} on one worker")


def _print_outcome(outcome: "Outcome", store: "Store", as_json: bool) -> None:
    """Print how a sweep ended, with the first twenty failures."""
    if as_json:
        failed = [{"cell": cell.name, "error": error} for cell, error in outcome.failed]
        facts = {name: getattr(outcome, name) for name in ("n_done", "n_made", "n_left", "interrupted")}
        print_json({**facts, "failed": failed, "store": str(store.folder)})
        return
    counts = f"{outcome.n_made} made, {outcome.n_done} were there, {len(outcome.failed)} failed, {outcome.n_left} left"
    print(f"{counts}; store: {store.folder}")
    for cell, error in outcome.failed[:20]:
        print(f"failed: {cell.name}: {error}")
    if outcome.failed:
        print(f"tracebacks: {store.folder / 'failed'}")
