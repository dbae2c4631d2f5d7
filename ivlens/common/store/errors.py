"""The error of a store whose disk is full, read-only or broken."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ivlens.common.disk import DiskError, writing


class StoreError(DiskError):
    """The disk is full, read-only or broken: no result can be kept until that is mended."""


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """In the body, raise errors of the disk as `StoreError`: it ends a sweep, any other error only costs one cell."""
    try:
        with writing(folder):
            yield
    except DiskError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(error.errno, f"store {error}", folder) from error
