"""The content of large files as one hash, read once for as long as a file stays as it is."""

import json
import time
from hashlib import file_digest, sha256
from pathlib import Path

from ivlens.common.cache import cache_folder
from ivlens.common.files import read_small, write_whole

FOLDER = "digests"
_SMALL = 2**20  # bytes: reading such a file costs no more than looking up what is known of it
_TICK = 2 * 10**9  # ns: within so short a time some file systems give two changes the same time

_KNOWN: dict[str, str] = {}


def stamp(path: Path) -> list[int]:
    """Numbers that differ after any change of a file's content: place, size, time, and the time of its last change.

    The last one is the system's own; no program can set it back, as it can the other time.
    """
    about = path.stat()
    return [about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns]


def content_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's content; that of a large one is remembered in the user's cache.

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
                return found  # it may change, or has, without a sign
            _remember(name, found)
        _KNOWN[name] = found
    return _KNOWN[name]


def _remembered(name: str) -> str | None:
    try:
        found = read_small(cache_folder() / FOLDER / name, 64).decode()
    except (OSError, ValueError):
        return None
    return found if len(found) == 64 else None


def _remember(name: str, digest: str) -> None:
    try:
        write_whole(cache_folder() / FOLDER / name, lambda partial: partial.write_text(digest, encoding="utf-8"))
    except OSError:  # it is read again next time
        pass
