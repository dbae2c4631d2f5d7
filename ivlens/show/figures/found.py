"""Find the files of results in a folder, and tell what each of them holds by its content, not by its name."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import pandas as pd
import pyarrow.parquet as parquet

from ivlens.common.foreign import check_parquet, opened_tensors
from ivlens.common.names import one_line
from ivlens.common.saves import READY
from ivlens.common.store.store import KEPT, MARK

Result = TypeVar("Result")
logger = logging.getLogger("ivlens")

_LARGEST_CSV = 2**26  # bytes; tables of results are far smaller
_MOST_FILES = 50_000  # under a folder of results, without hidden ones and those of stores
INNER = ("effects", "vectors")  # subfolders that commands make; their files belong to the run of the folder above


@dataclass(frozen=True)
class Found:
    """One file of results.

    Attributes:
        path: where the file is.
        group: the run that it belongs to, named after the file's folder, relative to the folder of results.
        columns: the names of a table's columns; empty for a file that is no table.
        format: the format that ivlens recorded in a safetensors file; empty for other files.
        names: what tasks are called in figures, by their names in the files.
    """

    path: Path
    group: str
    columns: frozenset[str] = frozenset()
    format: str = ""
    names: Mapping[str, str] = field(default_factory=dict, compare=False)

    def has(self, *columns: str) -> bool:
        """Whether the file is a table with all these columns."""
        return self.columns.issuperset(columns)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The table in the file, read once."""
        read: Any = pd.read_csv if self.path.suffix == ".csv" else pd.read_parquet
        table = read(self.path)
        named = {column: table[column].map(lambda name: self.names.get(name, name)) for column in self._of_tasks(table)}
        return table.assign(**named) if self.names else table

    def loaded(self, kind: type[Result]) -> Result:
        """The result of this kind in a safetensors file."""
        result: Any = cast(Any, kind).load(self.path)
        return replace(result, task=self.names.get(result.task, result.task))

    @cached_property
    def tasks(self) -> set[str]:
        """The names of the tasks in the file, as it calls them."""
        if self.path.suffix == ".safetensors":
            return {str(_about(self.path).get("task", ""))}
        plain = replace(self, names={}).frame
        return {str(name) for column in self._of_tasks(plain) for name in plain[column].unique()}

    @staticmethod
    def _of_tasks(table: pd.DataFrame) -> list[str]:
        """The columns that hold names of tasks; vectors have those of their tasks."""
        return [column for column in ("task", "vector", "trained") if column in table]


def find_results(*folders: Path, names: Mapping[str, str] | None = None) -> list[Found]:
    """All tables and safetensors files under these folders, in the order of their paths.

    A file that cannot be read is left out, with a warning.

    Args:
        folders: folders of results. With several, the names of runs begin with the name of their folder.
        names: what tasks shall be called in figures, by their names in the files.

    Raises:
        NotADirectoryError: no such folder.
        ValueError: two folders have the same name; or a task is renamed that no file has.
    """
    for folder in folders:
        if not folder.is_dir():
            raise NotADirectoryError(
                f"{str(folder)!r} is not a folder, expected one with results; make it with ivlens demo --out {folder}."
            )
    called = [folder.resolve().name for folder in folders]
    if len(set(called)) < len(called):
        raise ValueError(f"folders of results are called {', '.join(called)}, expected distinct names; rename one.")
    prefixes = [[name] for name in called] if len(called) > 1 else [[]]
    every = [found for folder, prefix in zip(folders, prefixes, strict=True) for found in _found(folder, prefix)]
    given = _checked(names or {}, every)
    return [replace(found, names=given) for found in every] if given else every


def _checked(names: Mapping[str, str], files: Sequence[Found]) -> Mapping[str, str]:
    """The same names, if every task that they are for is in some file."""
    known = {task for file in files for task in file.tasks} if names else set()
    unknown = [name for name in names if name not in known]
    if unknown:
        there = ", ".join(sorted(filter(None, known)))
        raise ValueError(f"renamed is {unknown[0]!r:.60}, expected a task of these results: {there:.300}.")
    return names


def _found(folder: Path, prefix: list[str]) -> Iterator[Found]:
    """The files of results under one folder; `prefix` begins the names of its runs."""
    for parts, path in _files(folder).items():
        group = "-".join([*prefix, *(parts[:-2] if len(parts) > 1 and parts[-2] in INNER else parts[:-1])])
        try:
            if path.suffix == ".parquet":
                # of a table only the names of its columns are read here, the rest once it is drawn
                check_parquet(path)
                yield Found(path, group, columns=frozenset(parquet.read_schema(path).names))
            elif path.suffix == ".csv" and path.stat().st_size <= _LARGEST_CSV:
                yield Found(path, group, columns=frozenset(map(str, pd.read_csv(path, nrows=0).columns)))
            elif path.suffix == ".safetensors":
                yield Found(path, group, format=_format(path))
        except (OSError, ValueError) as error:
            logger.warning("%s is left out: %s", path, one_line(error, 200))


def _files(folder: Path) -> dict[tuple[str, ...], Path]:
    """All files under a folder, by the parts of their paths, in order.

    A save that was interrupted at its end leaves complete new files in a subfolder `READY`. They count in place of the
    older files that they were about to replace.
    """
    found: dict[tuple[str, ...], Path] = {}
    for path in sorted(_visible(folder)):
        parts = path.relative_to(folder).parts
        place = tuple(part for part in parts if part != READY)
        if path.is_file() and (READY in parts or place not in found):
            found[place] = path
    return dict(sorted(found.items()))


def _visible(folder: Path) -> Iterator[Path]:
    """The files under a folder, without hidden ones and those of stores.

    Raises:
        ValueError: too many to be those of a result.
    """
    n_seen = 0
    for root, folders, names in os.walk(folder):
        # a command goes on from the single results in its store; the tables beside the store already hold all of them
        is_store = MARK in names and Path(root).name == KEPT and Path(root) != folder
        folders[:] = [] if is_store else [name for name in folders if name == READY or not name.startswith(".")]
        n_seen += len(names) + len(folders)
        if n_seen > _MOST_FILES:
            raise ValueError(
                f"{folder} has more than {_MOST_FILES:,} files, expected the folder of a result; name that folder."
            )
        if not is_store:
            yield from (Path(root, name) for name in names if not name.startswith("."))


def _format(path: Path) -> str:
    """The format in the metadata of a safetensors file; empty if ivlens did not write the file."""
    return str(_about(path).get("format", ""))


def _about(path: Path) -> dict[str, Any]:
    """The metadata of a safetensors file; none if ivlens did not write the file."""
    with opened_tensors(path) as opened:
        about = json.loads((opened.metadata() or {}).get("ivlens", "null"))
    return about if isinstance(about, dict) else {}
