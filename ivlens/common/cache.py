"""Where ivlens keeps what it fetched or found out, between one run and the next."""

import os
import sys
from pathlib import Path

from ivlens.common.files import scratch_in

VARIABLE = "IVLENS_CACHE"


def ready_cache(part: str) -> Path:
    """A folder of the cache that can be written to, made if need be, and then for its owner alone.

    Raises:
        OSError: it cannot be made or written to.
    """
    root = cache_folder()
    folder = root / part
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
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
    """The folder of this user's kept things, which need not exist yet: `IVLENS_CACHE`, or the user's cache."""
    given = os.environ.get(VARIABLE, "").strip()
    if given:
        return Path(given).expanduser().absolute()
    if sys.platform == "win32":
        place = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        place = "~/Library/Caches"
    else:
        place = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(place).expanduser().absolute() / "ivlens"
