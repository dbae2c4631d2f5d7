"""Saves of several files in one step: readers find the old save or the new one, whenever a process is killed.

The files of a new save are written into a scratch folder and flushed to the disk. One rename calls this folder
`.saved`: from then on the save counts as made. Next the old files are removed, so that none ever stands beside a new
one; each new file gets its place, as a hard link to its content; and `.saved` is removed last. If the process is killed
meanwhile, `whole` finds the files in `.saved`, and the next save into the folder first finishes the one before.
"""

import json
import os
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from errno import EEXIST, ENOTEMPTY
from hashlib import file_digest
from pathlib import Path, PurePosixPath

from ivlens.common.disk import writing
from ivlens.common.files import LOCK, UNFINISHED, flush, give_name, hold, open_to_others, read_small, scratch_in

READY, LIST = ".saved", "ivlens.json"
_OLD = ".replaced.json"  # inside READY: names and checksums of the files that this save removes
_LARGEST_LIST = 2**22  # bytes
_WAIT = 0.05  # seconds between two looks at a lock


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A scratch folder; when the body ends, its files are put into `folder` (made if need be).

    After an exception nothing is put there. Files of other names in `folder` stay.

    Raises:
        OSError: a link or a folder stands in the place of a file.
    """
    with writing(folder), scratch_in(folder) as scratch:
        settle(folder)
        new = scratch / "new"
        new.mkdir()
        yield new
        _put(folder, new, {})


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A scratch folder like that of `filling`; the files of the last save into `folder` are removed as well.

    A list (`ivlens.json`) with a checksum of each file is saved beside the files. A file that somebody changed since is
    never removed.

    Raises:
        ValueError: the list in `folder` is damaged, or names anything but regular files in the folder.
        OSError: a link or a folder stands in the place of a file.
    """
    with writing(folder), scratch_in(folder) as scratch:
        settle(folder)
        old = listed(folder)
        new = scratch / "new"
        new.mkdir()
        yield new
        written = {name: _digest(new / name) for name in _names(new)}
        (new / LIST).write_text(json.dumps({"files": written}, indent=1) + "\n", encoding="utf-8")
        _put(folder, new, {name: digest for name, digest in old.items() if name not in written})


def whole(folder: Path) -> Path:
    """The folder that holds the files of the last save: `folder`, or `.saved` inside it if the save was cut short.

    Raises:
        ValueError: the save was cut short, and somebody has changed some of the files since.
    """
    ready = folder / READY
    while _is_save(ready):
        try:
            _check_unchanged(folder, ready)
            return ready
        except FileNotFoundError:  # another process finished the save meanwhile
            continue
    return folder


def _is_save(ready: Path) -> bool:
    """Whether a path is the folder of a save that is made but not finished."""
    return _is_folder(ready) and os.path.isfile(ready / _OLD) and not os.path.islink(ready / _OLD)


def _is_foreign(ready: Path) -> bool:
    """Whether a path is a folder that no save has made; a save that another process finishes meanwhile is none."""
    try:
        before = ready.lstat()
        # one folder at both moments: a save's is renamed as a whole, before anything in it is removed
        return _is_folder(ready) and not _is_save(ready) and os.path.samestat(before, ready.lstat())
    except FileNotFoundError:
        return False


def _check_unchanged(folder: Path, ready: Path) -> None:
    """Refuse to finish a save if somebody has changed files in `folder` since the save was made."""
    made = ready.lstat().st_ctime_ns  # the time of the rename, after which nothing is put into it
    for name in _names(ready):
        place = folder / name
        if os.path.lexists(place) and place.lstat().st_mtime_ns > made and not _is_same(place, ready / name):
            if _digest(place) == _digest(ready / name):  # a copy, made on a file system without hard links
                continue
            raise ValueError(
                f"{str(place)!r} was changed after a save into its folder had been cut short, expected files of "
                f"one save; remove {str(ready)!r} to keep the change, or the file to keep the save."
            )


def listed(folder: Path) -> dict[str, str]:
    """Names and checksums of the files that saves put into a folder, as its list says; no checksums in older lists.

    Raises:
        ValueError: the list is damaged, or names anything but regular files in the folder.
    """
    path = folder / LIST
    if not os.path.lexists(path):
        return {}
    try:
        found = json.loads(read_small(path, _LARGEST_LIST))["files"]
        # older versions wrote a list without checksums
        files = dict(found) if isinstance(found, dict) else {name: "" for name in found}
        foreign = [name for name, digest in files.items() if not _is_own(folder, name, digest)]
    except FileNotFoundError:  # another process saves here at this moment
        return {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{str(path)!r} is damaged ({type(error).__name__}), expected the list of what was saved there; use "
            "another folder, or remove what was saved there and the list."
        ) from None
    if foreign:
        raise ValueError(
            f"{str(path)!r} lists {foreign[0]!r:.80}, expected names of files that were saved in its folder; use "
            "another folder, or remove the list."
        )
    return files


