"""Read the file of a sweep: it lists models, tasks, seeds and options, and every combination is a cell."""

import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from itertools import product
from pathlib import Path
from typing import Any

from ivlens.common.foreign import read_foreign
from ivlens.common.names import one_line, path_of
from ivlens.models.known import known_model
from ivlens.runs.sweep.cells import Cell, ModelSpec
from ivlens.runs.sweep.kinds import KINDS
from ivlens.runs.sweep.options import PromptOptions, Setting, options_from, takes_list
from ivlens.runs.sweep.tasks import forget_tasks, open_task, suite_of_cell
from ivlens.tasks.bank import list_tasks

MAX_CELLS = 100_000
_MAX_BYTES = 2**20  # of a grid's file
_AXES = ("models", "tasks", "suites", "seeds")
_SETTING = ("device", "dtype", "threads", "max_memory")


@dataclass(frozen=True)
class SweepGrid:
    """The cells of a sweep in the order in which they are made: by model, and a cell after those it is made from."""

    cells: tuple[Cell, ...]

    @property
    def models(self) -> list[ModelSpec]:
        """The models of all cells, each once, in the order in which they are needed."""
        return list(dict.fromkeys(cell.model for cell in self.cells))


def read_grid(path: str | Path, *, instead: Mapping[str, Any] | None = None) -> SweepGrid:
    """Read a grid from a TOML file.

    At the top it has the lists `models`, `tasks` and `seeds`, and `device`, `dtype`, `threads`, `max_memory`. Then one
    or several tables follow for each kind of cells: `[effects]`, `[[tuning]]`. If an option has a list of values, each
    of them is tried. `models`, `tasks` and `seeds` in such a table replace those at the top. The table `[sequences]`,
    for cells of benchmarks, has `suites` instead of `tasks`. Paths are relative to the file. A model may be
    `name@revision`, or a pattern such as `runs/step-*`.

    Args:
        instead: Values of `device`, `dtype`, `template`, `n_shots` or `instruction` that replace those in the file, in
            every table that has this option.

    Raises:
        FileNotFoundError: the file, a task or a checkpoint folder does not exist.
        ValueError: the file is not TOML, a name is unknown, a value does not fit, or there are more than 100,000 cells.
    """
    source = path_of(path)
    forget_tasks()
    over = dict(instead or {})
    values = _parsed(source) | {name: over.pop(name) for name in _SETTING if name in over}
    sections = {name: values[name] for name in values if name in KINDS}
    unknown = [name for name in values if name not in (*KINDS, *_AXES, *_SETTING)]
    if unknown:
        known = ", ".join((*_AXES, *_SETTING, *(f"[{kind}]" for kind in KINDS)))
        raise ValueError(f"{source} has {unknown[0]!r:.80}, expected some of {known}; correct the name.")
    if not sections:
        raise ValueError(f"{source} has no table of cells, expected one of [{'], ['.join(KINDS)}]; add one.")
    setting = options_from(Setting, {name: values[name] for name in _SETTING if name in values}, str(source))
    cells: dict[Cell, None] = {}  # a set that keeps its order
    for kind in KINDS:  # whose order puts a kind after those it is made from
        tables = sections.get(kind, [])
        for number, table in enumerate(tables if isinstance(tables, list) else [tables]):
            where = f"{source} [{kind}]" + (f" number {number + 1}" if isinstance(tables, list) else "")
            if not isinstance(table, dict):
                raise ValueError(f"{where} is {table!r:.60}, expected a table; write [{kind}] on a line of its own.")
            _check_axes(kind, table, where)
            fitting = over if issubclass(KINDS[kind].options, PromptOptions) else {}
            table = {**_axes_of(values), **table, **fitting}
            cells.update(dict.fromkeys(_section(kind, table, setting, source, where)))
            if len(cells) > MAX_CELLS:
                raise ValueError(f"{source} makes more than {MAX_CELLS:,} cells, expected fewer; split it.")
    # by model, so that each is loaded once; the sort keeps the order of kinds within a model
    models = list(dict.fromkeys(cell.model for cell in cells))
    return SweepGrid(tuple(sorted(cells, key=lambda cell: models.index(cell.model))))


def _parsed(source: Path) -> dict[str, Any]:
    """The content of a grid's file."""
    if not source.is_file():
        raise FileNotFoundError(f"{str(source)!r:.300} is no file, expected a grid in TOML; check the path.")
    if source.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{source} is larger than {_MAX_BYTES:,} bytes, expected a grid in TOML; check the path.")
    try:
        return tomllib.loads(read_foreign(source, _MAX_BYTES).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{source} is not TOML ({one_line(error, 200)}), expected a grid in TOML; correct it."
        ) from None


