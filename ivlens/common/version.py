"""The version of ivlens, and the error for files of another one; imports nothing, so that every module can read it."""

from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def check_version(path: Path, found: Any) -> None:
    """Refuse a file that another version of ivlens began: numbers of two versions would be mixed.

    Args:
        path: The file, for the error.
        found: The version that the file names; empty where it names none.

    Raises:
        ValueError: the file names another version, or none.
    """
    if found != __version__:
        made_by = f"ivlens {found!s:.40}" if found else "an older ivlens"
        raise ValueError(
            f"{str(path)!r} was made by {made_by}, expected ivlens {__version__}; go on with that version, use another "
            "folder, or remove the file to begin anew."
        )
