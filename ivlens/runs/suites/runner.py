"""A grid of cells, each kept as soon as it is done, so that an interrupted grid goes on where it stopped."""

import json
import logging
import os
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from ivlens.common.checks import as_items
from ivlens.common.files import write_whole
from ivlens.common.foreign import read_foreign
from ivlens.common.kept import check_version
from ivlens.common.names import one_line
from ivlens.common.version import __version__
from ivlens.effects.results import HeadEffects
from ivlens.models.boot import TransformerBridge
from ivlens.models.fingerprint import model_identity
from ivlens.prompts.recipe import PromptRecipe
from ivlens.runs.suites.cells import BenchOptions, run_cell
from ivlens.runs.suites.results import Cell, CellResult
from ivlens.runs.suites.suite import Suite
from ivlens.tasks.task import hash_of_tasks
from ivlens.tuning.builder import find_guidance
from ivlens.tuning.methods import new_method
from ivlens.tuning.training.processes import current

logger = logging.getLogger("ivlens")

SuiteOf = Callable[[int], Suite]
_FORMAT = 1  # of kept cells
_LARGEST_CELL = 2**26  # bytes

OnStep = Callable[[Cell, dict[str, Any]], None]


@dataclass
class Grid:
    """Cells of one suite on one model.

    Attributes:
        model: From `load_model`.
        suite_of: The suite in one of its orders.
        options: What all cells have in common.
        folder: Where results are kept, under `cells/`, and the tracebacks of failed cells, under `failed/`.
        on_step: Told of every training step.
        on_cell: Told of every cell that is done, was done before, or failed.
    """

    model: TransformerBridge
    suite_of: SuiteOf
    options: BenchOptions
    folder: Path
    on_step: OnStep = lambda cell, row: None
    on_cell: Callable[[Cell], None] = lambda cell: None
    failed: list[Cell] = field(default_factory=list)
    _effects: dict[int, dict[str, HeadEffects]] = field(default_factory=dict)  # by seed

    def run(self, cells: Iterable[Cell]) -> list[CellResult]:
        """Results of all cells, those that are there and those that have to be run; failed ones are left out.

        Raises:
            ValueError: a kept result of another benchmark: another model, tasks, options or version of ivlens.
        """
        if current().size > 1:
            raise ValueError(
                f"a grid got {current().size} processes of one training, expected one process; run it outside of "
                "data_parallel, or share out its cells with ivlens sweep --workers."
            )
        results = []
        # all that is there first: what cannot be gone on from is said before hours of training
        for cell, kept in [(cell, self.kept(cell)) for cell in cells]:
            if kept is None:
                kept = self.kept(cell)  # another process may have run it meanwhile
            if kept is None:
                kept = self._run(cell)
            if kept is not None:
                results.append(kept)
            self.on_cell(cell)
        return results

    def kept(self, cell: Cell) -> CellResult | None:
        """The result on disk; None where there is none, or a damaged one, which is run again.

        Raises:
            ValueError: see `run`.
        """
        path = self._path(cell)
        if not os.path.lexists(path):
            return None
        if not path.is_file():
            raise ValueError(f"{str(path)!r} is no file, expected the result of a cell or nothing; remove it.")
        own = self._key(cell)
        try:
            version, key, result = _unsealed(read_foreign(path, _LARGEST_CELL).decode("utf-8"))
            if key == own and (result.cell, result.tasks) != (cell, self._names(cell)):
                raise ValueError("another cell")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            logger.warning("%s is damaged (%s: %.80s); the cell is run again.", path, type(error).__name__, error)
            return None
        check_version(path, version)
        if key != own:
            raise ValueError(
                f"{str(path)!r} is the result of another benchmark, expected the same model, tasks and options; use "
                "another folder, or remove the file."
            )
        return result

    def _run(self, cell: Cell) -> CellResult | None:
        try:
            result = run_cell(
                self.model,
                self.suite_of(cell.order),
                cell,
                self.options,
                effects=self._effects.setdefault(cell.seed, {}),
                on_step=lambda row: self.on_step(cell, row),
            )
        except Exception as error:  # whatever it is, it is written down, and must not cost the other cells
            self.failed.append(cell)
            report = self.folder / "failed" / f"{cell.name}.txt"
            write_whole(report, lambda partial: partial.write_text(traceback.format_exc(), encoding="utf-8"))
            logger.warning("%s failed: %s (%s)", cell.name, one_line(error), report)
            return None
        self.keep(result)
        return result

    def keep(self, result: CellResult) -> Path:
        """Write a result to where `kept` finds it; the file."""
        record = {"ivlens": __version__, "key": self._key(result.cell), "result": result.to_dict()}
        record = json.loads(json.dumps(record))
        text = json.dumps(record | {"seal": _seal(record)}, indent=1)
        return write_whole(self._path(result.cell), lambda partial: partial.write_text(text, encoding="utf-8"))

    def _names(self, cell: Cell) -> tuple[str, ...]:
        return tuple(task.name for task in self.suite_of(cell.order).tasks)

    def _path(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.name}.json"

    def _key(self, cell: Cell) -> str:
        suite = self.suite_of(cell.order)
        tasks = [hash_of_tasks([task]) for task in suite.tasks]
        what = [_FORMAT, suite.name, tasks, hash_of_tasks(suite.general), model_identity(self.model).key]
        parts = [[example.part for example in task.examples] for task in (*suite.tasks, *suite.general)]
        plan, _ = find_guidance(cell.guidance)
        made_of = [parts, None if plan is None else plan.describe(), new_method(cell.method).describe()]
        about = [_as_kept(self.options), asdict(cell), *_revised(suite, cell)]
        all_of_it = json.dumps([*what, *made_of, *about], sort_keys=True)
        return sha256(all_of_it.encode()).hexdigest()[:16]


def _as_kept(options: BenchOptions) -> dict[str, Any]:
    """Options as they stand in the keys of kept cells, under their first names: results made then are still good."""
    tune, recipe = options.tune, options.recipe
    values = {name: getattr(options, name) for name in ("target", "n_general", "n_earlier", "few_shots")}
    values |= {"tune": tune.kept(), "n_samples": tune.n_samples, "n_test": tune.n_prompts, "template": recipe.template}
    if tune.patience is None:
        del values["tune"]["patience"]  # there was none at first
    # nor were there recipes, but for the template by its name
    named = isinstance(recipe.template, str) and recipe == PromptRecipe(recipe.template)
    return values if named else values | {"template": None, "recipe": recipe.to_dict()}


def _unsealed(text: str) -> tuple[str, str, CellResult]:
    """Version of ivlens, key and result of a kept cell."""
    record = json.loads(text)
    # results from before there was a seal are still good, and one whose seal has another name by accident is not
    if record.keys() - {"seal"} != {"ivlens", "key", "result"}:
        raise ValueError("other fields than those that are written")
    if "seal" in record and record.pop("seal") != _seal(record):
        raise ValueError("not what was written")
    return record["ivlens"], record["key"], CellResult.from_dict(record["result"])


def _seal(record: dict[str, Any]) -> str:
    return sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _revised(suite: Suite, cell: Cell) -> list[str]:
    """What this cell is made of that cells of the same format were not at first."""
    revised = {
        "judged by Rouge-L": any(suite.metrics[task.name] == "rouge_l" for task in (*suite.tasks, *suite.general)),
        "replayed prompts unguided": cell.method == "replay" and find_guidance(cell.guidance)[0] is not None,
        "told by demonstrations": any(not (one.instructions or one.fused) for one in (*suite.tasks, *suite.general)),
    }
    return [what for what, concerns_it in revised.items() if concerns_it]


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
