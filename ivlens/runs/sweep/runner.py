"""Plan and run a sweep: which cells the store lacks, what they cost, and how far the sweep is."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol, runtime_checkable

from ivlens.common.store.errors import StoreError
from ivlens.common.store.keys import content_key
from ivlens.common.store.store import Store
from ivlens.runs.sweep import cost
from ivlens.runs.sweep.cells import Cell, ModelSpec, Survey
from ivlens.runs.sweep.grid import SweepGrid
from ivlens.runs.sweep.local import Job
from ivlens.runs.sweep.making import MAKERS
from ivlens.runs.sweep.options import Setting
from ivlens.runs.sweep.workshop import Report

logger = logging.getLogger("ivlens")


@runtime_checkable
class Executor(Protocol):
    """Makes cells, in this process (`LocalExecutor`) or on a cluster (`ClusterExecutor`)."""

    def survey(self, spec: ModelSpec, setting: Setting, *, load: bool = True) -> Survey: ...

    def run(self, jobs: Sequence[Job], stop: Callable[[], bool]) -> Iterator[tuple[Job, Report]]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Estimate:
    """What the cells of one kind on one model will cost.

    Attributes:
        kind, model: The kind of the cells, and the name of the model.
        n_cells, n_done: Number of cells, and how many of them are in the store.
        operations: Estimated floating-point operations of the cells that are left.
        seconds: Estimated seconds of the cells that are left, on one worker.
        measured: Whether the seconds follow from cells of this kind and model in the store. Otherwise they follow from
            the operations and this machine's speed, and are a lower bound.
    """

    kind: str
    model: str
    n_cells: int
    n_done: int
    operations: float
    seconds: float
    measured: bool


@dataclass
class Plan:
    """What a sweep has to do.

    Attributes:
        todo: Cells that the store lacks, each with the facts about its model.
        n_done: Number of cells that the store has.
        estimates: The cost of the cells, for each kind and model.
        weights: Estimated seconds of each cell of `todo`.
    """

    todo: list[Job]
    n_done: int
    estimates: list[Estimate]
    weights: dict[Cell, float]

    @property
    def seconds(self) -> float:
        """Estimated seconds of all cells that are left, on one worker."""
        return sum((estimate.seconds for estimate in self.estimates), 0.0)


@dataclass
class Outcome:
    """How a sweep ended.

    Attributes:
        n_done: Number of cells that were in the store before.
        n_made: Number of cells made meanwhile, by this sweep or by another one on the same store.
        failed: The cells that failed, each with its error in one line.
        n_left: Number of cells that were not begun.
        interrupted: Whether a signal ended the sweep before all cells were made.
    """

    n_done: int
    n_made: int = 0
    failed: list[tuple[Cell, str]] = field(default_factory=list)
    n_left: int = 0
    interrupted: bool = False


@dataclass(frozen=True)
class Progress:
    """How far a sweep is after one more cell.

    Attributes:
        cell, report: The cell, and the outcome of making it.
        n, total: Number of cells finished by now, and of all cells to make.
        left: Estimated seconds to the end; None where nothing can be estimated.
    """

    cell: Cell
    report: Report
    n: int
    total: int
    left: float | None


def make_plan(grid: SweepGrid, store: Store, executor: Executor, *, load: bool = True) -> Plan:
    """Find out which cells the store has, and estimate what the others cost.

    Args:
        load: Load models that the store does not know yet, for the keys of their results. False: all their cells count
            as absent.
    """
    # each pair once; several cells with one key are one job
    surveys = {(cell.model, cell.setting): None for cell in grid.cells}
    known = {each: executor.survey(*each, load=load) for each in surveys}
    jobs: dict[str, Job] = {}
    for cell in grid.cells:
        survey = known[cell.model, cell.setting]
        jobs.setdefault(content_key(cell.what(survey)), (cell, survey))
    done = {key for key, (_, survey) in jobs.items() if survey.weights_hash and store.find(key) is not None}
    for key in done:  # of results with the same labels, these are the ones that tables shall show
        store.ask_for(key)
    costs = {cell: MAKERS[cell.kind].cost(cell, survey) for cell, survey in jobs.values()}
    rates = _measured_rates(store, jobs.values(), costs, done)
    todo = [job for key, job in jobs.items() if key not in done]
    weights = {cell: costs[cell] / _rate(rates, cell) for cell, _ in todo}
    groups: dict[tuple[str, str], list[str]] = {}
    for key, (cell, _) in jobs.items():
        groups.setdefault((cell.kind, cell.model.name), []).append(key)
    estimates = [_estimate(kind, model, keys, jobs, done, costs, rates) for (kind, model), keys in groups.items()]
    return Plan(todo, len(done), estimates, weights)


def _estimate(
    kind: str,
    model: str,
    keys: Sequence[str],
    jobs: dict[str, Job],
    done: set[str],
    costs: dict[Cell, float],
    rates: dict[tuple[str, str], float],
) -> Estimate:
    """The cost of the cells of one kind and model, which have these keys."""
    left = [jobs[key][0] for key in keys if key not in done]
    operations = sum((costs[cell] for cell in left), 0.0)
    seconds = sum((costs[cell] / _rate(rates, cell) for cell in left), 0.0)
    n_done = len(keys) - len(left)
    return Estimate(kind, model, len(keys), n_done, operations, seconds, (kind, model) in rates)


def _measured_rates(store: Store, jobs: Any, costs: dict[Cell, float], done: set[str]) -> dict[tuple[str, str], float]:
    """Median of the operations per second of finished cells, for each kind and model."""
    found: dict[tuple[str, str], list[float]] = {}
    for cell, survey in jobs:
        key = content_key(cell.what(survey))
        entry = store.find(key) if key in done else None
        if entry is not None and float(entry.made.get("seconds") or 0) > 0:
            found.setdefault((cell.kind, cell.model.name), []).append(costs[cell] / float(entry.made["seconds"]))
    return {each: median(rates) for each, rates in found.items()}


def _rate(rates: dict[tuple[str, str], float], cell: Cell) -> float:
    """Operations per second to expect for a cell: measured, or those of this machine."""
    return rates.get((cell.kind, cell.model.name)) or cost.machine_rate()


def run_sweep(
    plan: Plan, executor: Executor, *, on_cell: Callable[[Progress], None] = lambda progress: None
) -> Outcome:
    """Make the cells that are left. SIGINT or SIGTERM ends this after the cells that were begun, a second one at once.

    Raises:
        StoreError: the disk is full, read-only or broken; finished cells are kept.
        KeyboardInterrupt: a second signal came.
    """
    outcome, started, spent = Outcome(plan.n_done, n_left=len(plan.todo)), time.monotonic(), 0.0
    whole = sum(plan.weights.values(), 0.0)
    with _asked_to_stop() as stop:
        for (cell, _), report in executor.run(plan.todo, stop):
            if report.status == "full":
                raise StoreError(None, report.error, "")  # the text names the place already
            outcome.n_left -= 1
            if report.status == "failed":
                outcome.failed.append((cell, report.error))
            else:
                outcome.n_made += 1
            spent += plan.weights[cell]
            # in proportion to the time so far, as there may be several workers, and estimates may be too low
            left = (time.monotonic() - started) / spent * (whole - spent) if spent else None
            on_cell(Progress(cell, report, len(plan.todo) - outcome.n_left, len(plan.todo), left))
        outcome.interrupted = stop() and outcome.n_left > 0
    return outcome


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """In the body, SIGINT and SIGTERM only set a flag; yields a function that tells whether one has come.

    Python delivers signals to the main thread alone, so in another thread nothing is changed.
    """
    asked = threading.Event()
    said = "stopping after the cells that were begun; press Ctrl-C again to stop at once."
    # in a thread: the signal may come while a line is being written, and no stream can be written to within a write
    telling = threading.Thread(target=logger.warning, args=(said,), daemon=True)

    def hear(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        telling.start()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if telling.ident is not None:
            telling.join()
