"""One result on disk: a folder of files and a manifest with their checksums, whole or not served."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ivlens.common.files import flush, read_small
from ivlens.common.foreign import check_parquet
from ivlens.common.measures import renamed
from ivlens.common.memory import pass_on_shortage
from ivlens.common.names import one_line
from ivlens.common.store.keys import KEY, canonical, content_key
from ivlens.common.version import __version__

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "ivlens.common.store/1"
MANIFEST, TABLE = "manifest.json", "table.parquet"
_MAX_MANIFEST = 2**24  # bytes; a real one has some thousands

# what the labels of a result only name
_NAMED = {"model", "task", "others", "bank", "format", "ivlens", "torch", "transformers"}

Scalar = str | int | float | bool | None


class DamagedEntry(ValueError):
    """A result that is not whole: cut off, changed, or no result at all."""


@dataclass(frozen=True)
class Entry:
    """A whole result.

    Attributes:
        folder: Where its files are.
        key: `content_key(what)`.
        what: Everything the result depends on.
        labels: What people call it, one value for each column of the store's table.
        files: Name, checksum and size of each file.
        made: When, where and in how many seconds it was made; not part of what it is.
    """

    folder: Path
    key: str
    what: Mapping[str, Any]
    labels: Mapping[str, Scalar]
    files: Mapping[str, tuple[str, int]]
    made: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """What sort of result it is."""
        return str(self.what.get("kind", ""))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all files: equal where two results are the same to the byte."""
        return sha256(canonical(self.files).encode()).hexdigest()

    @property
    def n_bytes(self) -> int:
        """Size of all files."""
        return sum(size for _, size in self.files.values())

    def path(self, name: str) -> Path:
        """One of its files.

        Raises:
            ValueError: it has no such file.
        """
        if name not in self.files:
            raise ValueError(f"entry {self.key:.12} has no {name!r}, expected one of {', '.join(self.files)}.")
        return self.folder / name

    def table(self) -> "pd.DataFrame":
        """Its rows.

        Raises:
            DamagedEntry: the table is no table.
        """
        import pandas as pd

        try:
            check_parquet(self.path(TABLE))
            return renamed(pd.read_parquet(self.path(TABLE)))
        except Exception as error:  # Arrow's and the system's own, in great variety
            pass_on_shortage(error)
            raise DamagedEntry(f"{self.folder}: {TABLE} cannot be read ({one_line(error, 200)})") from None


def write_entry(
    folder: Path, what: Mapping[str, Any], labels: Mapping[str, Scalar], fill: Callable[[Path], object]
) -> Entry:
    """Let `fill` put files into the new folder, and list them in a manifest; all of it is on the disk at the end.

    Raises:
        ValueError: no table among the files, or a description that JSON cannot hold.
        OSError: the disk.
    """
    folder.mkdir()
    started = time.perf_counter()
    fill(folder)
    seconds = time.perf_counter() - started
    files = {name: _digest(folder / name) for name in _names(folder)}
    if TABLE not in files or MANIFEST in files:
        raise ValueError(f"a result consists of {', '.join(files) or 'nothing'}, expected {TABLE} among its files.")
    made = {"seconds": seconds, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "on": platform.node()}
    listed = {name: list(facts) for name, facts in files.items()}
    about = {"format": FORMAT, "ivlens": __version__, "what": what, "labels": labels, "files": listed}
    about["made"] = made
    about["seal"] = _seal(about)
    (folder / MANIFEST).write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for name in (*files, MANIFEST):
        flush(folder / name)
    for inner in sorted({(folder / name).parent for name in files}):
        flush(inner)
    return Entry(folder, content_key(what), dict(what), dict(labels), files, made)


def read_entry(folder: Path) -> Entry:
    """A result, after every checksum has been compared.

    Raises:
        DamagedEntry: it is not whole; the message says what is wrong.
    """
    try:
        if folder.is_symlink() or not folder.is_dir():
            raise DamagedEntry(f"{folder} is no folder")
        entry = _described(folder)
        names = _names(folder)
        if set(names) != {*entry.files, MANIFEST}:
            raise DamagedEntry(f"{folder} holds {', '.join(names)[:200]}, not the files that its manifest lists")
        for name, (checksum, size) in entry.files.items():
            if (folder / name).stat().st_size != size or _digest(folder / name) != (checksum, size):
                raise DamagedEntry(f"{folder}: the content of {name} is not what was written")
    except OSError as error:
        pass_on_shortage(error)  # which says nothing of the result
        raise DamagedEntry(f"{folder} cannot be read ({error.strerror or type(error).__name__})") from None
    return entry


def _described(folder: Path) -> Entry:
    try:
        text = read_small(folder / MANIFEST, _MAX_MANIFEST)
    except OSError:
        raise DamagedEntry(f"{folder} has no {MANIFEST} of its own") from None
    try:
        about = json.loads(text)
        seal = about.pop("seal")
        if about["format"] != FORMAT or seal != _seal(about):
            raise DamagedEntry(f"{folder}: its manifest is not what was written")
        files = {_plain_name(name): (str(checksum), int(size)) for name, (checksum, size) in about["files"].items()}
        labels, what, made = (dict(about[name]) for name in ("labels", "what", "made"))
    except DamagedEntry:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError) as error:
        raise DamagedEntry(f"{folder}: its manifest is damaged ({type(error).__name__})") from None
    if not all(isinstance(value, Scalar) for value in labels.values()):
        raise DamagedEntry(f"{folder}: its labels are no plain values")
    key = content_key(what)
    if folder.name != key:
        raise DamagedEntry(f"{folder} holds the result {key:.12}, not the one of its name")
    return Entry(folder, key, what, labels, files, made)


def _plain_name(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or not name or "\\" in name:
        raise ValueError("a file outside of the entry")
    return name


def _names(folder: Path) -> list[str]:
    """All files of a folder, sorted; a link is no file of it.

    Raises:
        DamagedEntry: there is something else than files and folders.
    """
    names = []
    for place, inner, files in os.walk(folder, followlinks=False):
        for name in (*files, *inner):
            path = Path(place) / name
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise DamagedEntry(f"{folder}: {name!r:.100} is a link or no regular file")
        names += [(Path(place) / name).relative_to(folder).as_posix() for name in files]
    return sorted(names)


def _digest(path: Path) -> tuple[str, int]:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _seal(about: Mapping[str, Any]) -> str:
    return sha256(canonical(about).encode()).hexdigest()


def latest_of_each(entries: Sequence[Entry]) -> list[Entry]:
    """One result for each set of labels: the one asked for last, where others differ only in what the names stood for.

    The labels of a sweep name a model and a task; their weights, configuration or examples may have changed since.
    """
    latest: dict[str, Entry] = {}
    for entry in entries:
        named = {name: value for name, value in entry.what.items() if name not in _NAMED}
        alike = canonical([dict(entry.labels), named]) if entry.labels and "model" in entry.what else entry.key
        if alike not in latest or _asked_at(latest[alike]) < _asked_at(entry):
            latest[alike] = entry
    kept = {entry.key for entry in latest.values()}
    return [entry for entry in entries if entry.key in kept]


def _asked_at(entry: Entry) -> int:
    try:
        return entry.folder.stat().st_mtime_ns
    except OSError:  # removed meanwhile
        return 0


def is_key(name: str) -> bool:
    """Whether a folder's name can be that of a result."""
    return KEY.fullmatch(name) is not None
