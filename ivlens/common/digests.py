"""Hashes of the content of files; a large file is read again only after it has changed."""

import json
import time
from hashlib import file_digest, sha256
from pathlib import Path

from ivlens.common.cache import cache_folder
from ivlens.common.files import read_small, write_whole

FOLDER = "digests"
_SMALL = 2**20  # bytes; a file up to this size is read about as fast as its remembered hash
_TICK = 2 * 10**9  # ns; on some file systems two changes within this time get the same time stamp

_KNOWN: dict[str, str] = {}


def stamp(path: Path) -> list[int]:
    """The state of a file, in numbers that differ after any change: device, inode, size, mtime (ns), ctime (ns).

    The system itself sets ctime. A program can set back mtime, but not ctime.
    """
    about = path.stat()
    return [about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns]


def content_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's content; the hash of a large file is remembered in the user's cache.

    Raises:
        OSError: it cannot be read.
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
                return found  # changed during the reading, or so recently that a further change may not show
            _remember(name, found)
        _KNOWN[name] = found
    return _KNOWN[name]


def _remembered(name: str) -> str | None:
    """The hash that the cache keeps under a name; None where there is none."""
    try:
        found = read_small(cache_folder() / FOLDER / name, 64).decode()
    except (OSError, ValueError):
        return None
    return found if len(found) == 64 else None


def _remember(name: str, digest: str) -> None:
    """Keep a hash in the cache under a name."""
    try:
        write_whole(cache_folder() / FOLDER / name, lambda partial: partial.write_text(digest, encoding="utf-8"))
    except OSError:  # it is read again next time
        pass
