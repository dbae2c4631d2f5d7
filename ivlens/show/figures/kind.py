"""`Kind`: how files of one kind of result are recognised, and what is drawn from them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from ivlens.show.figures.found import Found
from ivlens.show.figures.paper import Drawing


@dataclass(frozen=True)
class Kind:
    """One kind of result, such as head effects or a log of a training.

    Attributes:
        name: the name of the kind.
        holds: tells whether a file is of this kind. Kinds are asked in turn; the first that says yes gets the file.
        draw: makes the drawings from all files of this kind in one run.
        unless: the name of another kind that shows more: where a run has files of it, this kind is not drawn.
    """

    name: str
    holds: Callable[[Found], bool]
    draw: Callable[[Sequence[Found]], Iterator[Drawing]]
    unless: str = ""


def each(name: str, draw: Callable[[str, Found], Iterator[Drawing]]) -> Callable[[Sequence[Found]], Iterator[Drawing]]:
    """A function for `Kind.draw` that draws each file by itself, and adds the file's name where there are several."""

    def drawn(files: Sequence[Found]) -> Iterator[Drawing]:
        for file in files:
            yield from draw(name if len(files) == 1 else f"{name}-{file.path.stem}", file)

    return drawn


def count(frame: pd.DataFrame, column: str) -> int:
    """The number of different values in a column; 1 where there is no such column."""
    return len(set(frame[column])) if column in frame else 1
