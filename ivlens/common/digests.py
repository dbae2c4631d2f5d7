"""Hashes of files; a large file is read once, and its hash is remembered until the file changes."""

import json
import time
from hashlib import file_digest, sha256
from pathlib import Path

from ivlens.common.cache import cache_folder
from ivlens.common.files import read_small, write_whole

FOLDER = "digests"
_SMALL = 2**20  # bytes: a smaller file is read as fast as its hash is looked up
_TICK = 2 * 10**9  # ns: some file systems give two changes within this time the same time

_KNOWN: dict[str, str] = {}  # hashes of files in this process, by the hash of `stamp`


def stamp(path: Path) -> list[int]:
    """Numbers that differ after any change of a file's content: its place on the disk, its size, and two times.

    A program can set back the time of the last writing, but not the time of the last change, which the system keeps.
    """
    about = path.stat()
    return [about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns]


def content_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's content; the hash of a large file is remembered in the user's cache.

    Raises:
        OSError: the file cannot be read.
    """
    before = stamp(path)
    if before[2] <= _SMALL:
        return sha256(path.read_bytes()).hexdigest()
    name = sha256(json.dumps(before).encode()).hexdigest()
    if name not in _KNOWN:
        found = _remembered(name)
        if found is None:
            with open(path, "rb") as file:
                found = file_digest(file, "sha256").hexdigest()
            if stamp(path) != before or time.time_ns() - max(before[3:]) < _TICK:
                return found  # not remembered: the file changed, or may change and keep its stamp
            _remember(name, found)
        _KNOWN[name] = found
    return _KNOWN[name]


def _remembered(name: str) -> str | None:
    """The hash that an earlier process has written into the cache, or None."""
    try:
        found = read_small(cache_folder() / FOLDER / name, 64).decode()
    except (OSError, ValueError):
        return None
    return found if len(found) == 64 else None


def _remember(name: str, digest: str) -> None:
    """Write a hash into the cache."""
    try:
        write_whole(cache_folder() / FOLDER / name, lambda partial: partial.write_text(digest, encoding="utf-8"))
    except OSError:  # without a cache the file is read again next time
        pass
