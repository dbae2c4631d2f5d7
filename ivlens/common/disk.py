"""Errors of the disk (full, read-only, broken) as one sentence: which path, why, and what to do."""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

_TROUBLE = {  # errors that are about the disk or the path; not every system has all of these names
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ENXIO", "ESTALE", "EMLINK", "ENAMETOOLONG"),
        *("EACCES", "EPERM", "ENOTDIR", "EISDIR", "EMFILE", "ENFILE"),
    )
    if hasattr(errno, name)
}
# _FULL: free room would help; _SHORT: any other file would meet the same error
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
_SHORT = _FULL | {errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}
_OF_RUST = re.compile(r"\(os error (\d+)\)")  # at the end of messages of safetensors and tokenizers
_PROBE = bytes(4096)  # a full disk may still take an empty file


class DiskError(OSError):
    """A file or folder that cannot be written; the message is one whole sentence."""

    def __init__(self, number: int | None, message: str, place: str | Path) -> None:
        super().__init__(number, message)
        self.place = Path(place)

    def __str__(self) -> str:
        return str(self.strerror)  # without the number that OSError puts before it

    def __reduce__(self) -> tuple[Any, ...]:
        # errors of worker processes arrive as copies; OSError's own copy would lack `place`
        return type(self), (self.errno, self.strerror, self.place)


def trouble(error: BaseException) -> int | None:
    """The system's number of an error that is about a disk or a path; None for any other error."""
    found = error.errno if isinstance(error, OSError) else None
    # Python's own errors carry the number; libraries in Rust only write it into their message
    if found is None and not isinstance(error, ValueError) and (quoted := _OF_RUST.search(str(error))):
        found = int(quoted[1])
    return found if found in _TROUBLE else None


def is_short_of_disk(error: BaseException) -> bool:
    """Whether an error says that a disk is full, read-only or broken, or that too many files are open."""
    return trouble(error) in _SHORT


@contextmanager
def writing(place: str | Path) -> Iterator[None]:
    """Turn an error of the disk in the body into one sentence that names `place`.

    Raises:
        DiskError: the disk is full, read-only or broken, or the path cannot be written to.
    """
    try:
        yield
    except Exception as error:
        number = trouble(error)
        if number is None or not _is_about(error, Path(place)):
            raise
        raise refusal(number, place) from error


def refusal(number: int, place: str | Path) -> DiskError:
    """The error for a path that cannot be written to, for the reason that the system's error number gives."""
    remedy = "free some room, or name another place" if number in _FULL else "remove the cause, or name another place"
    return DiskError(
        number,
        f"{str(place)!r} cannot be written to ({os.strerror(number)}), expected a place for results; {remedy}, and "
        "give the same command again: what was there before is whole.",
        place,
    )


def check_file(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse a path at which no file can be written, before work begins; the check leaves nothing there.

    Args:
        path: Where the file will be.
        suffixes: Suffixes that it may have.

    Raises:
        ValueError: the path has another suffix.
        DiskError: a folder or a device stands there, or the folder around it can neither be made nor written to.
    """
    if path.suffix.lower() not in suffixes:
        expected = ("one of " if len(suffixes) > 1 else "") + ", ".join(suffixes)
        raise ValueError(f"--out {path} has suffix {path.suffix!r}, expected {expected}; name another file.")
    _check_kind(path, "file", stat.S_ISREG)
    try_writing(path.parent, path)


def check_folder(path: Path) -> None:
    """Refuse a path at which no folder can be made and filled, before work begins; the check leaves nothing there.

    Raises:
        DiskError: something else than a folder stands there, or the folder can neither be made nor written to.
    """
    _check_kind(path, "folder", stat.S_ISDIR)
    try_writing(path)


def try_writing(folder: Path, place: Path | None = None) -> None:
    """Write a small file into `folder`, or into the nearest existing folder above it, and remove the file again.

    Raises:
        DiskError: the file cannot be written; the message names `place`, or `folder` if `place` is None.
    """
    try:
        # a link that leads nowhere counts as existing, and is refused as no folder
        there = next(one for one in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(one))
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
        with TemporaryFile(dir=there, buffering=0) as file:  # unbuffered, so that the error comes at the next line
            file.write(_PROBE)
    except OSError as error:
        raise refusal(error.errno or errno.EIO, place or folder) from error


def _check_kind(path: Path, what: str, is_it: Callable[[int], bool]) -> None:
    """Refuse a path at which something of another kind than `what` stands; an unused path passes."""
    try:
        found = is_it(path.stat().st_mode)
    except FileNotFoundError:
        return
    except OSError as error:
        raise refusal(error.errno or errno.EIO, path) from error
    if not found:
        raise DiskError(errno.EEXIST, f"{str(path)!r} is no {what}, expected one, or nothing; name another path.", path)


def _is_about(error: BaseException, place: Path) -> bool:
    """Whether an error is about `place` or something inside it; an error that names no file counts, too."""
    # the message is a whole sentence, and is replaced only where `place` is a folder above its path
    if isinstance(error, DiskError):
        return error.place != place and error.place.absolute().is_relative_to(place.absolute())
    named = getattr(error, "filename", None)
    if not isinstance(named, str | bytes | os.PathLike):
        return True
    file, place = Path(os.fsdecode(named)).absolute(), place.absolute()
    # `write_whole` works in a scratch folder beside the file, so the error may name a path there
    return any(one.is_relative_to(other) for one, other in ((file, place), (place, file), (file, place.parent)))
