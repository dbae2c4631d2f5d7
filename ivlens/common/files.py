"""Files that are whole or absent, whenever a program is interrupted."""

import json
import logging
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EACCES, EAGAIN, EDEADLK
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ivlens.common.names import path_of

logger = logging.getLogger("ivlens")

LOCK, LIST = ".lock", "ivlens.json"
UNFINISHED = ".writing-"  # how the names of scratch folders begin
STATE = "state.safetensors"  # of a training that can go on

if sys.platform == "win32":
    import msvcrt

    def _hold(file: Any) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _hold(file: Any) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A scratch folder inside `folder` (made if need be); what the body puts there is moved to `folder` at its end.

    After an exception nothing is moved, and the scratch folder is gone. Every file is on the disk before it gets its
    name, so that a power failure leaves the old one or the new one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=UNFINISHED, dir=folder) as temporary:
        scratch = Path(temporary)
        yield scratch
        files = sorted(path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file())
        for file in files:
            flush(scratch / file)
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (scratch / file).replace(folder / file)
        for parent in {(folder / file).parent for file in files}:
            flush(parent)


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
    """Let `write` make a file of this name elsewhere, and put it at `path` once it is complete."""
    with filling(path.parent) as scratch:
        write(scratch / path.name)
    return path


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """As `filling`, for a folder whose files belong together: what was put there this way before goes.

    A list of what was written (`ivlens.json`) stays beside it, so that nothing else is ever removed.
    """
    with filling(folder) as scratch:
        yield scratch
        new = sorted(path.relative_to(scratch).as_posix() for path in scratch.rglob("*") if path.is_file())
        for name in _listed(folder / LIST) - {*new, LIST}:
            file = folder / name
            file.unlink(missing_ok=True)
            if file.parent != folder and file.parent.is_dir() and not any(file.parent.iterdir()):
                file.parent.rmdir()
        (scratch / LIST).write_text(json.dumps({"files": new}, indent=1) + "\n", encoding="utf-8")


def _listed(path: Path) -> set[str]:
    """Names in a list, as far as it can be read and they lead to nowhere else."""
    try:
        names = {Path(name) for name in json.loads(read_small(path))["files"]}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return set()
    return {name.as_posix() for name in names if not name.is_absolute() and ".." not in name.parts}


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
            if error.errno in (EAGAIN, EACCES, EDEADLK):
                raise BlockingIOError(
                    f"{str(folder)!r} is in use by {what} that is still running, expected a folder of its own for "
                    "each; wait until it has ended, or use another folder."
                ) from error
            logger.warning("%s cannot be locked (%s): see to it that only one program uses it.", folder, error.strerror)
        yield locked


def read_small(path: Path, limit: int = 2**20) -> bytes:
    """The content of a regular file of at most `limit` bytes; a pipe or a link is not opened.

    Raises:
        OSError: it is no such file, or too large.
    """
    about = path.lstat()
    if not stat.S_ISREG(about.st_mode) or about.st_size > limit:
        raise OSError(f"{str(path)!r} is no regular file of at most {limit:,} bytes, expected one; remove it.")
    return path.read_bytes()


def ready_folder(path: str | Path) -> Path:
    """A folder that can be written to, made if need be.

    Raises:
        OSError: there is none, and none can be made.
    """
    folder = path_of(path, "folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=UNFINISHED, dir=folder):
            return folder
    except OSError as error:
        what = error.strerror or type(error).__name__
        raise type(error)(f"{str(folder)!r} is no folder that can be written to ({what}); name another one.") from error
