"""What a store says when the disk refuses to take a result."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ivlens.common.disk import DiskError, writing


class StoreError(DiskError):
    """The disk refuses: full, read-only, broken. Nothing can be kept until that is mended."""


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise errors of the disk as `StoreError`, which ends a sweep; all other errors concern one result only."""
    try:
        with writing(folder):
            yield
    except DiskError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(error.errno, f"store {error}", folder) from error
