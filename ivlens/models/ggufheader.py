"""Reads the header of a GGUF file within bounds, and checks that the file is whole.

The `gguf` package reads past the end of a cut file, and makes an object of every item that a header announces. So the
header is read here first, without that package, and arrays in it are skipped and not kept in memory.
"""

import importlib.util
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# how `struct` reads the kinds of single values, by their numbers in the format
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_ALIGNMENT = 32  # bytes, unless the file names another number
_MOST_ITEMS = 2**23  # items of all arrays; the largest vocabularies have a million words, scores and merges
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it.

    Attributes:
        name: Its name.
        sizes: Its shape, in the order of the format: the last dimension of PyTorch comes first.
        kind: How its numbers are stored, as a number of the format.
        offset: Where it begins, in bytes after the beginning of the first tensor.
    """

    name: str
    sizes: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class Header:
    """What the header of a GGUF file says.

    Attributes:
        fields: Numbers and texts by key; for an array only the number of its items.
        tensors: The tensors, in the order of the file.
        start: Where the tensors begin, in bytes from the beginning of the file.
        n_bytes: Size of the whole file.
    """

    fields: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    start: int
    n_bytes: int


def check_gguf_installed() -> None:
    """Refuse to go on where the package `gguf`, which decodes the numbers in GGUF files, is not installed.

    Raises:
        ImportError: the package is missing.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ImportError("GGUF files need the package gguf, which is not installed; pip install 'ivlens[gguf]'.")


def is_gguf(path: Path) -> bool:
    """Whether `path` is a file that begins as a GGUF file does; its name does not count."""
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_header(path: Path) -> Header:
    """The header of a GGUF file.

    Raises:
        ValueError: the file is no GGUF, is cut or damaged, or has a version that is no longer in use.
        OSError: the file cannot be read.
    """
    if not is_gguf(path):
        refuse(path, "does not begin as a GGUF file does")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        reader = _HeaderReader(path, content)
        try:
            return reader.header()
        except struct.error:  # the header goes on beyond the end of the file
            refuse(path, f"is cut: it ends within its header, after {len(content):,} bytes")
        except UnicodeDecodeError:
            refuse(path, "has a name that is no text")


def check_whole(path: Path, header: Header) -> None:
    """Refuse a file that ends before its last tensor does.

    Raises:
        ValueError: the file is cut, or has tensors of a kind that the `gguf` package does not know.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    end = header.start
    for tensor in header.tensors:
        try:
            per_block, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
        except (ValueError, KeyError):
            refuse(path, f"holds {tensor.name!r:.80} as numbers of kind {tensor.kind}, which this gguf does not know")
        end = max(end, header.start + tensor.offset + math.prod(tensor.sizes) // per_block * n_bytes)
    if end > header.n_bytes:
        refuse(path, f"is cut: it has {header.n_bytes:,} of {end:,} bytes")


def refuse(path: Path, what: str) -> NoReturn:
    """Raise the error for a file that cannot be used.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"model {str(path)!r} {what}, expected a whole GGUF file; copy or download it again.")


class _HeaderReader:
    """Reads a header value by value; `_at` is the place of the next value in the file, in bytes."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path, self._content = path, content
        self._at, self._n_items, self._order = len(MAGIC), 0, "<"

    def header(self) -> Header:
        """The whole header."""
        version = self._next("I")
        if version & 0xFFFF == 0:  # its low half is 0 where the file has the other byte order
            self._at, self._order = len(MAGIC), ">"
            version = self._next("I")
        if version not in _VERSIONS:
            refuse(self._path, f"is a GGUF of version {version}, which only the oldest programs read")
        n_tensors, n_fields = self._next("Q"), self._next("Q")
        fields = {}
        for _ in range(n_fields):
            name = self._text()
            fields[name] = self._value(self._next("I"))
        tensors = tuple(self._tensor() for _ in range(n_tensors))
        alignment = fields.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            refuse(self._path, f"has the alignment {alignment!r:.40}, which is no power of two")
        start = -(-self._at // alignment) * alignment  # rounded up: tensors begin at a multiple of the alignment
        return Header(fields, tensors, start, len(self._content))

    def _next(self, kind: str) -> Any:
        """The next single value; `kind` is its format for `struct`."""
        (value,) = struct.unpack_from(self._order + kind, self._content, self._at)
        self._at += struct.calcsize(self._order + kind)
        return value

    def _text(self, decode: bool = True) -> str:
        """The next text; skipped, and returned empty, without `decode`."""
        length = self._next("Q")
        self._skip(length)
        return self._content[self._at - length : self._at].decode("utf-8") if decode else ""

    def _skip(self, n_bytes: int) -> None:
        """Go on by some bytes without reading them."""
        if n_bytes > len(self._content) - self._at:
            raise struct.error  # the error of `_next` at the end of the file, so that a cut file has one error
        self._at += n_bytes

    def _value(self, kind: int) -> Any:
        """The next value of a field; for an array, which is skipped, the number of its items."""
        if kind in _SCALARS:
            return self._next(_SCALARS[kind])
        if kind == _TEXT:
            return self._text()
        if kind != _ARRAY:
            refuse(self._path, f"is damaged: a value is of kind {kind}, which does not exist")
        inner, length = self._next("I"), self._next("Q")
        self._n_items += length
        if self._n_items > _MOST_ITEMS:
            refuse(self._path, f"lists more than {_MOST_ITEMS:,} items in its header, more than any vocabulary has")
        if inner in _SCALARS:
            self._skip(length * struct.calcsize(self._order + _SCALARS[inner]))
        elif inner == _TEXT:
            for _ in range(length):
                self._text(decode=False)
        else:
            refuse(self._path, f"is damaged: an array is of kind {inner}, which does not exist")
        return length

    def _tensor(self) -> TensorInfo:
        """The next description of a tensor."""
        name, n_dimensions = self._text(), self._next("I")
        if n_dimensions > _MOST_DIMENSIONS:
            refuse(self._path, f"is damaged: {name!r:.80} has {n_dimensions} dimensions")
        sizes = tuple(self._next("Q") for _ in range(n_dimensions))
        return TensorInfo(name, sizes, self._next("I"), self._next("Q"))
