"""Files that are whole or absent, whenever a program is interrupted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A scratch folder inside `folder` (made if need be); what the body puts there is moved to `folder` at its end.

    After an exception nothing is moved, and the scratch folder is gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".writing-", dir=folder) as temporary:
        scratch = Path(temporary)
        yield scratch
        for file in sorted(path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file()):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (scratch / file).replace(folder / file)


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` make a file of this name elsewhere, and put it at `path` once it is complete."""
    with filling(path.parent) as scratch:
        write(scratch / path.name)
    return path


def ready_folder(path: str | Path) -> Path:
    """A folder that can be written to, made if need be.

    Raises:
        OSError: there is none, and none can be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".writing-", dir=folder):
            return folder
    except OSError as error:
        what = error.strerror or type(error).__name__
        raise type(error)(f"{str(folder)!r} is no folder that can be written to ({what}); name another one.") from error
