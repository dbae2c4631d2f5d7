"""The results of a benchmark's cells in a store: what each depends on, how it is written and read."""

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
_LARGEST_CELL = 2**26  # bytes


def suite_facts(suite: Suite) -> dict[str, Any]:
    """What a result depends on of a suite: its tasks with their splits, in order, and how they are scored."""
    return {
        "name": suite.name,
        "tasks": [[task.name, task.full_hash()] for task in suite.tasks],
        "general": [[task.name, task.full_hash()] for task in suite.general],
        "parts": [[example.part for example in task.examples] for task in (*suite.tasks, *suite.general)],
        "metrics": dict(suite.metrics),
        "keep_case": sorted(suite.keep_case),
    }


def cell_facts(suite: Suite, cell: Cell, options: BenchOptions) -> dict[str, Any]:
    """What a cell's result depends on beside the model; method and guidance with all their own options."""
    plan, _ = find_guidance(cell.guidance)
    return {
        "suite": suite_facts(suite),
        "cell": asdict(cell),
        "guidance": None if plan is None else plan.describe(),
        "method": new_method(cell.method).describe(),
        "options": plain_options(options),
    }


def write_cell(result: CellResult, folder: Path) -> None:
    """Put a cell's result into the folder of a store's entry: all of it as JSON, and its scores as a table.

    The time it took is left out: the store notes it beside the result, which is then the same bytes every time.
    """
    values = {name: value for name, value in result.to_dict().items() if name != "seconds"}
    (folder / RESULT_FILE).write_text(json.dumps(values, indent=1), encoding="utf-8")
    score_frame([result]).to_parquet(folder / TABLE, index=False)


def read_cell(entry: Entry) -> CellResult:
    """The result of a cell that `write_cell` put into a store.

    Raises:
        DamagedEntry: values that no cell comes to.
    """
    try:
        values = json.loads(read_small(entry.path(RESULT_FILE), _LARGEST_CELL))
        return CellResult.from_dict({**values, "seconds": entry.made["seconds"]})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"{entry.folder}: {RESULT_FILE} is no result of a cell ({type(error).__name__}: {error!s:.80})"
        raise DamagedEntry(message) from None


def kept_cells(folder: Path) -> list[CellResult]:
    """All results of cells in a store, by their content's order."""
    store = Store(folder)
    found = [store.read(entry.key, read_cell) for entry in store.entries(KIND)]
    return [result for result in found if result is not None]
