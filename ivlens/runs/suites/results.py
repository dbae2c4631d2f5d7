"""Cells of a benchmark, and what they come to: as values, and to JSON and back with every value looked at."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ivlens.runs.suites.metrics import SequenceMetrics, sequence_metrics
from ivlens.tuning.loop import Row

_ONE = 1 + 1e-9  # a mean of shares may be off in its last digits


@dataclass(frozen=True)
class Cell:
    """What is varied.

    Attributes:
        method: Of `ivlens.tuning.METHODS`.
        guidance: Of `ivlens.tuning.RECIPES`, with a control behind a slash: `iv/zero_vector`.
        order: Number of the suite's order.
        seed: Of everything that is drawn.
        lr: Learning rate; None: that of the options.
    """

    method: str
    guidance: str = "none"
    order: int = 0
    seed: int = 0
    lr: float | None = None

    @property
    def name(self) -> str:
        """Unique, and fit for a file."""
        guidance = self.guidance.replace("/", "~")
        rate = "" if self.lr is None else f"-lr{self.lr:g}"
        return f"{self.method}-{guidance}-order{self.order}-seed{self.seed}{rate}"


@dataclass(frozen=True)
class CellResult:
    """What one cell came to.

    Attributes:
        cell: Which.
        tasks: In the order in which they were learned.
        scores: `a[i][j]`: score of task `j` after task `i`, on *test*; first row: before any training.
        gp, ip: Scores of general tasks, before training and after the last task; empty where there are none.
        curves: For every task the judged rows of its training: step, `new` and `old` on *select*, as the suite scores.
        seconds: How long it took.
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
        """AP, FP, Forget, BWT, GP and IP."""
        gp, ip = (np.array([list(row.values()) for row in rows]) if rows else None for rows in (self.gp, self.ip))
        return sequence_metrics(np.array(self.scores[1:]), gp=gp, ip=ip)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CellResult":
        """Back from JSON, every value looked at.

        Raises:
            ValueError: values that no cell comes to; TypeError, KeyError: some that are missing, or of other types.
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
            raise ValueError(f"no cell comes to such {' and '.join(faults)}")
        return found


def _are_shares(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) in (int, float) and 0 <= value <= _ONE for value in values)


def _is_pair(rows: Any) -> bool:
    """Scores by task, before and after; or none."""
    return rows == [] or (
        isinstance(rows, list)
        and [type(row) for row in rows] == [dict, dict]
        and bool(rows[0])
        and list(rows[0]) == list(rows[1])
        and all(_are_shares(list(row.values())) for row in rows)
    )


def _is_curve(rows: Any) -> bool:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return False
    # `old` is NaN where there is nothing old
    return all(
        row.keys() == {"step", "new", "old"}
        and type(row["step"]) in (int, float)
        and 1 <= row["step"] < 2**53
        and _are_shares([row["new"]])
        and (row["old"] != row["old"] or _are_shares([row["old"]]))
        for row in rows
    )
