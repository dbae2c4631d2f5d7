"""The terms of guidance as plain values: what each is, its weight, and how strong the vector is when.

Source: arXiv 2406.12227 (progressive intervention and KL), arXiv 2502.11019 (head consistency); docs/method.md,
section 9, names the choices that the papers leave open.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

Schedule = Literal["staircase", "linear", "cosine", "constant", "off"]
Direction = Literal["forward", "reverse"]


def _staircase(progress: float, r: float = 0.25) -> float:
    if progress < r:
        return 1.0
    if progress > 1 - r:
        return 0.0
    # rounded first: 0.3 - 0.25 is a little more than 0.05, and a step would come too early
    return 1.0 - math.ceil(round(10 * (progress - r) / (1 - 2 * r), 9)) / 10


_STRENGTH: dict[str, Callable[[float], float]] = {
    "staircase": _staircase,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2,
    "constant": lambda progress: 1.0,
    "off": lambda progress: 0.0,
}


def strength(schedule: Schedule | str, progress: float) -> float:
    """`g(p)`: how much of the vector is in the student when a share `p = step / steps` of the training is over.

    `staircase` (default): 1 for the first quarter, then down in tenths, 0 for the last quarter; `linear` and `cosine`
    fall from 1 to 0; `constant` is 1, `off` is 0.

    Raises:
        ValueError: there is no such schedule, or `p` is not in [0, 1].
    """
    if schedule not in _STRENGTH:
        raise ValueError(f"schedule is {schedule!r}, expected one of {', '.join(_STRENGTH)}.")
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is {progress}, expected a share between 0 and 1.")
    return _STRENGTH[schedule](progress)


def _check_weight(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value}, expected a finite number, 0 or more.")


@dataclass(frozen=True)
class Progressive:
    """The student runs with `σ · g(p) · α · θ` added at the last prompt token, less and less of it.

    Attributes:
        schedule: `g`, see `strength`.
        sign: `σ`: +1 adds the vector, so that the model need not learn to make it; -1 subtracts it.
    """

    schedule: Schedule = "staircase"
    sign: int = 1

    def __post_init__(self) -> None:
        strength(self.schedule, 0.0)
        if self.sign not in (1, -1):
            raise ValueError(f"sign is {self.sign!r}, expected 1 (add the vector) or -1 (subtract it).")


@dataclass(frozen=True)
class IVKL:
    """Divergence from the frozen model before the task, run with `α θ` added.

    `last · D(last prompt token) + answers · mean over the answer tokens after it of D`, where `D` is
    `T² KL(teacher ‖ student)` (forward) or `KL(student ‖ teacher)` (reverse, without `T²`), both softened by `T`.

    Attributes:
        weight: `β_kl`.
        direction: forward or reverse.
        temperature: `T`.
        last: weight of the last prompt token, `α1`.
        answers: weight of the answer tokens, `α2`.
        top_n: how many of the teacher's tokens are kept for each position; the others share one tail. Smaller
            vocabularies are kept whole; None: all.
    """

    weight: float = 0.1
    direction: Direction = "forward"
    temperature: float = 2.0
    last: float = 1.0
    answers: float = 1.0
    top_n: int | None = 4096

    def __post_init__(self) -> None:
        if self.direction not in get_args(Direction):
            raise ValueError(f"direction is {self.direction!r}, expected 'forward' or 'reverse'.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}, expected a number above 0.")
        for name in ("weight", "last", "answers"):
            _check_weight(name, getattr(self, name))
        if self.top_n is not None and self.top_n < 1:
            raise ValueError(f"top_n is {self.top_n}, expected 1 or more, or None for all tokens.")


@dataclass(frozen=True)
class HeadConsistency:
    """`Σ_{(l,h) ∈ S} ‖z_{l,h} - z⁰_{l,h}‖² / d_head` at the last prompt token, averaged over examples.

    `z⁰` is the frozen model before the task, without the vector. In total weight `|S|` counts: a set twice as large
    weighs twice as much at the same `weight`.

    With `as_vector` the heads are free, and the vector that they write together is held instead:
    `‖Σ_S z_{l,h} W_O^{l,h} - Σ_S z⁰_{l,h} W_O^{l,h}‖² / d_model`.

    Attributes:
        heads: `S`.
        weight: `β_head`.
        as_vector: Hold what the heads write together, not each of them.
    """

    heads: tuple[tuple[int, int], ...]
    weight: float = 30.0
    as_vector: bool = False

    def __post_init__(self) -> None:
        if not self.heads:
            raise ValueError("HeadConsistency got no heads, expected at least one (layer, head).")
        _check_weight("weight", self.weight)
