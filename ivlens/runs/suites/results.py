"""Cells of a benchmark and their results, to JSON and back; values that come from a file are checked."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ivlens.runs.suites.metrics import SequenceMetrics, sequence_metrics
from ivlens.tuning.loop import Row

_ONE = 1 + 1e-9  # a mean of scores from 0 to 1 may be above 1 in its last digits


@dataclass(frozen=True)
class Cell:
    """One training through a suite of tasks: what differs from the other cells of the benchmark.

    Attributes:
        method: Name of the training method, one of `ivlens.tuning.METHODS`.
        guidance: Name of the guidance, one of `ivlens.tuning.RECIPES`, or with a control: `iv/zero_vector`.
        order: Number of the suite's order of tasks.
        seed: Seed of all draws.
        lr: Learning rate; None: the one in the options.
    """

    method: str
    guidance: str = "none"
    order: int = 0
    seed: int = 0
    lr: float | None = None

    @property
    def name(self) -> str:
        """A name that no other cell of the benchmark has, and that can be the name of a file."""
        guidance = self.guidance.replace("/", "~")
        rate = "" if self.lr is None else f"-lr{self.lr:g}"
        return f"{self.method}-{guidance}-order{self.order}-seed{self.seed}{rate}"


@dataclass(frozen=True)
class CellResult:
    """The result of one cell.

    Attributes:
        cell: The cell.
        tasks: Names of the tasks in the order in which they were learned.
        scores: One row before any training and one after each task; column `j` is the score of task `j` on *test*.
        gp, ip: Zero-shot (`gp`) and few-shot (`ip`) scores of the general tasks by their names, before training and
            after the last task; empty where they were not measured.
        curves: For every task the judged rows of its training: `step`, and mean scores on *select*, `new` of this
            task and `old` of general tasks and tasks before it.
        seconds: How long the cell took.
    """

    cell: Cell
    tasks: tuple[str, ...]
    scores: list[list[float]]
    gp: list[dict[str, float]]
    ip: list[dict[str, float]]
    curves: list[list[Row]]
    seconds: float

    @property
    def metrics(self) -> SequenceMetrics:
        """AP, FP, Forget, BWT, GP and IP of the cell, as `sequence_metrics` defines them."""
        gp, ip = (np.array([list(row.values()) for row in rows]) if rows else None for rows in (self.gp, self.ip))
        return sequence_metrics(np.array(self.scores[1:]), gp=gp, ip=ip)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CellResult":
        """The result whose plain values `to_dict` gave; every value is checked.

        Raises:
            ValueError: a value that no cell can have.
            TypeError, KeyError: a value is missing, or of another type.
        """
        found = cls(**{**values, "cell": Cell(**values["cell"]), "tasks": tuple(values["tasks"])})
        cell, n = found.cell, len(found.tasks)
        whole = {
            "cell": all(isinstance(text, str) for text in (cell.method, cell.guidance))
            and all(type(number) is int for number in (cell.order, cell.seed))
            and (cell.lr is None or (type(cell.lr) in (int, float) and 0 < cell.lr < math.inf)),
            "tasks": n > 0 and all(isinstance(name, str) for name in found.tasks) and len(set(found.tasks)) == n,
            "scores": [len(row) for row in found.scores] == [n] * (n + 1) and all(map(_are_shares, found.scores)),
            "gp": _is_pair(found.gp),
            "ip": _is_pair(found.ip),
            "curves": len(found.curves) == n and all(_is_curve(curve) for curve in found.curves),
            "seconds": type(found.seconds) in (int, float) and 0 <= found.seconds < math.inf,
        }
        faults = [name for name, is_whole in whole.items() if not is_whole]
        if faults:
            raise ValueError(f"no cell can have such {' and '.join(faults)}")
        return found


def _are_shares(values: Any) -> bool:
    """Whether a value is a list of numbers from 0 to 1; NaN is none."""
    return isinstance(values, list) and all(type(value) in (int, float) and 0 <= value <= _ONE for value in values)


def _is_pair(rows: Any) -> bool:
    """Whether a value is an empty list, or two dicts of scores with the same tasks: before training and after it."""
    return rows == [] or (
        isinstance(rows, list)
        and [type(row) for row in rows] == [dict, dict]
        and bool(rows[0])
        and list(rows[0]) == list(rows[1])
        and all(_are_shares(list(row.values())) for row in rows)
    )


def _is_curve(rows: Any) -> bool:
    """Whether a value is a list of judged rows of one training."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return False
    # `old` is NaN, which is unlike itself, where no task came before this one
    return all(
        row.keys() == {"step", "new", "old"}
        and type(row["step"]) in (int, float)
        and 1 <= row["step"] < 2**53
        and _are_shares([row["new"]])
        and (row["old"] != row["old"] or _are_shares([row["old"]]))
        for row in rows
    )
