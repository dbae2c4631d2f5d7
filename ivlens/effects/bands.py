"""Intervals of effects: of a whole map of heads, and of chosen heads on prompts that did not choose them.

Formulas, and how often the intervals hold: docs/method.md, 13 Intervals.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.common.intervals import LEVEL, N_RESAMPLES, Reach, max_t_reach, pointwise_reach

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class MapInterval:
    """Low and high ends for every head; `low, high = interval` unpacks them.

    Attributes:
        low, high: The ends; NaN where a head was not measured, and everywhere for a single prompt.
        kind: "simultaneous 95 %" (all heads at once), "pointwise 95 %" (each head alone), "descriptive" (each head
            alone, from fewer than six prompts); empty for a single prompt.
        ratio: Width of the max-T interval divided by that of Bonferroni's t intervals. Above 1.5 max-T is not used, and
            the interval is pointwise. NaN where max-T was not asked for, or is not defined.
    """

    low: Float[Tensor, "n_layers n_heads"]
    high: Float[Tensor, "n_layers n_heads"]
    kind: str
    ratio: float = nan

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.low, self.high))

    def __getitem__(self, end: int) -> Tensor:
        return (self.low, self.high)[end]

    @classmethod
    def of(
        cls,
        cie: Float[Tensor, "batch n_layers n_heads"],
        level: float = LEVEL,
        simultaneous: bool = False,
        *,
        n_resamples: int = N_RESAMPLES,
        seed: int = 0,
    ) -> "MapInterval":
        """The interval of the mean of these effects over prompts, in their unit.

        Args:
            cie: Effects of each head on each prompt; NaN in heads that were not measured.
            level: Coverage, between 0 and 1.
            simultaneous: Whether the interval shall hold for all heads at once; `kind` says whether that was possible.
            n_resamples, seed: With `simultaneous`, the number of resamples of the prompts and the seed that draws them.

        Raises:
            ValueError: the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level is {level}, expected a coverage between 0 and 1 such as 0.95.")
        values, n = cie.double(), len(cie)
        mean = values.mean(0)
        if n < 2:  # one prompt has no spread
            return cls(cie[0] * torch.nan, cie[0] * torch.nan, "")
        reach = pointwise_reach(n, level)
        measured = values[:, mean.isfinite()].cpu().numpy()  # heads that were not measured are no part of the map
        if simultaneous and measured.shape[1]:
            reach = max_t_reach(measured, level=level, n_resamples=n_resamples, seed=seed)
        return cls._around(mean, values.std(0) * reach.times / n**0.5, reach, cie.dtype)

    @classmethod
    def _around(cls, mean: Tensor, width: Tensor, reach: Reach, dtype: torch.dtype) -> "MapInterval":
        """The interval `mean ± width`, in the dtype of the effects."""
        return cls((mean - width).to(dtype), (mean + width).to(dtype), reach.kind, reach.ratio)


@dataclass(frozen=True, eq=False)
class ChosenHeads:
    """The effects of a few chosen heads on prompts that had no part in choosing them.

    Attributes:
        heads: The heads as `(layer, head)`, in the order in which they were chosen or given.
        cie: Effect of each head on each prompt, in the unit of the score.
        inputs: The input that each prompt asks about.
        split: The split that the prompts come from.
    """

    heads: tuple[tuple[int, int], ...]
    cie: Float[Tensor, "batch k"]
    inputs: tuple[str, ...]
    split: str

    @property
    def aie(self) -> Float[Tensor, " k"]:
        """Average indirect effect of each head: the mean of `cie` over prompts."""
        return self.cie.mean(0)

    def interval(self, level: float = LEVEL) -> MapInterval:
        """Pointwise t interval of `aie`; its ends have the shape `[1, k]`."""
        # pointwise is enough: the heads were chosen elsewhere, so none of these intervals was picked for being large
        return MapInterval.of(self.cie[:, None], level)

    def to_frame(self, level: float = LEVEL) -> "pd.DataFrame":
        """One row for each head: `layer`, `head`, `aie_again`, `low_again`, `high_again`, `interval_again`, `n_again`.

        The names end in `_again`, so that the columns can stand beside those of the first measurement.
        """
        import pandas as pd

        shown = self.interval(level)
        values = {
            "layer": [layer for layer, _ in self.heads],
            "head": [head for _, head in self.heads],
            "aie_again": self.aie.double().tolist(),
            "low_again": shown.low[0].double().tolist(),
            "high_again": shown.high[0].double().tolist(),
        }
        return pd.DataFrame(values | {"interval_again": shown.kind, "n_again": len(self.cie)})
