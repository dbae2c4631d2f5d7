"""Where ivlens keeps what it fetched or found out, between one run and the next."""

import os
import sys
from pathlib import Path

VARIABLE = "IVLENS_CACHE"


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
