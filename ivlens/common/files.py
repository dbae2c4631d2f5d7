"""Files that are whole or absent, whenever a program is interrupted."""

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EAGAIN, EDEADLK
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from ivlens.common.disk import DiskError, try_writing, writing
from ivlens.common.foreign import read_foreign
from ivlens.common.names import path_of

logger = logging.getLogger("ivlens")

LOCK = ".lock"
UNFINISHED = ".writing-"  # how the names of scratch folders begin
STATE = "state.safetensors"  # of a training that can go on
_IN_USE = (EAGAIN, EACCES, EDEADLK)
_LONGEST = 86_400  # seconds that anyone writes, where locks do not tell
_LONGEST_NAME = 100  # bytes, so that suffixes fit as well

if sys.platform == "win32":
    import msvcrt

    def _hold(file: Any) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _hold(file: Any) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def hold(file: Any) -> bool:
    """Lock an open file, unless somebody else has; whether it is one's own now. Without locks it is everybody's."""
    try:
        _hold(file)
    except OSError as error:
        return error.errno not in _IN_USE
    return True


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    if path.is_dir() and sys.platform == "win32":
        return  # folders cannot be opened there
    # a file must be open for writing on some systems, a folder cannot be
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` make a file of this name elsewhere, and put it at `path` once it is complete and on the disk."""
    with writing(path), scratch_in(path.parent) as scratch:
        write(scratch / path.name)
        flush(scratch / path.name)
        (scratch / path.name).replace(path)
        flush(path.parent)
    return path


@contextmanager
def scratch_in(folder: Path) -> Iterator[Path]:
    """A new folder inside `folder` (made if need be) that is gone at the end, with what killed processes left there.

    A file in it is locked, so that others can tell it from a leftover: the system takes the lock back from a killed
    process. Its name begins with a dot, and nothing with such a name is ever read as a result or a model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder)
    place, lock = _locked(folder)
    try:
        yield place
    finally:
        lock.close()  # before, as some systems remove no open file
        shutil.rmtree(place, ignore_errors=True)


def _locked(folder: Path) -> tuple[Path, Any]:
    """A new scratch folder and its lock."""
    while True:
        place = Path(mkdtemp(prefix=UNFINISHED, dir=folder))
        try:
            lock = open(place / LOCK, "a", encoding="utf-8")
        except FileNotFoundError:
            continue  # still empty, it was taken for a leftover
        if hold(lock) and (place / LOCK).exists():
            return place, lock
        lock.close()  # someone clears it at this moment


def clear_leftovers(folder: Path) -> None:
    """Remove the scratch folders of processes that were killed; those of others that are at work stay."""
    with suppress(OSError), os.scandir(folder) as entries:
        left = [Path(one) for one in entries if one.name.startswith(UNFINISHED) and one.is_dir(follow_symlinks=False)]
        for place in left:
            with suppress(OSError):
                _clear(place)


def _clear(place: Path) -> None:
    if not any(place.iterdir()):
        place.rmdir()  # of a process that has not come to its lock yet, it is made again
        return
    try:
        with open(place / LOCK, "r+", encoding="utf-8") as lock:
            _hold(lock)
            shutil.rmtree(place, ignore_errors=True)
    except FileNotFoundError:  # its lock is the first thing in it and the last
        shutil.rmtree(place, ignore_errors=True)
    except OSError as error:
        if error.errno not in _IN_USE and time.time() - place.stat().st_mtime > _LONGEST:
            shutil.rmtree(place, ignore_errors=True)  # a file system without locks


@contextmanager
def held(folder: Path, what: str) -> Iterator[bool]:
    """Keep everyone else out of `folder` (made if need be) while the body runs; whether that is certain.

    The system takes the lock back when its owner ends, however that happens. Where the file system knows no locks, the
    body runs without one: it gets False, and a warning says so.

    Args:
        what: What another owner is doing there, for the message.

    Raises:
        BlockingIOError: someone else holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a", encoding="utf-8") as file:
        locked = True
        try:
            _hold(file)
        except OSError as error:
            locked = False
            if error.errno in _IN_USE:
                raise BlockingIOError(
                    f"{str(folder)!r} is in use by {what} that is still running, expected a folder of its own for "
                    "each; wait until it has ended, or use another folder."
                ) from error
            logger.warning("%s cannot be locked (%s): see to it that only one program uses it.", folder, error.strerror)
        yield locked


def file_name(text: str, suffix: str = "") -> str:
    """A name as that of a file in one folder, whatever stands in it: different names, different files."""
    safe = "".join(char if char.isalnum() or char in "-_." else "_" for char in text)
    # what had to be changed could be that of another name, and is told apart by its hash
    if safe == text and 0 < len(safe.encode()) < _LONGEST_NAME and not safe.startswith("."):
        return safe + suffix
    return f"{safe.strip('.').encode()[:_LONGEST_NAME].decode(errors='ignore')}-{_short(text)}{suffix}"


def _short(text: str) -> str:
    return sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


def check_inner_names(path: Path, names: Iterable[object]) -> None:
    """Refuse a file that names others anywhere but directly in its folder: no path in a file is followed.

    Raises:
        ValueError: one of the names is no such name.
    """
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
            raise ValueError(
                f"{str(path)!r} names {name!r:.80}, expected names of files directly in its folder; save or "
                "download it again."
            )


def read_small(path: Path, limit: int = 2**20) -> bytes:
    """The content of a file that ivlens wrote, of at most `limit` bytes; as `read_foreign`, but no link is followed.

    Raises:
        OSError: it is no such file, or too large.
    """
    if path.is_symlink():
        raise OSError(f"{str(path)!r:.200} is a link, expected a regular file; remove it.")
    return read_foreign(path, limit)


def ready_folder(path: str | Path) -> Path:
    """A folder that can be written to, made if need be.

    Raises:
        OSError: there is none, and none can be made.
    """
    folder = path_of(path, "folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try_writing(folder)
        return folder
    except OSError as error:
        what = os.strerror(error.errno) if error.errno else type(error).__name__
        message = f"{str(folder)!r} is no folder that can be written to ({what}); free some room, or name another one."
        raise DiskError(error.errno, message, folder) from error
