"""A grid of cells, each kept as soon as it is done, so that an interrupted grid goes on where it stopped."""

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
    """Cells of one suite on one model.

    Attributes:
        model: From `load_model`.
        suite_of: The suite in one of its orders.
        options: What all cells have in common.
        folder: Results are kept in the store `store/` in it, and so is what made cells fail (`ivlens store ls`).
        on_step: Told of every training step.
        on_cell: Told of every cell that is done, was done before, or failed.
        failed: Cells that could not be run, each with its error in one line.

    Raises:
        ValueError: the folder of the store holds something else.
    """

    model: TransformerBridge
    suite_of: SuiteOf
    options: BenchOptions
    folder: Path
    on_step: OnStep = lambda cell, row: None
    on_cell: Callable[[Cell], None] = lambda cell: None
    failed: dict[Cell, str] = field(default_factory=dict)
    _effects: dict[int, dict[str, HeadEffects]] = field(default_factory=dict)  # by seed

    def __post_init__(self) -> None:
        self.store = Store(self.folder / KEPT)

    def run(self, cells: Iterable[Cell]) -> list[CellResult]:
        """Results of all cells, those that are there and those that have to be run; failed ones are left out.

        Several processes may run the same grid: no cell is run twice.

        Raises:
            StoreError: the disk is full, or refuses; what is in the store is as it was.
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
        """The result in the store; None where there is none, or a damaged one, which is run again."""
        try:
            what = self.what(cell)
        except ValueError:  # no such method or guidance, which `run` writes down as the cell's failure
            return None
        return self.store.read(what, read_cell)

    def what(self, cell: Cell) -> dict[str, Any]:
        """Everything that the result of a cell depends on.

        Raises:
            ValueError: a method or guidance that does not exist.
        """
        facts = cell_facts(self.suite_of(cell.order), cell, self.options)
        return {"kind": KIND, "model": model_identity(self.model).key, **facts, **versions()}

    def _run(self, cell: Cell) -> CellResult | None:
        key = content_key({"kind": KIND, "cell": cell.name})  # of a cell that has no description
        try:
            what = self.what(cell)
            key = content_key(what)
            entry = self.store.obtain(what, lambda folder: write_cell(self._made(cell), folder), vars(cell))
            return read_cell(entry)
        except StoreError:
            raise
        except Exception as error:  # whatever it is, it is written down, and must not cost the other cells
            self.failed[cell] = line = f"{type(error).__name__}: {one_line(error, 500)}"
            about = {"cell": cell.name, "error": line, "traceback": traceback.format_exc()}
            path = self.store.fail(key, about)
            logger.warning("%s failed: %s (%s)", cell.name, one_line(error), path)
            return None

    def _made(self, cell: Cell) -> CellResult:
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
    """Every combination; the first order and seed of all methods come first, so that a first table is there early."""
    return [
        Cell(method, kind, order, seed, lr)
        for order in orders
        for seed in seeds
        for method in as_items("methods", methods)
        for kind in as_items("guidance", guidance)
    ]
