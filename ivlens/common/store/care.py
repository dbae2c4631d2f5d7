"""Care of a store: find and remove what is damaged or left over, and export all results as one table."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ivlens.common.disk import check_file
from ivlens.common.files import LOCK, held
from ivlens.common.store.entries import DamagedEntry, Entry, is_key, read_entry
from ivlens.common.store.store import MARK, SURVEYS, Finding, Store
from ivlens.common.version import __version__


def verify(store: Store) -> tuple[int, list[Finding]]:
    """The number of whole results, and a finding for everything damaged or left over. Nothing is changed."""
    whole, findings = 0, []
    for place in store.places():
        try:
            _whole(store, place)
            whole += 1
        except DamagedEntry as error:
            findings.append(Finding(f"damaged: {error}", place, _size(place)))
    findings += [Finding("set aside as damaged", place, _size(place)) for place in _inside(store.folder / "damaged")]
    findings += [Finding("left by a killed process", place, _size(place)) for place in _abandoned(store)]
    return whole, findings


def _whole(store: Store, place: Path) -> Entry:
    """The result in a folder, if it is whole and lies where it is looked for; otherwise a `DamagedEntry`."""
    if not is_key(place.name):
        raise DamagedEntry(f"{place} is no result")
    if place != store.place(place.name) or place.parent.is_symlink():
        raise DamagedEntry(f"{place} lies where no result is looked for")
    entry = read_entry(place)
    entry.table()
    return entry


def collect_garbage(store: Store, *, other_versions: bool = False, dry_run: bool = False) -> list[Finding]:
    """Remove damaged results, leftovers of killed processes and free locks; returns a finding for each of them.

    The states of unfinished trainings and the tracebacks of failed cells always stay.

    Args:
        other_versions: Also remove the results of other versions of ivlens, which this version never asks for.
        dry_run: Return the findings, and remove nothing.
    """
    # a link inside the store may lead to a folder outside of it, where nothing is removed
    found = [finding for finding in verify(store)[1] if is_inside(finding.path, store.folder)]
    if other_versions:
        found += [finding for place in store.places() if (finding := _of_another_version(place)) is not None]
    found += [Finding("lock", place, 0) for place in _inside(store.folder / "locks") if _is_free(place)]
    for finding in () if dry_run else found:
        _remove_found(store, finding)
    if (store.folder / SURVEYS / MARK).is_file():
        found += collect_garbage(Store(store.folder / SURVEYS), other_versions=other_versions, dry_run=dry_run)
    return found


def _of_another_version(place: Path) -> Finding | None:
    """A finding for a whole result of another version of ivlens; None for all other places."""
    try:
        entry = read_entry(place)
    except DamagedEntry:  # which has a finding of its own
        return None
    return None if entry.version == __version__ else Finding(f"of ivlens {entry.version:.40}", place, entry.n_bytes)


def _remove_found(store: Store, finding: Finding) -> None:
    """Remove what was found, unless a process has begun to use it, or has made the result anew, since it was found."""
    path, key = finding.path, finding.path.name
    if path.parent.parent == store.folder / "entries" and is_key(key):
        try:
            with store.alone(key):
                if _is_still_so(store, finding):
                    remove(path)
            _remove_free(store.folder / "locks" / key)
        except BlockingIOError:  # it is being made anew
            return
    elif path.parent.name in ("locks", "scratch"):
        _remove_free(path)
    else:
        remove(path)


def _is_still_so(store: Store, finding: Finding) -> bool:
    """Whether a result is still damaged, or still of another version."""
    try:
        entry = _whole(store, finding.path)
    except DamagedEntry:
        return True
    return not finding.what.startswith("damaged") and entry.version != __version__


def _remove_free(folder: Path) -> None:
    """Remove a folder with a lock, if nobody holds the lock; nobody can take it meanwhile."""
    if folder.is_symlink() or not folder.is_dir() or (folder / LOCK).is_symlink():
        remove(folder)
        return
    with suppress(BlockingIOError), held(folder, "another process"):
        remove(folder)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path really lies in a folder, after all links on the way to it are followed."""
    return path.parent.resolve().is_relative_to(folder.resolve())


def remove(path: Path) -> None:
    """Remove a file, a folder with all its content, or a link; what the link leads to stays."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _inside(folder: Path) -> list[Path]:
    """Everything directly in a folder, sorted; nothing for a link, as its target is not the store's."""
    return sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []


def _abandoned(store: Store) -> Iterator[Path]:
    """Scratch folders whose processes have ended."""
    for place in _inside(store.folder / "scratch"):
        if _is_free(place):
            yield place


def _is_free(folder: Path) -> bool:
    """Whether no process holds the lock of a folder; the system releases a lock when its process ends."""
    lock = folder / LOCK
    if not folder.is_dir() or folder.is_symlink() or lock.is_symlink() or not lock.is_file():
        return True
    try:
        with held(folder, "another process"):
            return True
    except BlockingIOError:
        return False


def _size(place: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if place.is_symlink() or not place.is_dir():
        return place.lstat().st_size
    inner = (Path(top) / name for top, _, names in os.walk(place) for name in names)
    return sum(path.lstat().st_size for path in inner)


def export(store: Store, path: Path, kind: str | None = None) -> int:
    """Write the rows of all results into one table, and return their number.

    Args:
        path: The file to write: .parquet, .csv, or .json (a list of records).
        kind: Only results of this kind; None: all.

    Raises:
        ValueError: the path has another suffix, or there are no results.
    """
    from ivlens.common.files import write_whole

    writers = {
        ".parquet": lambda frame, partial: frame.to_parquet(partial, index=False),
        ".csv": lambda frame, partial: frame.to_csv(partial, index=False),
        # through pandas' own JSON, which turns NaN and numpy's types into plain JSON, and back for the line breaks
        ".json": lambda frame, partial: partial.write_text(
            json.dumps(json.loads(frame.to_json(orient="records")), indent=1), encoding="utf-8"
        ),
    }
    check_file(path, tuple(writers))
    frame = store.frame(kind)
    if frame.empty:
        kinds = sorted({entry.kind for entry in store.entries()})
        raise ValueError(
            f"store {str(store.folder)!r} has no results{f' of kind {kind!r}' if kind else ''}, expected some; it has "
            f"{', '.join(kinds) or 'none at all'}."
        )
    write_whole(path, lambda partial: writers[path.suffix.lower()](frame, partial))
    return len(frame)
