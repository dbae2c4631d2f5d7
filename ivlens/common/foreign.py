"""Reading files that ivlens did not write: regular files only, up to a size, and never mapped into memory.

Opening a pipe waits for ever, a device has no end, and a small file may unfold to gigabytes. A file that is mapped into
memory kills the process when somebody shortens it.
"""

import json
import os
import stat
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# without O_NONBLOCK, opening a pipe waits for its other end
_NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_LONGEST_HEADER = 2**25  # bytes of names and shapes; the largest models need a twentieth of it
_MOST_VALUES = 2**21  # in one column of a table
_MOST_TABLE_BYTES = 2**26  # of a table whose repeated values are written out


def read_foreign(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; links are followed.

    Raises:
        OSError: the path is a pipe, a socket, a device or a folder; the file is larger, or cannot be read.
    """
    number = os.open(path, os.O_RDONLY | _NO_WAITING)
    with open(number, "rb") as file:
        about = os.fstat(number)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(f"{str(path)!r:.200} is a pipe, a device or a folder, expected a regular file; remove it.")
        # it may have grown since it was asked for its size
        content = file.read(limit + 1) if about.st_size <= limit else b""
        if about.st_size > limit or len(content) > limit:
            size = max(about.st_size, len(content))
            raise OSError(
                f"{str(path)!r:.200} has {size:,} bytes, expected at most {limit:,}; check that it is the right file."
            )
        return content


def foreign_json(path: Path, limit: int) -> Any:
    """The value in a JSON file of at most `limit` bytes.

    Raises:
        OSError: the path is no regular file; the file is larger, or cannot be read.
        ValueError: the content is no JSON, or nested too deeply.
    """
    try:
        return json.loads(read_foreign(path, limit).decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_regular(path: Path) -> bool:
    """Whether a path can be opened without waiting: it is a regular file or a folder, or nothing is there."""
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing there, or a link that leads nowhere
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


@contextmanager
def opened_tensors(path: Path) -> Iterator[Any]:
    """A safetensors file, opened by the package `safetensors` so that tensors are read, not mapped into memory.

    Raises:
        OSError: the path is no regular file, or the file cannot be read.
        ValueError: the file is damaged, or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise OSError(f"{str(path)!r:.200} is no regular file, expected one; remove it.")
    with open(path, "rb") as file:
        # the header's length as the file states it; even a small file can state any number
        n_bytes = int.from_bytes(file.read(8), "little")
    try:
        if n_bytes > _LONGEST_HEADER:
            raise SafetensorError(f"its header has {n_bytes:,} bytes")
        with safe_open(path, framework="pt", backend="pread") as opened:
            yield opened
    except SafetensorError as error:
        raise ValueError(f"cannot be read (SafetensorError: it is no whole safetensors file, {error!s:.100})") from None


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """All tensors of a safetensors file by name, and its metadata.

    Raises:
        OSError: the path is no regular file, or the file cannot be read.
        ValueError: the file is damaged, or no safetensors file.
    """
    with opened_tensors(path) as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata() or {})


def read_pickled(path: Path) -> dict[str, Any]:
    """The tensors of a PyTorch `.bin` file by name; torch builds no other objects from it and runs none of its code.

    Raises:
        OSError: the path is no regular file, or the file cannot be read.
        ValueError: the file holds anything but tensors, is damaged, or unfolds to more than its size.
    """
    import torch

    if not path.is_file():
        raise OSError(f"{str(path)!r:.200} is no regular file, expected one; remove it.")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:  # a compressed part of kilobytes may unfold to gigabytes
            if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                raise ValueError("has compressed parts, which torch does not write")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # errors of torch, pickle and zipfile have no common class
        reason = " ".join(str(error).split()).partition(".")[0]
        raise ValueError(f"holds more than tensors, or is damaged ({reason:.100})") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError("holds something else")
    for name, tensor in tensors.items():
        # a tensor with stride 0 repeats one stored number as often as its shape says
        is_whole = tensor.layout == torch.strided and not tensor.is_meta
        if not is_whole or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"holds {name!r:.80}, which stands for more numbers than are stored")
    return {str(name): tensor for name, tensor in tensors.items()}


class TableSizeError(ValueError):
    """The error for a whole table that is far too large."""


def check_parquet(path: Path, most: int = _MOST_VALUES, names: Collection[str] | None = None) -> None:
    """Refuse a Parquet file whose table is far larger than a table of results or of examples.

    Parquet stores repeated values once, so sixteen kilobytes can hold a gigabyte. Values are therefore counted before
    any is read. To add up the lengths of texts, each distinct text is read once.

    Args:
        path: The file.
        most: How many values one column may have.
        names: Columns that will be read; None for all.

    Raises:
        TableSizeError: the table has too many values or too many bytes.
        ValueError: the path is no regular file.
        Exception: an error of Arrow, where the file is no Parquet file.
    """
    import pyarrow.parquet

    if not path.is_file():
        raise ValueError("it is no regular file")
    file = pyarrow.parquet.ParquetFile(path, memory_map=False)
    about = file.metadata
    paths = [about.schema.column(number).path for number in range(about.num_columns)]
    # nested columns have paths such as `a.list.element`; whoever reads `a` reads all of them
    read = [n for n, path in enumerate(paths) if names is None or any(f"{path}.".startswith(f"{x}.") for x in names)]
    counted, texts, stored = dict.fromkeys(read, 0), set(), 0
    for group in range(about.num_row_groups):
        for number in counted:
            column = about.row_group(group).column(number)
            counted[number] += max(column.num_values, about.row_group(group).num_rows)
            stored += column.total_uncompressed_size
            if column.physical_type == "BYTE_ARRAY":
                texts.add(column.path_in_schema)
    found = max([about.num_rows, *counted.values()])
    if found > most or stored > _MOST_TABLE_BYTES:
        raise TableSizeError(
            f"its table has {found:,} values in a column and {stored:,} bytes, expected at most {most:,} and "
            f"{_MOST_TABLE_BYTES:,}; use a part of it"
        )
    written_out = sum(_text_bytes(path, name) for name in sorted(texts))
    if written_out > _MOST_TABLE_BYTES:
        raise TableSizeError(
            f"its texts have {written_out:,} bytes once they are written out, expected at most {_MOST_TABLE_BYTES:,}; "
            "use a part of it"
        )


def _text_bytes(path: Path, column: str) -> int:
    """Bytes of all texts in one column, each text counted as often as it occurs."""
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path, memory_map=False, read_dictionary=[column])
    total = 0
    for batch in file.iter_batches(batch_size=2**16, columns=[column], use_threads=False):
        for values in batch.columns:
            total += _bytes_of(values)
        if total > _MOST_TABLE_BYTES:
            break  # it will be refused
    return total


def _bytes_of(values: Any) -> int:
    """Bytes of one Arrow array, with repeated and nested values written out."""
    import pyarrow
    import pyarrow.compute

    compute: Any = pyarrow.compute  # type checkers do not see its functions, which are made at import
    kind = values.type
    if pyarrow.types.is_dictionary(kind):
        lengths = compute.binary_length(values.dictionary).take(values.indices)
        return compute.sum(lengths).as_py() or 0
    if pyarrow.types.is_struct(kind):
        return sum(_bytes_of(field) for field in values.flatten())
    if pyarrow.types.is_nested(kind):
        return _bytes_of(values.flatten())
    return values.nbytes
