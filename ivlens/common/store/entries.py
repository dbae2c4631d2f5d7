"""One result on disk: a folder of files, and a manifest with the checksum of each; read only if all of them fit."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ivlens.common.files import flush, open_to_others, read_small
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
_MAX_MANIFEST = 2**24  # bytes; a real manifest has some thousands


Scalar = str | int | float | bool | None


class DamagedEntry(ValueError):
    """The files of a result are not what was written: cut off, changed, missing, or not a result at all."""


@dataclass(frozen=True)
class Entry:
    """A whole result in a store.

    Attributes:
        folder: Where its files are.
        key: The key of its description: `content_key(what)`.
        what: Its description: everything that the result depends on.
        labels: Names for people, such as model and task: each is a column of the store's table.
        files: Checksum and size (bytes) of each file, by name.
        made: When, where and in how many seconds it was made. The key does not depend on these.
        version: The version of ivlens that made it.
    """

    folder: Path
    key: str
    what: Mapping[str, Any]
    labels: Mapping[str, Scalar]
    files: Mapping[str, tuple[str, int]]
    made: Mapping[str, Any]
    version: str

    @property
    def kind(self) -> str:
        """The kind of the result, such as `effects`; empty where its description names none."""
        return str(self.what.get("kind", ""))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all checksums: equal if and only if two results have the same files, byte for byte."""
        return sha256(canonical(self.files).encode()).hexdigest()

    @property
    def n_bytes(self) -> int:
        """Size of all files together, in bytes."""
        return sum(size for _, size in self.files.values())

    def path(self, name: str) -> Path:
        """The path of one of the result's files.

        Raises:
            ValueError: the result has no such file.
        """
        if name not in self.files:
            raise ValueError(f"entry {self.key:.12} has no {name!r}, expected one of {', '.join(self.files)}.")
        return self.folder / name

    def table(self) -> "pd.DataFrame":
        """The table of the result, with today's names of measures.

        Raises:
            DamagedEntry: the file is no parquet table.
        """
        import pandas as pd

        try:
            check_parquet(self.path(TABLE))
            return renamed(pd.read_parquet(self.path(TABLE)))
        except Exception as error:  # Arrow raises errors of many kinds
            pass_on_shortage(error)
            raise DamagedEntry(f"{self.folder}: {TABLE} cannot be read ({one_line(error, 200)})") from None


def write_entry(
    folder: Path, what: Mapping[str, Any], labels: Mapping[str, Scalar], fill: Callable[[Path], object]
) -> Entry:
    """Make a folder, let `fill` put the files of a result into it, and add their manifest; all is flushed to the disk.

    Raises:
        ValueError: there is no table among the files, or the description holds what JSON cannot.
        OSError: the disk is full, read-only or broken.
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
    about["seal"] = _seal(about)  # the checksum of the manifest itself
    (folder / MANIFEST).write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    # all of it reaches the disk before the caller renames the folder: after a power cut a result has all its files
    for name in (*files, MANIFEST):
        open_to_others(folder / name)
        flush(folder / name)
    for inner in sorted({(folder / name).parent for name in files}):
        flush(inner)
    plain = json.loads(canonical(what))  # as a reader gets it: tuples have become lists
    return Entry(folder, content_key(what), plain, dict(labels), files, made, __version__)


def read_entry(folder: Path) -> Entry:
    """Read a result, comparing the checksum of every file.

    Raises:
        DamagedEntry: the result is not whole; the message says what is wrong.
    """
    try:
        if folder.is_symlink() or not folder.is_dir():
            raise DamagedEntry(f"{folder} is no folder")
        entry = read_manifest(folder)
        names = _names(folder)
        if set(names) != {*entry.files, MANIFEST}:
            raise DamagedEntry(f"{folder} holds {', '.join(names)[:200]}, not the files that its manifest lists")
        for name, (checksum, size) in entry.files.items():
            if (folder / name).stat().st_size != size or _digest(folder / name) != (checksum, size):
                raise DamagedEntry(f"{folder}: the content of {name} is not what was written")
    except OSError as error:
        pass_on_shortage(error)  # too little memory or too many open files do not make a result damaged
        raise DamagedEntry(f"{folder} cannot be read ({error.strerror or type(error).__name__})") from None
    return entry


def read_manifest(folder: Path) -> Entry:
    """A result as its manifest describes it; the other files are not looked at yet.

    Raises:
        DamagedEntry: there is no manifest, or it is not what was written.
    """
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
        version = str(about["ivlens"])
    except DamagedEntry:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError) as error:
        raise DamagedEntry(f"{folder}: its manifest is damaged ({type(error).__name__})") from None
    if not all(isinstance(value, Scalar) for value in labels.values()):
        raise DamagedEntry(f"{folder}: its labels are no plain values")
    # a result that was copied to another key must not be served as that key's result
    key = content_key(what)
    if folder.name != key:
        raise DamagedEntry(f"{folder} holds the result {key:.12}, not the one of its name")
    return Entry(folder, key, what, labels, files, made, version)


def _plain_name(name: str) -> str:
    """The name of a file, if it is a plain path inside of the result's folder; otherwise a `ValueError`."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or not name or "\\" in name:
        raise ValueError("a file outside of the entry")
    return name


def _names(folder: Path) -> list[str]:
    """Names of all files in a folder and its subfolders, sorted.

    Raises:
        DamagedEntry: the folder holds a link, a pipe or another thing that is neither a file nor a folder.
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
    """SHA-256 (hex) and size of a file."""
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _seal(about: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a manifest's content, without the seal itself."""
    return sha256(canonical(about).encode()).hexdigest()


def is_key(name: str) -> bool:
    """Whether a name has the form of a key, which is the name of every result's folder."""
    return KEY.fullmatch(name) is not None
