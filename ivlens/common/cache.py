"""The cache folder, in which ivlens keeps downloads and findings from one run to the next."""

import os
import sys
from pathlib import Path

from ivlens.common.files import scratch_in
from ivlens.common.names import expanded

VARIABLE = "IVLENS_CACHE"


def ready_cache(part: str) -> Path:
    """A folder in the cache that can be written to; it is made if need be, for its owner alone.

    Args:
        part: Name of the folder.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    root = cache_folder()
    folder = root / part
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        # one after the other, as `parents=True` would ignore the mode for the outer folder
        for made in (root, folder):
            made.mkdir(mode=0o700, exist_ok=True)
        with scratch_in(folder):
            return folder
    except OSError as error:
        what = error.strerror or type(error).__name__
        raise type(error)(
            f"{str(folder)!r} cannot be written to ({what}), expected a folder for what is kept between runs; set "
            f"{VARIABLE} to another folder."
        ) from error


def cache_folder() -> Path:
    """The user's cache folder for ivlens, which need not exist yet: `IVLENS_CACHE`, or the system's usual place."""
    given = os.environ.get(VARIABLE, "").strip()
    if given:
        return expanded(given).absolute()
    if sys.platform == "win32":
        place = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        place = "~/Library/Caches"
    else:
        place = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(place).absolute() / "ivlens"
