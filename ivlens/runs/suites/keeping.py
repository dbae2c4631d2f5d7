"""Results of a benchmark's cells in a store: everything that each depends on, and how it is written and read."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ivlens.common.files import read_small
from ivlens.common.store.entries import TABLE, DamagedEntry, Entry
from ivlens.common.store.store import Store
from ivlens.prompts.recipe import plain_options
from ivlens.runs.suites.cells import BenchOptions
from ivlens.runs.suites.report import score_frame
from ivlens.runs.suites.results import Cell, CellResult
from ivlens.runs.suites.suite import Suite
from ivlens.tuning.builder import find_guidance
from ivlens.tuning.methods import new_method

KIND, RESULT_FILE = "sequences", "result.json"
_LARGEST_CELL = 2**26  # bytes of a result's JSON; a larger file is none of a cell


def suite_facts(suite: Suite) -> dict[str, Any]:
    """Everything about a suite that a result depends on: its tasks in order, with their splits, and their metrics."""
    return {
        "name": suite.name,
        "tasks": [[task.name, task.full_hash()] for task in suite.tasks],
        "general": [[task.name, task.full_hash()] for task in suite.general],
        "parts": [[example.part for example in task.examples] for task in (*suite.tasks, *suite.general)],
        "metrics": dict(suite.metrics),
        "keep_case": sorted(suite.keep_case),
    }


def cell_facts(suite: Suite, cell: Cell, options: BenchOptions) -> dict[str, Any]:
    """Everything but the model that a cell's result depends on; method and guidance with all their own options."""
    plan, _ = find_guidance(cell.guidance)
    return {
        "suite": suite_facts(suite),
        "cell": asdict(cell),
        "guidance": None if plan is None else plan.describe(),
        "method": new_method(cell.method).describe(),
        "options": plain_options(options),
    }


def write_cell(result: CellResult, folder: Path) -> None:
    """Write a cell's result into the folder of a store's result: all of it as JSON, and its scores as a table.

    Its seconds are left out, so that the same cell always gives the same bytes; the store notes the time by itself.
    """
    values = {name: value for name, value in result.to_dict().items() if name != "seconds"}
    (folder / RESULT_FILE).write_text(json.dumps(values, indent=1), encoding="utf-8")
    score_frame([result]).to_parquet(folder / TABLE, index=False)


def read_cell(entry: Entry) -> CellResult:
    """The cell's result that `write_cell` put into a store.

    Raises:
        DamagedEntry: the file holds values that no cell can have.
    """
    try:
        values = json.loads(read_small(entry.path(RESULT_FILE), _LARGEST_CELL))
        return CellResult.from_dict({**values, "seconds": entry.made["seconds"]})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"{entry.folder}: {RESULT_FILE} is no result of a cell ({type(error).__name__}: {error!s:.80})"
        raise DamagedEntry(message) from None


def kept_cells(folder: Path) -> list[CellResult]:
    """The results of all cells in a store, in an order that depends on their content alone."""
    store = Store(folder)
    found = [store.read(entry.key, read_cell) for entry in store.entries(KIND)]
    return [result for result in found if result is not None]
