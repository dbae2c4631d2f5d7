"""Looking after a store: what is damaged, what can go."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ivlens.common.disk import check_file
from ivlens.common.files import LOCK, held
from ivlens.common.store.entries import DamagedEntry, is_key, read_entry
from ivlens.common.store.store import MARK, SURVEYS, Finding, Store
from ivlens.common.version import __version__


def verify(store: Store) -> tuple[int, list[Finding]]:
    """How many results are whole, and everything that is not. Nothing is changed."""
    whole, findings = 0, []
    for place in store.places():
        try:
            if not is_key(place.name):
                raise DamagedEntry(f"{place} is no result")
            read_entry(place).table()
            whole += 1
        except DamagedEntry as error:
            findings.append(Finding(f"damaged: {error}", place, _size(place)))
    findings += [Finding("set aside as damaged", place, _size(place)) for place in _inside(store.folder / "damaged")]
    findings += [Finding("left by a killed process", place, _size(place)) for place in _abandoned(store)]
    return whole, findings


def collect_garbage(store: Store, *, other_versions: bool = False, dry_run: bool = False) -> list[Finding]:
    """Remove what no one will read any more, and say what that was.

    That is: results that are damaged, what killed processes left in `scratch/`, locks that no one holds; with
    `other_versions` also results of other versions of ivlens, which no sweep of this one asks for. Never the state of
    unfinished trainings, nor the tracebacks of cells that failed.
    """
    found = [finding for finding in verify(store)[1] if is_inside(finding.path, store.folder)]
    found += [Finding("lock", place, 0) for place in _inside(store.folder / "locks") if _is_free(place)]
    if other_versions:
        for entry in store.entries():
            if entry.what.get("ivlens") != __version__:
                version = str(entry.what.get("ivlens"))
                found.append(Finding(f"of ivlens {version:.40}", entry.folder, entry.n_bytes))
    if (store.folder / SURVEYS / MARK).is_file():
        found += collect_garbage(Store(store.folder / SURVEYS), other_versions=other_versions, dry_run=True)
    for finding in () if dry_run else found:
        remove(finding.path)
    return found


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, by its real place and not by its name."""
    return path.parent.resolve().is_relative_to(folder.resolve())


def remove(path: Path) -> None:
    """A file, a folder with all that is in it, or a link (and not what it leads to)."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []


def _abandoned(store: Store) -> Iterator[Path]:
    for place in _inside(store.folder / "scratch"):
        if _is_free(place):
            yield place


def _is_free(folder: Path) -> bool:
    """Whether no process holds it: the system takes a lock back when its owner dies."""
    if not folder.is_dir() or folder.is_symlink() or not (folder / LOCK).is_file():
        return True
    try:
        with held(folder, "another process"):
            return True
    except BlockingIOError:
        return False


def _size(place: Path) -> int:
    if place.is_symlink() or not place.is_dir():
        return place.lstat().st_size
    inner = (Path(top) / name for top, _, names in os.walk(place) for name in names)
    return sum(path.lstat().st_size for path in inner)


def export(store: Store, path: Path, kind: str | None = None) -> int:
    """Write all rows as one table (.parquet, .csv or .json, a list of records); the number of rows.

    Raises:
        ValueError: another suffix, or no results.
    """
    from ivlens.common.files import write_whole

    writers = {
        ".parquet": lambda frame, partial: frame.to_parquet(partial, index=False),
        ".csv": lambda frame, partial: frame.to_csv(partial, index=False),
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