def _is_own(folder: Path, name: str, digest: object) -> bool:
    """Whether a listed name is that of a regular file inside the folder, reached through no link, or of no file.

    Without a checksum, the file must lie directly in the folder.
    """
    path = PurePosixPath(name)
    is_plain = name == path.as_posix() and not path.is_absolute() and "\\" not in name and "\0" not in name
    if not is_plain or ".." in path.parts or name in ("", ".", LIST) or not isinstance(digest, str):
        return False
    if len(path.parts) > 1 and not digest:
        return False
    place = folder
    for part in path.parts[:-1]:
        place /= part
        if os.path.lexists(place) and not _is_folder(place):
            return False
    try:
        return stat.S_ISREG((folder / name).lstat().st_mode)
    except FileNotFoundError:
        return True


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths are names of one file."""
    return os.path.samestat(one.lstat(), other.lstat())


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _names(folder: Path) -> list[str]:
    """All regular files of a folder, sorted; no link is followed."""
    found = []
    for place, _, names in os.walk(folder, followlinks=False):
        found += [path.relative_to(folder).as_posix() for name in names if _is_file(path := Path(place) / name)]
    return sorted(name for name in found if name not in (_OLD, LOCK))


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _put(folder: Path, new: Path, old: Mapping[str, str]) -> None:
    """Put the files in `new` into `folder`, and remove the `old` ones."""
    names = _names(new)
    for name in names:
        _check_way(folder, name)
        open_to_others(new / name)
        flush(new / name)
    # one file that replaces no other needs a single rename
    if len(names) == 1 and not old and "/" not in names[0]:
        (new / names[0]).replace(folder / names[0])
        flush(folder)
        return
    (new / _OLD).write_text(json.dumps(dict(old)), encoding="utf-8")
    (new / LOCK).touch()
    flush(new / _OLD)
    for inner in {(new / name).parent for name in names}:
        flush(inner)
    while names:
        try:
            os.rename(new, folder / READY)
            break
        except OSError as error:
            if error.errno not in (ENOTEMPTY, EEXIST) or _is_foreign(folder / READY):
                raise
            settle(folder)  # another process has just made a save here
    flush(folder)
    settle(folder)


def _check_way(folder: Path, name: str) -> None:
    """Refuse to write through a link, or over a folder."""
    path = PurePosixPath(name)
    inner = [folder.joinpath(*path.parts[:n]) for n in range(1, len(path.parts))]
    wrong = [place for place in inner if os.path.lexists(place) and not _is_folder(place)]
    wrong += [folder / name] if _is_folder(folder / name) else []
    if wrong:
        raise OSError(
            f"{str(wrong[0])!r} is in the way of {name!r}, expected no link or folder of that name; move it away, or "
            "save into another folder."
        )


def settle(folder: Path) -> None:
    """Finish a save that was made but cut short: bring its files to their places.

    Raises:
        ValueError: somebody has changed some of the files since.
        OSError: a link or a folder stands in the place of a file.
    """
    ready = folder / READY
    while _is_save(ready):
        try:
            lock = open(ready / LOCK, "r+", encoding="utf-8")
        except FileNotFoundError:  # another process has finished it
            continue
        with lock:
            if not hold(lock):
                time.sleep(_WAIT)  # another process is finishing it
            # the same lock still: another process may have finished this save, and a third made a new one
            elif os.path.lexists(ready / LOCK) and os.path.samestat(os.fstat(lock.fileno()), (ready / LOCK).stat()):
                _check_unchanged(folder, ready)
                _settle(folder, ready)
                if sys.platform == "win32":
                    lock.close()  # no folder with an open file can be renamed there
                done = folder / f"{UNFINISHED}{uuid.uuid4().hex[:8]}"
                os.rename(ready, done)
                shutil.rmtree(done, ignore_errors=True)


def _settle(folder: Path, ready: Path) -> None:
    """Remove the old files of a save, then give the new ones their places."""
    names = _names(ready)
    old = {name: digest for name, digest in _replaced(ready).items() if name not in names}
    # the config makes a folder a model: removed first and put back last, so that nobody loads parts of two models
    order = sorted(names, key=lambda name: (name.endswith("config.json"), name))
    for name in reversed(order):
        _check_way(folder, name)
        if os.path.lexists(folder / name) and not _is_same(folder / name, ready / name):
            (folder / name).unlink()
    for name, digest in old.items():
        if _is_own(folder, name, digest) and (folder / name).exists() and digest in ("", _digest(folder / name)):
            (folder / name).unlink()
    _remove_empty(folder, old)
    for name in order:
        place = folder / name
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            give_name(ready / name, place)
    for parent in {(folder / name).parent for name in names}:
        flush(parent)


def _replaced(ready: Path) -> dict[str, str]:
    """Names and checksums of the files that a save removes."""
    try:
        found = json.loads(read_small(ready / _OLD, _LARGEST_LIST))
        return {str(name): str(digest) for name, digest in found.items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _remove_empty(folder: Path, names: Iterable[str]) -> None:
    """Remove the folders in which no file is left."""
    for name in names:
        parent = (folder / name).parent
        if parent != folder and _is_folder(parent):
            with suppress(OSError):
                parent.rmdir()
