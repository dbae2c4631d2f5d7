"""Files packed by gzip or zstd, unpacked a portion at a time and never to more than a limit.

A packed file of a kilobyte can stand for gigabytes, so what comes out is counted while it comes.
"""

import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ivlens.common.names import one_line
from ivlens.tasks.formats.records import wrong

MOST_TIMES = 200  # how many times larger than the packed file its content may be; texts are rarely above 20
LEAST_LIMIT = 2**20  # bytes that any packed file may unfold to: a small file of equal lines may be packed very well
_PORTION = 2**18

PACKINGS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def packing_of(head: bytes) -> str:
    """How a file is packed, by its first bytes: `gzip`, `zstd`, or empty."""
    return next((name for magic, name in PACKINGS.items() if head.startswith(magic)), "")


def unpacked(data: bytes, path: Path, largest: int) -> bytes:
    """The content of a packed file; what is not packed comes back as it is.

    Args:
        data: The bytes of the file.
        path: The file, for errors.
        largest: The most bytes that any content may have.

    Raises:
        ValueError: the content is larger than `largest`, or than `MOST_TIMES` the file; or the file is damaged.
    """
    packing = packing_of(data)
    if not packing:
        return data
    most = min(largest, max(LEAST_LIMIT, MOST_TIMES * len(data)))
    try:
        found = _up_to(most, _OPEN[packing](data))
    # errors of gzip, zlib and Arrow have no common class; OSError stands for Arrow's
    except (OSError, EOFError, zlib.error, ValueError) as error:
        got = f"is not a whole {packing} file ({one_line(error, 120)})"
        raise wrong(path, got, f"what {packing} writes", "it may be cut off: pack or download it again") from None
    if len(found) > most:
        got = f"unfolds from {len(data):,} bytes to more than {most:,}"
        expected = f"at most {largest >> 20} MiB, and at most {MOST_TIMES} times the packed file"
        raise wrong(path, got, expected, "use a part of it, or unpack it yourself")
    return found


def _up_to(most: int, stream: Any) -> bytes:
    """What a stream gives, up to one byte more than `most`."""
    parts, left = [], most + 1
    with stream:
        while left > 0 and (part := stream.read(min(_PORTION, left))):
            parts.append(part)
            left -= len(part)
    return b"".join(parts)


def _open_gzip(data: bytes) -> Any:
    return gzip.GzipFile(fileobj=io.BytesIO(data))


def _open_zstd(data: bytes) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd")


_OPEN: dict[str, Callable[[bytes], Any]] = {"gzip": _open_gzip, "zstd": _open_zstd}
