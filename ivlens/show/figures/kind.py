"""What a kind of result is: how a file of it is known, and what is drawn from it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from ivlens.show.figures.found import Found
from ivlens.show.figures.paper import Drawing


@dataclass(frozen=True)
class Kind:
    """One kind of result.

    Attributes:
        name: first part of its drawings' names.
        holds: whether a file is of this kind; the first kind that says so gets the file.
        draw: drawings of one run's files of this kind.
        unless: left out where the same run has files of this other kind, which say more.
    """

    name: str
    holds: Callable[[Found], bool]
    draw: Callable[[Sequence[Found]], Iterator[Drawing]]
    unless: str = ""


def each(name: str, draw: Callable[[str, Found], Iterator[Drawing]]) -> Callable[[Sequence[Found]], Iterator[Drawing]]:
    """One set of drawings for each file, named after the file where there are several."""

    def drawn(files: Sequence[Found]) -> Iterator[Drawing]:
        for file in files:
            yield from draw(name if len(files) == 1 else f"{name}-{file.path.stem}", file)

    return drawn


def count(frame: pd.DataFrame, column: str) -> int:
    """Different values of a column; 1 where there is no such column."""
    return len(set(frame[column])) if column in frame else 1
