"""Progressive intervention: the student runs with the vector added, whose strength falls during the training.

Source: arXiv 2406.12227; docs/method.md, section 9 Guided fine-tuning, names the choices that the paper leaves open.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from ivlens.tuning.terms.term import Term
from ivlens.tuning.training.asking import Shift

Schedule = Literal["staircase", "linear", "cosine", "constant", "off"]


def _staircase(progress: float, r: float = 0.25) -> float:
    """1 for the first share `r` of the training, 0 for the last, and ten steps down between them."""
    if progress < r:
        return 1.0
    if progress > 1 - r:
        return 0.0
    # rounded first: as floats 0.3 - 0.25 is a little more than 0.05, and `ceil` would go down a step too early
    return 1.0 - math.ceil(round(10 * (progress - r) / (1 - 2 * r), 9)) / 10


_STRENGTH: dict[str, Callable[[float], float]] = {
    "staircase": _staircase,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2,
    "constant": lambda progress: 1.0,
    "off": lambda progress: 0.0,
}


def strength(schedule: Schedule | str, progress: float) -> float:
    """`g(p)`: the strength of the vector in the student when the share `p = step / steps` of the training is over.

    `staircase`: 1 for the first quarter, then down in steps of a tenth, 0 for the last quarter. `linear` and `cosine`
    fall from 1 to 0. `constant` is 1, `off` is 0. See docs/method.md, section 9 Guided fine-tuning.

    Raises:
        ValueError: there is no such schedule, or `p` is not in [0, 1].
    """
    if schedule not in _STRENGTH:
        raise ValueError(f"schedule is {schedule!r}, expected one of {', '.join(_STRENGTH)}.")
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is {progress}, expected a share between 0 and 1.")
    return _STRENGTH[schedule](progress)


@dataclass(frozen=True)
class Progressive(Term):
    """In training, `σ · g(p) · α · θ` is added to the student's residual stream at the last prompt token.

    Attributes:
        schedule: How the strength `g` falls along the training, see `strength`.
        sign: `σ`: 1 adds the vector, so that the model need not learn to write it; -1 subtracts it.
    """

    name: ClassVar[str] = "progressive"
    needs_vector: ClassVar[bool] = True
    flags: ClassVar = {"schedule": "schedule", "sign": "sign"}
    lacks: ClassVar[str] = "no progressive intervention"

    schedule: Schedule = "staircase"
    sign: int = 1

    def __post_init__(self) -> None:
        strength(self.schedule, 0.0)  # refuses an unknown schedule now, not in the first step
        if self.sign not in (1, -1):
            raise ValueError(f"sign is {self.sign!r}, expected 1 (add the vector) or -1 (subtract it).")

    def shift(self, shared: Shift, progress: float) -> Shift | None:
        """The vector to add at this share of the training, `σ g(p) α θ`; None where `g` is 0."""
        g = self.sign * strength(self.schedule, progress)
        return replace(shared, delta=g * shared.delta) if g else None
