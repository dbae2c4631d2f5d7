"""Writing files so that each is whole or absent, even where the program is killed; locks on folders."""

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
UNFINISHED = ".writing-"  # the beginning of the names of scratch folders
STATE = "state.safetensors"  # the saved state of a training, from which it can go on
_IN_USE = (EAGAIN, EACCES, EDEADLK)  # what systems answer where another process holds the lock
_LONGEST_WRITE = 86_400  # seconds; on a file system without locks an older scratch folder counts as left over
_LONGEST_NAME = 100  # bytes; most systems allow 255, which leaves room for a hash and suffixes

_UMASK = os.umask(0o077)  # the only way to read it is to set it
os.umask(_UMASK)
_READABLE = 0o666 & ~_UMASK

if sys.platform == "win32":
    import msvcrt

    def _hold(file: Any) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _hold(file: Any) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def hold(file: Any) -> bool:
    """Try to lock an open file, and do not wait; False where another process holds it.

    On a file system without locks nothing is locked, and the answer is True.
    """
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


def open_to_others(path: Path) -> None:
    """Give a new file the permissions that files have here; safetensors makes its files for their owner alone."""
    with suppress(OSError):  # file systems without permissions
        path.chmod(path.stat().st_mode | _READABLE)


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file; until it is complete and on the disk, `path` holds what was there before.

    Args:
        path: Where the file will be.
        write: Writes the file to the path that it is called with, which is inside a scratch folder.
    """
    with writing(path), scratch_in(path.parent) as scratch:
        write(scratch / path.name)
        open_to_others(scratch / path.name)
        flush(scratch / path.name)  # first the content: after a power cut the new name must not lead to an empty file
        (scratch / path.name).replace(path)  # atomic on every system
        flush(path.parent)
    return path


def give_name(source: Path, place: Path) -> None:
    """Make a hard link to a file, or copy the file on a file system without hard links."""
    try:
        os.link(source, place)
    except OSError:
        write_whole(place, lambda partial: shutil.copyfile(source, partial))


@contextmanager
def scratch_in(folder: Path) -> Iterator[Path]:
    """A new scratch folder inside `folder` (made if need be), which is removed when the body ends.

    Scratch folders that killed processes left there are removed first. They are recognised by the lock of a file in
    them, which the system has released. The name of a scratch folder begins with a dot, and nothing with such a name is
    ever read as a result or a model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder)
    place, lock = _locked(folder)
    try:
        yield place
    finally:
        lock.close()  # first, as some systems do not remove a file that is open
        shutil.rmtree(place, ignore_errors=True)


def _locked(folder: Path) -> tuple[Path, Any]:
    """A new scratch folder, and the open file in it that is locked."""
    while True:
        place = Path(mkdtemp(prefix=UNFINISHED, dir=folder))
        try:
            lock = open(place / LOCK, "a", encoding="utf-8")
        except FileNotFoundError:
            continue  # another process removed the empty folder as a leftover
        if hold(lock) and (place / LOCK).exists():
            return place, lock
        lock.close()  # another process is removing it at this moment


def clear_leftovers(folder: Path) -> None:
    """Remove the scratch folders of killed processes from `folder`; those of running processes stay."""
    with suppress(OSError), os.scandir(folder) as entries:
        left = [Path(one) for one in entries if one.name.startswith(UNFINISHED) and one.is_dir(follow_symlinks=False)]
        for place in left:
            with suppress(OSError):
                _clear(place)


def _clear(place: Path) -> None:
    """Remove one scratch folder, unless a running process holds its lock."""
    if not any(place.iterdir()):
        place.rmdir()  # a process that has not made its lock yet will make another folder
        return
    try:
        with open(place / LOCK, "r+", encoding="utf-8") as lock:
            _hold(lock)
            shutil.rmtree(place, ignore_errors=True)
    except FileNotFoundError:  # files but no lock: another process was killed while it removed the folder
        shutil.rmtree(place, ignore_errors=True)
    except OSError as error:
        if error.errno not in _IN_USE and time.time() - place.stat().st_mtime > _LONGEST_WRITE:
            shutil.rmtree(place, ignore_errors=True)  # without locks only its age can tell


@contextmanager
def held(folder: Path, what: str) -> Iterator[bool]:
    """Hold the lock of `folder` (made if need be) while the body runs; yields whether it could be locked.

    The system releases the lock when its process ends, however that happens. On a file system without locks the body
    runs without one, and a warning says so.

    Args:
        folder: The folder that nobody else shall use.
        what: For the error: what the other holder is, such as "a training".

    Raises:
        BlockingIOError: another process holds the lock.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = open(folder / LOCK, "a", encoding="utf-8")
        except FileNotFoundError:
            if (folder / LOCK).is_symlink():  # it leads nowhere, and will again
                raise
            continue  # the folder was removed at this moment
        with file:
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
                reason = error.strerror
                logger.warning("%s cannot be locked (%s): see to it that only one program uses it.", folder, reason)
            # whoever removes a folder holds its lock: the lock of a file that is gone keeps nobody out
            if locked and not _is_same_file(folder / LOCK, file):
                continue
            yield locked
            return


def _is_same_file(path: Path, file: Any) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def file_name(text: str, suffix: str = "") -> str:
    """A safe file name for any text; different texts get different names."""
    safe = "".join(char if char.isalnum() or char in "-_." else "_" for char in text)
    # two texts may become the same when characters are replaced, so a changed name gets a hash of its text
    if safe == text and 0 < len(safe.encode()) < _LONGEST_NAME and not safe.startswith("."):
        return safe + suffix
    return f"{safe.strip('.').encode()[:_LONGEST_NAME].decode(errors='ignore')}-{_short(text)}{suffix}"


def _short(text: str) -> str:
    """Eight letters of a text's hash."""
    return sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


def check_inner_names(path: Path, names: Iterable[object]) -> None:
    """Refuse a file that names other files, unless these lie directly in its folder: no path in a file is followed.

    Args:
        path: The file that names others.
        names: The names that it holds.

    Raises:
        ValueError: a name is a path, empty, or no text.
    """
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
            raise ValueError(
                f"{str(path)!r} names {name!r:.80}, expected names of files directly in its folder; save or "
                "download it again."
            )


def read_small(path: Path, limit: int = 2**20) -> bytes:
    """The content of a file that ivlens wrote, of at most `limit` bytes; no link is followed.

    Raises:
        OSError: the path is a link or no regular file, or the file is larger.
    """
    if path.is_symlink():
        raise OSError(f"{str(path)!r:.200} is a link, expected a regular file; remove it.")
    return read_foreign(path, limit)


def ready_folder(path: str | Path) -> Path:
    """The path of a folder that can be written to; the folder is made if need be.

    Raises:
        OSError: the folder cannot be made or written to.
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
