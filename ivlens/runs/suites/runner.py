"""Run many cells of a benchmark; a store keeps each result at once, so that an interrupted grid can go on."""

import logging
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ivlens.common.checks import as_items
from ivlens.common.names import one_line
from ivlens.common.store.errors import StoreError
from ivlens.common.store.keys import content_key, versions
from ivlens.common.store.store import KEPT, Store
from ivlens.effects.results import HeadEffects
from ivlens.models.boot import TransformerBridge
from ivlens.models.fingerprint import model_identity
from ivlens.runs.suites.cells import BenchOptions, run_cell
from ivlens.runs.suites.keeping import KIND, cell_facts, read_cell, write_cell
from ivlens.runs.suites.results import Cell, CellResult
from ivlens.runs.suites.suite import Suite
from ivlens.tuning.training.processes import current

logger = logging.getLogger("ivlens")

SuiteOf = Callable[[int], Suite]
OnStep = Callable[[Cell, dict[str, Any]], None]


@dataclass
class Grid:
    """Runs cells of one suite on one model, and keeps their results.

    Attributes:
        model: The model that every cell starts from, from `load_model`.
        suite_of: Gives the suite in the order with a number.
        options: Options that all cells share.
        folder: The store `store/` in this folder keeps the results, and the errors of cells that failed
            (`ivlens store ls`).
        on_step: Called with the cell and the log's row after every training step.
        on_cell: Called with every cell that is done, was done before, or failed.
        failed: The cells that failed, each with its error in one line.

    Raises:
        ValueError: the folder of the store holds other things.
    """

    model: TransformerBridge
    suite_of: SuiteOf
    options: BenchOptions
    folder: Path
    on_step: OnStep = lambda cell, row: None
    on_cell: Callable[[Cell], None] = lambda cell: None
    failed: dict[Cell, str] = field(default_factory=dict)
    _effects: dict[int, dict[str, HeadEffects]] = field(default_factory=dict)  # of general tasks, by seed and name

    def __post_init__(self) -> None:
        self.store = Store(self.folder / KEPT)

    def run(self, cells: Iterable[Cell]) -> list[CellResult]:
        """Run all cells whose results the store lacks, and return all results but those of failed cells.

        Several processes may run the same grid: no cell is run twice.

        Raises:
            ValueError: called by several processes of one training (`data_parallel`).
            StoreError: the disk is full, read-only or broken; the results in the store stay whole.
        """
        if current().size > 1:
            raise ValueError(
                f"a grid got {current().size} processes of one training, expected one process; run it outside of "
                "data_parallel, or share out its cells with ivlens sweep --workers."
            )
        results = []
        for cell in cells:
            found = self.kept(cell)
            if found is None:
                found = self._run(cell)
            if found is not None:
                results.append(found)
            self.on_cell(cell)
        return results

    def kept(self, cell: Cell) -> CellResult | None:
        """The cell's result in the store; None where there is none, or a damaged one."""
        try:
            what = self.what(cell)
        except ValueError:  # an unknown method or guidance: `run` notes it as the failure of this cell
            return None
        return self.store.read(what, read_cell)

    def what(self, cell: Cell) -> dict[str, Any]:
        """The cell's description in the store: everything that its result depends on.

        Raises:
            ValueError: an unknown method or guidance.
        """
        facts = cell_facts(self.suite_of(cell.order), cell, self.options)
        return {"kind": KIND, "model": model_identity(self.model).key, **facts, **versions()}

    def _run(self, cell: Cell) -> CellResult | None:
        """Run one cell and keep its result; None if it fails, and its error is noted."""
        # the failure of a cell with an unknown method, which has no description, is noted under a key of its name
        key = content_key({"kind": KIND, "cell": cell.name})
        try:
            what = self.what(cell)
            key = content_key(what)
            entry = self.store.obtain(what, lambda folder: write_cell(self._made(cell), folder), vars(cell))
            return read_cell(entry)
        except StoreError:
            raise
        except Exception as error:  # an error of any kind costs this cell alone
            self.failed[cell] = line = f"{type(error).__name__}: {one_line(error, 500)}"
            about = {"cell": cell.name, "error": line, "traceback": traceback.format_exc()}
            path = self.store.fail(key, about)
            logger.warning("%s failed: %s (%s)", cell.name, one_line(error), path)
            return None

    def _made(self, cell: Cell) -> CellResult:
        """The result of a cell that is run now."""
        return run_cell(
            self.model,
            self.suite_of(cell.order),
            cell,
            self.options,
            effects=self._effects.setdefault(cell.seed, {}),
            on_step=lambda row: self.on_step(cell, row),
        )


def all_cells(
    methods: str | Sequence[str],
    guidance: str | Sequence[str],
    orders: Sequence[int],
    seeds: Sequence[int],
    lr: float | None = None,
) -> list[Cell]:
    """Cells of all combinations; the first order and seed of every method come first, for an early first table."""
    return [
        Cell(method, kind, order, seed, lr)
        for order in orders
        for seed in seeds
        for method in as_items("methods", methods)
        for kind in as_items("guidance", guidance)
    ]
