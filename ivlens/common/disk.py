"""What a disk says when it takes no more, in one sentence: which path, why, and what to do."""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

_TROUBLE = {
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ENXIO", "ESTALE", "EMLINK", "ENAMETOOLONG"),
        *("EACCES", "EPERM", "ENOTDIR", "EISDIR", "EMFILE", "ENFILE"),
    )
    if hasattr(errno, name)
}
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
_SHORT = _FULL | {errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}
_OF_RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors and tokenizers end such a message
_PROBE = bytes(4096)


class DiskError(OSError):
    """A file or folder that cannot be written; the message is one whole sentence."""

    def __init__(self, number: int | None, message: str, place: str | Path) -> None:
        super().__init__(number, message)
        self.place = Path(place)

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errno, self.strerror, self.place)


def trouble(error: BaseException) -> int | None:
    """The system's number for what is wrong with a disk or a path; None: the error is of something else."""
    found = error.errno if isinstance(error, OSError) else None
    # the system numbers errors; a library in Rust only quotes it
    if found is None and not isinstance(error, ValueError) and (quoted := _OF_RUST.search(str(error))):
        found = int(quoted[1])
    return found if found in _TROUBLE else None


def is_short_of_disk(error: BaseException) -> bool:
    """Whether a disk is full, read-only or broken, or has too many open files, whatever was written to it."""
    return trouble(error) in _SHORT


@contextmanager
def writing(place: str | Path) -> Iterator[None]:
    """Errors of the disk in the body as one sentence that names `place`.

    Raises:
        DiskError: the disk is full, read-only, broken, or the path cannot be written.
    """
    try:
        yield
    except Exception as error:
        number = trouble(error)
        if number is None or not _is_about(error, Path(place)):
            raise
        raise refusal(number, place) from error


def refusal(number: int, place: str | Path) -> DiskError:
    """The sentence for one of the system's numbers."""
    free = "free some room, or name another place" if number in _FULL else "mend that, or name another place"
    return DiskError(
        number,
        f"{str(place)!r} cannot be written to ({os.strerror(number)}), expected room for results; {free}, and give "
        "the same command again: what was there before is whole.",
        place,
    )


def check_file(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse a path at which no file can be written, before the work; nothing is left there.

    Raises:
        ValueError: another suffix.
        DiskError: a folder or a device is there, or its folder can neither be made nor written to.
    """
    if path.suffix.lower() not in suffixes:
        expected = f"one of {', '.join(suffixes)}" if len(suffixes) > 1 else suffixes[0]
        raise ValueError(f"--out {path} has suffix {path.suffix!r}, expected {expected}.")
    _check_kind(path, "file", stat.S_ISREG)
    try_writing(path.parent, path)


def check_folder(path: Path) -> None:
    """Refuse a path at which no folder can be filled, before the work; nothing is left there.

    Raises:
        DiskError: something else is there, or the folder can neither be made nor written to.
    """
    _check_kind(path, "folder", stat.S_ISDIR)
    try_writing(path)


def try_writing(folder: Path, place: Path | None = None) -> None:
    """Write a little into `folder`, or into the nearest one above it that is there, and remove it again.

    Raises:
        DiskError: it cannot be done; the message names `place`, or the folder.
    """
    try:
        there = next(one for one in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(one))
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
        with TemporaryFile(dir=there, buffering=0) as file:
            file.write(_PROBE)
    except OSError as error:
        raise refusal(error.errno or errno.EIO, place or folder) from error


def _check_kind(path: Path, what: str, is_it: Callable[[int], bool]) -> None:
    try:
        found = is_it(path.stat().st_mode)
    except FileNotFoundError:
        return
    except OSError as error:
        raise refusal(error.errno or errno.EIO, path) from error
    if not found:
        raise DiskError(errno.EEXIST, f"{str(path)!r} is no {what}, expected one, or nothing; name another path.", path)


def _is_about(error: BaseException, place: Path) -> bool:
    """Whether an error is about `place` or something in it, as far as it says which file it is about."""
    if isinstance(error, DiskError):
        return error.place != place and error.place.absolute().is_relative_to(place.absolute())
    named = getattr(error, "filename", None)
    if not isinstance(named, str | bytes | os.PathLike):
        return True
    file, place = Path(os.fsdecode(named)).absolute(), place.absolute()
    # a file that is written whole has its scratch folder beside it
    return any(one.is_relative_to(other) for one, other in ((file, place), (place, file), (file, place.parent)))