def _axes_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The lists `models`, `tasks`, `suites` and `seeds` that stand at the top of a grid."""
    return {name: values[name] for name in _AXES if name in values}


def _check_axes(kind: str, table: Mapping[str, Any], where: str) -> None:
    """Refuse `tasks` in a table whose cells run through suites, and `suites` in all others."""
    for name in {"tasks", "suites"} - {KINDS[kind].over}:
        if name in table:
            raise ValueError(f"{where} has {name!r}, expected {KINDS[kind].over!r}; [{kind}] is about those.")


def _section(kind: str, table: Mapping[str, Any], setting: Setting, source: Path, where: str) -> Iterator[Cell]:
    """The cells of one table of a grid; everything in it is checked before the first one is given."""
    made = KINDS[kind].options
    models = [spec for name in _texts(table, "models", ["pocket"], where) for spec in _models(name, source)]
    over = KINDS[kind].over
    named = _texts(table, over, ["pocket"] if over == "suites" else None, where)
    tasks = [_task(name, source) for name in named] if over == "tasks" else named
    seeds = table.get("seeds", [0])
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int and 0 <= seed < 2**31 for seed in seeds)):
        raise ValueError(f"{where}: seeds is {seeds!r:.80}, expected a list of whole numbers, 0 or more.")
    given = {name: value for name, value in table.items() if name not in _AXES}
    if isinstance(given.get("watch"), list):
        given["watch"] = _tasks_in(given["watch"], source)
    if "template" in given:
        given["template"] = _templates(given["template"], source)
    if "data" in given:
        folders = given["data"] if isinstance(given["data"], list) else [given["data"]]
        given["data"] = [_beside(one, source) if isinstance(one, str) else one for one in folders]
    varied = {name: _values(made, name, value) for name, value in given.items()}
    # counted before they are made: a few long lists could fill the memory
    n_cells = math.prod(map(len, (models, tasks, seeds, *varied.values())))
    if not 0 < n_cells <= MAX_CELLS:
        raise ValueError(f"{where} makes {n_cells:,} cells, expected 1 to {MAX_CELLS:,}; lengthen or split its lists.")
    options = [
        options_from(made, dict(zip(varied, chosen, strict=True)), where) for chosen in product(*varied.values())
    ]
    if over == "suites":  # opened once, so that missing files are an error before any cell is made
        for one, suite in product(options, tasks):
            suite_of_cell(suite, *one.suite)
    rivals = {task: _rivals(task, tasks) for task in tasks} if KINDS[kind].uses_others else {}
    for model, seed, one, task in product(models, seeds, options, tasks):
        others = tuple(other for other in tasks if other in rivals.get(task, ()))
        yield Cell(kind, model, task, seed, one, others, setting)


def _rivals(task: str, tasks: Sequence[str]) -> set[str]:
    """The other tasks with some of the same inputs; the vector of a task about other words would be no fair control."""
    asked = {example.input for example in open_task(task).examples}
    return {other for other in tasks if other != task and any(one.input in asked for one in open_task(other).examples)}


def _values(made: type[Any], name: str, value: Any) -> list[Any]:
    """The values of an option to try. Where one value is itself a list, several values are a list of lists."""
    if not isinstance(value, list):
        return [value]
    if takes_list(made, name):
        return value if value and all(isinstance(item, list) for item in value) else [value]
    return value


def _texts(table: Mapping[str, Any], name: str, default: list[str] | None, where: str) -> list[str]:
    """A list of names in a table, each once; anything else is an error."""
    found = table.get(name, default)
    if not (isinstance(found, list) and found and all(isinstance(text, str) and text.strip() for text in found)):
        got = "is missing" if found is None else f"is {found!r:.80}"
        raise ValueError(f'{where}: {name} {got}, expected a list of names such as {name} = ["..."].')
    return list(dict.fromkeys(found))


def _tasks_in(value: list[Any], source: Path) -> list[Any]:
    """A list of tasks, or several such lists, with whole paths."""
    if value and all(isinstance(item, list) for item in value):
        return [_tasks_in(item, source) for item in value]
    return [_task(item, source) if isinstance(item, str) else item for item in value]


def _templates(value: Any, source: Path) -> Any:
    """Names of templates as they are; paths of files as whole paths."""
    if isinstance(value, list):
        return [_templates(item, source) for item in value]
    return _beside(value, source) if isinstance(value, str) and value.lower().endswith(".json") else value


def _models(name: str, source: Path) -> list[ModelSpec]:
    """One model, or all folders that a pattern matches; step-20 comes before step-100, as numbers are compared."""
    label, is_pinned, revision = name.partition("@")
    if is_pinned and not revision.strip():
        raise ValueError(f"{source}: model {name!r:.200} names no revision after '@', expected one; or leave '@' out.")
    if not set("*?[") & set(label):
        return [ModelSpec(_beside(label, source), revision or None)]
    found = [path for path in glob(os.path.join(source.parent, os.path.expanduser(label))) if os.path.isdir(path)]
    if not found:
        raise FileNotFoundError(f"{source}: no folder is {name!r:.200}, expected checkpoints; check the pattern.")
    order = sorted(
        found, key=lambda path: [(int(n), "") if n.isdecimal() else (-1, n) for n in re.split(r"(\d+)", path)]
    )
    return [ModelSpec(str(path_of(path).resolve())) for path in order]


def _task(name: str, source: Path) -> str:
    """The name of a built-in task, or a whole path; opened once, so that a fault is found before any cell is made."""
    found = name if name in list_tasks() else _beside(name, source)
    open_task(found)
    return found


def _beside(name: str, source: Path) -> str:
    """A whole path where the name is a path relative to the grid's file; other names stay as they are."""
    if "\0" in name or len(name) > 4096:
        raise ValueError(f"{source} names {name!r:.80}, expected a name or a path; shorten it.")
    path = source.parent / os.path.expanduser(name)
    return str(path.resolve()) if os.path.exists(path) and known_model(name) is None else name


def spread(cells: Sequence[Cell]) -> dict[str, int]:
    """Number of cells of each kind."""
    counts: dict[str, int] = {}
    for cell in cells:
        counts[cell.kind] = counts.get(cell.kind, 0) + 1
    return counts
