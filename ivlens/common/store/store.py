"""`Store` keeps results in a folder, each found by what it was made from; any number of processes may share one."""

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
    read_entry,
    read_manifest,
    write_entry,
)
from ivlens.common.store.errors import disk_errors
from ivlens.common.store.keys import content_key
from ivlens.common.store.tables import one_table

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("ivlens")

MARK = "store.json"  # the file that makes a folder a store
SURVEYS = "surveys"  # a second store inside the store of a sweep: facts about its models, which are no results
KEPT = "store"  # name of the store in a command's --out folder
_PARTS = ("entries", "failed", "work", "damaged", "scratch", "locks", SURVEYS)
Fill = Callable[[Path], object]
T = TypeVar("T")


class Finding(NamedTuple):
    """Something damaged or left over: what it is, where it lies, and its size."""

    what: str
    path: Path
    n_bytes: int


def _holds_other_things(folder: Path) -> bool:
    """Whether a folder holds anything but scratch folders of processes that are making a store there."""
    return folder.is_dir() and any(not path.name.startswith(UNFINISHED) for path in folder.iterdir())


class Store:
    """Results in a folder (made if need be), each found by its description: a dict of everything that it depends on.

    In the folder: `entries/ab/abcd…/`, each result with its manifest; `failed/`, tracebacks of results that could not
    be made; `work/`, states of unfinished trainings; `damaged/`, results that were set aside; `scratch/`, results that
    are being written; `locks/`, locks of results that are being made.

    Raises:
        ValueError: the folder holds other things, or is not a folder.
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = path_of(folder, "folder")
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"store {str(folder)!r} is a file, expected a folder; name another one.")
        mark = self.folder / MARK
        # asked twice: another process may make this store meanwhile, and writes the mark before anything else
        if not mark.exists() and _holds_other_things(self.folder) and not mark.exists():
            raise ValueError(
                f"store {str(folder)!r} is a folder with other things in it, expected an empty one, or a store; name "
                "another one."
            )
        linked = [name for name in _PARTS if (self.folder / name).is_symlink()]
        if linked:  # results are moved and removed there, which must not happen outside of the store
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
        """Refuse a store in another format."""
        try:
            found = json.loads(read_small(mark, 1000))["format"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            found = "something else"
        if found != FORMAT:
            raise ValueError(f"{str(mark)!r} says {found!r:.60}, expected {FORMAT!r}; use another folder.")

    # --- one result --------------------------------------------------------------------------------------------------

    def place(self, key: str) -> Path:
        """The folder in which the result of a key is, or would be."""
        return self.folder / "entries" / key[:2] / key

    def find(self, what: Mapping[str, Any] | str) -> Entry | None:
        """The result of a description or key, or None. A damaged one is set aside, with a warning, as if absent."""
        folder = self.place(what if isinstance(what, str) else content_key(what))
        if not os.path.lexists(folder):
            return None
        if folder.parent.is_symlink():  # the results behind a link are not this store's
            self._set_aside(folder.parent)
            return None
        try:
            return read_entry(folder)
        except DamagedEntry as error:
            logger.warning("%s; it is set aside, and made again when it is asked for.", error)
            self._set_aside(folder)
            return None

    def read(self, what: Mapping[str, Any] | str, read: Callable[[Entry], T]) -> T | None:
        """What `read` returns for the result of a description or key; None where there is no such result.

        A result for which `read` raises a `ValueError` is set aside, with a warning, and counts as absent.
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
        """The table of the result with this description; where there is none, `make` makes it, and it is kept."""
        kept = self.read(what, Entry.table)
        if kept is not None:
            return kept
        return self.obtain(what, lambda folder: make().to_parquet(folder / TABLE), labels).table()

    def put(self, what: Mapping[str, Any], fill: Fill, labels: Mapping[str, Scalar] | None = None) -> Entry:
        """Keep a new result: `fill` puts its files, `table.parquet` among them, into the folder it is called with.

        If another process has kept a result of the same key meanwhile, that one stays and is returned.

        Raises:
            ValueError: `fill` wrote no table, or the description holds what JSON cannot.
            StoreError: the disk is full, read-only or broken; the results in the store stay whole.
        """
        key = content_key(what)
        with disk_errors(self.folder), self._scratch(key) as scratch:
            made = write_entry(scratch / key, what, labels or {}, fill)
            while True:  # a second time where a damaged result stood at the place
                found = self._move(made.folder, self.place(key))
                if found is not None:
                    break
        self.forgive(key)
        return found

    def obtain(self, what: Mapping[str, Any], fill: Fill, labels: Mapping[str, Scalar] | None = None) -> Entry:
        """The result of a description; where there is none, one process makes it by `put`, and others wait for it."""
        key = content_key(what)
        while True:
            found = self.find(key)
            if found is not None:
                return found
            try:
                with self.alone(key):
                    return self.find(key) or self.put(what, fill, labels)  # another process may have made it by now
            except BlockingIOError:
                time.sleep(0.2)

    @contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """In the body, no other process makes the result of this key.

        Raises:
            BlockingIOError: another process is making it.
        """
        with held(self.folder / "locks" / key, "a process that makes the same result"):
            yield

    def _move(self, new: Path, place: Path) -> Entry | None:
        """The result at `place`: `new`, or one that was there before; None if a damaged one there was set aside."""
        if os.path.lexists(place.parent) and not place.parent.is_dir():
            self._set_aside(place.parent)  # a file where a folder of results belongs
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
        """A new scratch folder, removed after the body; its lock tells `collect_garbage` that it is in use."""
        folder = self.folder / "scratch" / f"{key[:12]}-{uuid.uuid4().hex[:12]}"
        with held(folder, "a process that writes a result"):
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _set_aside(self, folder: Path) -> None:
        """Move a damaged result to `damaged/`, where a person can look at it."""
        target = self.folder / "damaged" / f"{folder.name:.64}-{uuid.uuid4().hex[:12]}"
        # where the file is gone, another process has moved it
        with disk_errors(self.folder), suppress(FileNotFoundError):
            target.parent.mkdir(exist_ok=True)
            os.rename(folder, target)

    def remove(self, key: str) -> None:
        """Remove the result of a key, if there is one."""
        # renamed first, so that no reader meets a result of which only some files are left
        with self._scratch(key) as scratch, suppress(FileNotFoundError):
            os.rename(self.place(key), scratch / key)

    def clear(self) -> None:
        """Remove all that the store holds, and its folder if nothing else lies in it."""
        # the mark goes last: if the process is killed here, the rest can still be opened as a store, and cleared
        for name in _PARTS:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / MARK).unlink(missing_ok=True)
        with suppress(OSError):  # the folder holds other things
            self.folder.rmdir()

    # --- unfinished and failed results -------------------------------------------------------------------------------

    def work(self, key: str) -> Path:
        """The folder for the state of an unfinished result; only the process that holds its lock may use the folder."""
        return self.folder / "work" / key

    def fail(self, key: str, about: Mapping[str, Any]) -> Path:
        """Write down why a result could not be made, and return the path of that file."""
        text = json.dumps(about, indent=1, default=str)
        with disk_errors(self.folder):
            return write_whole(
                self.folder / "failed" / f"{key}.json", lambda partial: partial.write_text(text, encoding="utf-8")
            )

    def failures(self) -> dict[str, dict[str, Any]]:
        """What was written down about each result that could not be made, by key."""
        found = {}
        for path in sorted((self.folder / "failed").glob("*.json")):
            try:
                about = json.loads(read_small(path))
            except (OSError, ValueError, RecursionError):
                about = {}  # a damaged note: the failure is still listed, without its reason
            found[path.stem] = about if isinstance(about, dict) else {}
        return found

    def forgive(self, key: str) -> None:
        """Remove the failure and the unfinished state of a result that is there by now."""
        (self.folder / "failed" / f"{key}.json").unlink(missing_ok=True)
        shutil.rmtree(self.work(key), ignore_errors=True)

    # --- all results -------------------------------------------------------------------------------------------------

    def places(self) -> list[Path]:
        """Folders of all results, damaged ones included, sorted."""
        return sorted(folder for folder in (self.folder / "entries").glob("*/*") if not folder.name.startswith("."))

    def entries(self, kind: str | None = None) -> list[Entry]:
        """All whole results, or those of one kind, in an order that depends on their content alone."""
        keys = [place.name for place in self.places() if is_key(place.name)]
        if kind is not None:  # by the manifests alone: checksums of other kinds take time for nothing
            keys = [key for key in keys if _is_of_kind(self.place(key), kind)]
        found = [entry for key in keys if (entry := self.find(key))]
        return sorted(found, key=lambda entry: (entry.kind, [*map(str, entry.labels.values())], entry.key))

    def ask_for(self, key: str) -> None:
        """Note that a result was asked for now; of several results with the same labels, `frame` shows the latest."""
        try:
            os.utime(self.place(key))
        except OSError:  # a store on a read-only disk
            pass

    def frame(self, kind: str | None = None) -> "pd.DataFrame":
        """The rows of all results as one table, with the labels of its result before each row.

        Where the model, task or package behind a label has changed, only the result that was asked for last is shown.
        """
        return one_table(self.entries(kind), f"store {self.folder}")


def _is_of_kind(place: Path, kind: str) -> bool:
    """Whether a result is of this kind, or too damaged to tell: then reading it whole sets it aside."""
    try:
        return read_manifest(place).kind == kind
    except DamagedEntry:
        return True
