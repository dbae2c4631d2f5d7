"""What lies in a folder of results, known by what files hold, not by what they are called."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as parquet

from ivlens.common.foreign import check_parquet, opened_tensors
from ivlens.common.names import one_line
from ivlens.common.saves import READY
from ivlens.common.store.store import KEPT, MARK

logger = logging.getLogger("ivlens")

_LARGEST_CSV = 2**26  # bytes; such tables are small
INNER = ("effects", "vectors")  # folders in which commands keep files that belong to the folder above


@dataclass(frozen=True)
class Found:
    """One file of results.

    Attributes:
        path: where it is.
        group: the run it belongs to: its folder, seen from the folder of results.
        columns: of a table; empty for other files.
        format: of a safetensors file that ivlens wrote; empty for other files.
    """

    path: Path
    group: str
    columns: frozenset[str] = frozenset()
    format: str = ""

    def has(self, *columns: str) -> bool:
        """Whether it is a table with all these columns."""
        return self.columns.issuperset(columns)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The table."""
        read: Any = pd.read_csv if self.path.suffix == ".csv" else pd.read_parquet
        return read(self.path)


def find_results(*folders: Path) -> list[Found]:
    """Tables and artefacts under folders, by path; what cannot be read is left out, with a warning.

    Args:
        folders: one, or several with names of their own, which their runs' names then start with.

    Raises:
        NotADirectoryError: no such folder.
        ValueError: two folders of one name.
    """
    for folder in folders:
        if not folder.is_dir():
            raise NotADirectoryError(
                f"{str(folder)!r} is not a folder, expected one with results; make it with ivlens demo --out {folder}."
            )
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError(f"folders of results are called {', '.join(names)}, expected distinct names; rename one.")
    prefixes = [[name] for name in names] if len(names) > 1 else [[]]
    return [found for folder, prefix in zip(folders, prefixes, strict=True) for found in _found(folder, prefix)]


def _found(folder: Path, prefix: list[str]) -> Iterator[Found]:
    for parts, path in _files(folder).items():
        group = "-".join([*prefix, *(parts[:-2] if len(parts) > 1 and parts[-2] in INNER else parts[:-1])])
        try:
            if path.suffix == ".parquet":
                check_parquet(path)
                yield Found(path, group, columns=frozenset(parquet.read_schema(path).names))
            elif path.suffix == ".csv" and path.stat().st_size <= _LARGEST_CSV:
                yield Found(path, group, columns=frozenset(map(str, pd.read_csv(path, nrows=0).columns)))
            elif path.suffix == ".safetensors":
                yield Found(path, group, format=_format(path))
        except (OSError, ValueError) as error:
            logger.warning("%s is left out: %s", path, one_line(error, 200))


def _files(folder: Path) -> dict[tuple[str, ...], Path]:
    """All files by their places, in order; where a save was cut short after it was made, its files count."""
    found: dict[tuple[str, ...], Path] = {}
    # what commands keep for going on is no result: the tables beside it say the same for all of it
    stores = [mark.parent for mark in folder.rglob(f"{KEPT}/{MARK}")]
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        place = tuple(part for part in parts if part != READY)
        if (
            path.is_file()
            and not any(part.startswith(".") for part in place)
            and not any(path.is_relative_to(store) for store in stores)
            and (READY in parts or place not in found)
        ):
            found[place] = path
    return dict(sorted(found.items()))


def _format(path: Path) -> str:
    with opened_tensors(path) as opened:
        about = json.loads((opened.metadata() or {}).get("ivlens", "null"))
    return str(about.get("format", "")) if isinstance(about, dict) else ""
