"""The header of a GGUF file, read with bounds: what it holds, and whether all of it is there.

The `gguf` package reads past the end of a cut file, and makes an object of every number that a header promises. So a
file is looked at here first, which needs neither that package nor memory for more than its texts.
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
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_ALIGNMENT = 32  # bytes, where the file names no other
_MOST_ITEMS = 2**23  # in all arrays: words, scores and merges of the largest vocabularies are a million
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file: its name, its sizes with the fastest first, the number of its kind, its place."""

    name: str
    sizes: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class Header:
    """What a GGUF says about itself.

    Attributes:
        fields: Numbers and texts by key; of an array, only how many items it has.
        tensors: In the order of the file.
        start: Where the tensors begin, in bytes.
        n_bytes: Of the whole file.
    """

    fields: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    start: int
    n_bytes: int


def check_gguf_installed() -> None:
    """Refuse to go on without the package that knows how GGUF files store numbers.

    Raises:
        ImportError: it is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ImportError("GGUF files need the package gguf, which is not installed; pip install 'ivlens[gguf]'.")


def is_gguf(path: Path) -> bool:
    """Whether it is a file that begins as a GGUF does, whatever its name."""
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
        ValueError: it is no GGUF, cut, damaged, or of a version that nobody reads any more.
        OSError: it cannot be read.
    """
    if not is_gguf(path):
        refuse(path, "does not begin as a GGUF file does")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        walk = _Walk(path, content)
        try:
            return walk.header()
        except struct.error:  # asked for more than there is
            refuse(path, f"is cut: it ends within its header, after {len(content):,} bytes")
        except UnicodeDecodeError:
            refuse(path, "has a name that is no text")


def check_whole(path: Path, header: Header) -> None:
    """Refuse a file whose tensors are not all there.

    Raises:
        ValueError: cut, or with tensors of a kind that the `gguf` package does not know.
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
    """Say what is wrong with a file.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"model {str(path)!r} {what}, expected a whole GGUF file; copy or download it again.")


class _Walk:
    """From the beginning of a file to the end of its header."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path, self._content = path, content
        self._at, self._n_items, self._order = len(MAGIC), 0, "<"

    def header(self) -> Header:
        version = self._next("I")
        if version & 0xFFFF == 0:  # written by a machine of the other byte order
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
        start = -(-self._at // alignment) * alignment
        return Header(fields, tensors, start, len(self._content))

    def _next(self, kind: str) -> Any:
        (value,) = struct.unpack_from(self._order + kind, self._content, self._at)
        self._at += struct.calcsize(self._order + kind)
        return value

    def _text(self, decode: bool = True) -> str:
        length = self._next("Q")
        self._skip(length)
        return self._content[self._at - length : self._at].decode("utf-8") if decode else ""

    def _skip(self, n_bytes: int) -> None:
        if n_bytes > len(self._content) - self._at:
            raise struct.error
        self._at += n_bytes

    def _value(self, kind: int) -> Any:
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
        name, n_dimensions = self._text(), self._next("I")
        if n_dimensions > _MOST_DIMENSIONS:
            refuse(self._path, f"is damaged: {name!r:.80} has {n_dimensions} dimensions")
        sizes = tuple(self._next("Q") for _ in range(n_dimensions))
        return TensorInfo(name, sizes, self._next("I"), self._next("Q"))
