"""`Store`: results by their content, on one disk, for any number of processes."""

import errno
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ivlens.common.files import UNFINISHED, flush, held, read_small, ready_folder, write_whole
from ivlens.common.names import path_of
from ivlens.common.store.entries import (
    FORMAT,
    TABLE,
    DamagedEntry,
    Entry,
    Scalar,
    is_key,
    latest_of_each,
    read_entry,
    write_entry,
)
from ivlens.common.store.errors import disk_errors
from ivlens.common.store.keys import content_key

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("ivlens")

MARK = "store.json"
SURVEYS = "surveys"  # a store inside the store of a sweep: what is known of its models
KEPT = "store"  # what commands call the store in the folder of their results
_PARTS = ("entries", "failed", "work", "damaged", "scratch", "locks", SURVEYS)
Fill = Callable[[Path], object]
T = TypeVar("T")


class Finding(NamedTuple):
    """What `verify` or `gc` found at a place."""

    what: str
    path: Path
    n_bytes: int


def _holds_other_things(folder: Path) -> bool:
    return folder.is_dir() and any(not path.name.startswith(UNFINISHED) for path in folder.iterdir())


class Store:
    """Results in a folder (made if need be).

    Layout: `entries/ab/abcd…/` with a manifest each; `failed/` with tracebacks; `work/` with the state of unfinished
    trainings; `damaged/` with what was set aside; `scratch/` and `locks/` for the moment of writing.

    Raises:
        ValueError: a folder that holds something else.
        OSError: a folder that cannot be written to.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = path_of(folder, "folder")
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"store {str(folder)!r} is a file, expected a folder; name another one.")
        mark = self.folder / MARK
        # another process may be making this store, or was killed over it: the mark is the first thing that is there
        if not mark.exists() and _holds_other_things(self.folder) and not mark.exists():
            raise ValueError(
                f"store {str(folder)!r} is a folder with other things in it, expected an empty one, or a store; name "
                "another one."
            )
        linked = [name for name in _PARTS if (self.folder / name).is_symlink()]
        if linked:  # results are moved and removed in them
            raise ValueError(
                f"store {str(folder)!r} has a link for {linked[0]!r}, expected a folder of its own; put the whole "
                "store where the link leads."
            )
        if not mark.exists():
            with disk_errors(self.folder):
                ready_folder(self.folder)
                write_whole(mark, lambda partial: partial.write_text(json.dumps({"format": FORMAT}), encoding="utf-8"))
        self._check_mark(mark)

    def _check_mark(self, mark: Path) -> None:
        try:
            found = json.loads(read_small(mark, 1000))["format"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            found = "something else"
        if found != FORMAT:
            raise ValueError(f"{str(mark)!r} says {found!r:.60}, expected {FORMAT!r}; use another folder.")

    # --- one result --------------------------------------------------------------------------------------------------

    def place(self, key: str) -> Path:
        """Where a result is, or would be."""
        return self.folder / "entries" / key[:2] / key

    def find(self, what: Mapping[str, Any] | str) -> Entry | None:
        """The result of a description or key. A damaged one is set aside, with a warning, and counts as absent."""
        folder = self.place(what if isinstance(what, str) else content_key(what))
        if not os.path.lexists(folder):
            return None
        if folder.parent.is_symlink():  # what lies there is not the store's
            self._set_aside(folder.parent)
            return None
        try:
            return read_entry(folder)
        except DamagedEntry as error:
            logger.warning("%s; it is set aside, and made again when it is asked for.", error)
            self._set_aside(folder)
            return None

    def read(self, what: Mapping[str, Any] | str, read: Callable[[Entry], T]) -> T | None:
        """What `read` makes of the result of a description or key; None where there is none.

        A result that `read` refuses with a `ValueError` is set aside, with a warning, and counts as absent.
        """
        found = self.find(what)
        if found is None:
            return None
        try:
            return read(found)
        except ValueError as error:
            logger.warning("%s; it is set aside, and made again when it is asked for.", error)
            self._set_aside(found.folder)
            return None

    def table(
        self, what: Mapping[str, Any], make: "Callable[[], pd.DataFrame]", labels: Mapping[str, Scalar] | None = None
    ) -> "pd.DataFrame":
        """The table kept under a description; where there is none, the one that `make` makes, which is then kept."""
        kept = self.read(what, Entry.table)
        if kept is not None:
            return kept
        return self.obtain(what, lambda folder: make().to_parquet(folder / TABLE), labels).table()

    def put(self, what: Mapping[str, Any], fill: Fill, labels: Mapping[str, Scalar] | None = None) -> Entry:
        """Let `fill` put the files of a result (`table.parquet` among them) into a scratch folder, and keep them.

        Where another process was quicker, its result is returned: one key, one result.

        Raises:
            ValueError: no table, or a description that JSON cannot hold.
            StoreError: the disk is full, or refuses; what was in the store is as it was.
        """
        key = content_key(what)
        with disk_errors(self.folder), self._scratch(key) as scratch:
            made = write_entry(scratch / key, what, labels or {}, fill)
            while True:
                found = self._move(made.folder, self.place(key))
                if found is not None:
                    break
        self.forgive(key)
        return found

    def obtain(self, what: Mapping[str, Any], fill: Fill, labels: Mapping[str, Scalar] | None = None) -> Entry:
        """`find`, or else `put`, one process at a time: the others wait for its result."""
        key = content_key(what)
        while True:
            found = self.find(key)
            if found is not None:
                return found
            try:
                with self.alone(key):
                    return self.find(key) or self.put(what, fill, labels)
            except BlockingIOError:
                time.sleep(0.2)

    @contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Keep other processes from making the same result.

        Raises:
            BlockingIOError: one of them is at it.
        """
        with held(self.folder / "locks" / key, "a process that makes the same result"):
            yield

    def _move(self, new: Path, place: Path) -> Entry | None:
        """The result at its place; None where a damaged one was in the way, and is no more."""
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(new, place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            return self.find(place.name)
        flush(place.parent)
        return read_entry(place)

    @contextmanager
    def _scratch(self, key: str) -> Iterator[Path]:
        folder = self.folder / "scratch" / f"{key[:12]}-{uuid.uuid4().hex[:12]}"
        with held(folder, "a process that writes a result"):
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _set_aside(self, folder: Path) -> None:
        target = self.folder / "damaged" / f"{folder.name:.64}-{uuid.uuid4().hex[:12]}"
        target.parent.mkdir(exist_ok=True)
        try:
            os.rename(folder, target)
        except FileNotFoundError:
            return  # another process did it

    def remove(self, key: str) -> None:
        """Remove a result that no longer says what is so."""
        with self._scratch(key) as scratch, suppress(FileNotFoundError):  # another process did it
            os.rename(self.place(key), scratch / key)

    def clear(self) -> None:
        """Remove the whole store, and its folder if nothing else lies in it."""
        # the mark goes last: a store of which only a part is removed can still be opened, and cleared
        for name in _PARTS:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / MARK).unlink(missing_ok=True)
        with suppress(OSError):  # someone keeps other things in it
            self.folder.rmdir()

    # --- what went wrong, and what is under way ----------------------------------------------------------------------

    def work(self, key: str) -> Path:
        """A folder for the state of an unfinished result, for a process that is `alone` with it."""
        return self.folder / "work" / key

    def fail(self, key: str, about: Mapping[str, Any]) -> Path:
        """Write down why a result could not be made."""
        text = json.dumps(about, indent=1, default=str)
        with disk_errors(self.folder):
            return write_whole(
                self.folder / "failed" / f"{key}.json", lambda partial: partial.write_text(text, encoding="utf-8")
            )

    def failures(self) -> dict[str, dict[str, Any]]:
        """What could not be made, by key."""
        found = {}
        for path in sorted((self.folder / "failed").glob("*.json")):
            try:
                about = json.loads(read_small(path))
            except (OSError, ValueError, RecursionError):
                about = {}
            found[path.stem] = about if isinstance(about, dict) else {}
        return found

    def forgive(self, key: str) -> None:
        """The result is there: its failure and the state of its making are of no more use."""
        (self.folder / "failed" / f"{key}.json").unlink(missing_ok=True)
        shutil.rmtree(self.work(key), ignore_errors=True)

    # --- all results -------------------------------------------------------------------------------------------------

    def places(self) -> list[Path]:
        """Folders of all results, whole or not."""
        return sorted(folder for folder in (self.folder / "entries").glob("*/*") if not folder.name.startswith("."))

    def entries(self, kind: str | None = None) -> list[Entry]:
        """All whole results, in an order that depends on their content alone."""
        found = [entry for place in self.places() if is_key(place.name) and (entry := self.find(place.name))]
        chosen = [entry for entry in found if kind in (None, entry.kind)]
        return sorted(chosen, key=lambda entry: (entry.kind, [*map(str, entry.labels.values())], entry.key))

    def ask_for(self, key: str) -> None:
        """Note that a result is the one that its labels mean now: its model or task may have been another meanwhile."""
        try:
            os.utime(self.place(key))
        except OSError:  # a store that is only read
            pass

    def frame(self, kind: str | None = None) -> "pd.DataFrame":
        """The rows of all results as one table, each with the labels of its result before them.

        Where a model, a task or a package has changed under its name, the result that was asked for last counts.
        """
        import pandas as pd

        found = self.entries(kind)
        latest = latest_of_each(found)
        if len(latest) < len(found):
            what = "of models, tasks or packages as they were before, and stand in no table"
            logger.warning("store %s: %d results are %s.", self.folder, len(found) - len(latest), what)
        tables = []
        for entry in latest:
            table = entry.table()
            labels = {name: value for name, value in entry.labels.items() if name not in table}
            tables.append(table.assign(**labels, entry=entry.key[:12])[[*labels, "entry", *table]])
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
