"""How sure effects are: intervals of a whole map, and of its chosen heads on prompts that did not choose them."""

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
    """Low and high ends for every head; `low, high = interval` takes them apart.

    Attributes:
        low, high: NaN where a head was not measured, and everywhere for a single prompt.
        kind: "simultaneous 95 %" (all heads at once), "pointwise 95 %" (each head alone), "descriptive" (each head
            alone, of fewer than six prompts); empty for a single prompt.
        ratio: How much wider than Bonferroni's t intervals max-T is; beyond 1.5 it is not given, and the interval is
            pointwise. NaN where it was not asked for or has no sense.
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
        """The interval of the mean over prompts of these effects, in their unit.

        Args:
            cie: NaN in heads that were not measured.
            level: Coverage.
            simultaneous: For all heads at once, where that can be had; `kind` says.
            n_resamples, seed: Of the prompts, for that.

        Raises:
            ValueError: the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level is {level}, expected a coverage between 0 and 1 such as 0.95.")
        values, n = cie.double(), len(cie)
        mean = values.mean(0)
        if n < 2:
            return cls(cie[0] * torch.nan, cie[0] * torch.nan, "")
        reach = pointwise_reach(n, level)
        measured = values[:, mean.isfinite()].cpu().numpy()
        if simultaneous and measured.shape[1]:
            reach = max_t_reach(measured, level=level, n_resamples=n_resamples, seed=seed)
        return cls._around(mean, values.std(0) * reach.times / n**0.5, reach, cie.dtype)

    @classmethod
    def _around(cls, mean: Tensor, width: Tensor, reach: Reach, dtype: torch.dtype) -> "MapInterval":
        return cls((mean - width).to(dtype), (mean + width).to(dtype), reach.kind, reach.ratio)


@dataclass(frozen=True, eq=False)
class ChosenHeads:
    """The effects of a few heads on prompts other than those that chose them, so that luck in choosing is left behind.

    Attributes:
        heads: `(layer, head)`, strongest first where they were chosen.
        cie: Effect of each on each prompt, in the unit of the score.
        inputs: The input each prompt asks about.
        split: Where the prompts come from.
    """

    heads: tuple[tuple[int, int], ...]
    cie: Float[Tensor, "batch k"]
    inputs: tuple[str, ...]
    split: str

    @property
    def aie(self) -> Float[Tensor, " k"]:
        """Average indirect effect of each: the mean of `cie` over prompts."""
        return self.cie.mean(0)

    def interval(self, level: float = LEVEL) -> MapInterval:
        """Pointwise t interval of `aie`, as of `HeadEffects.interval`; the ends have the shape `[1, k]`."""
        return MapInterval.of(self.cie[:, None], level)

    def to_frame(self, level: float = LEVEL) -> "pd.DataFrame":
        """One row for each head: `layer`, `head`, and `aie`, `low`, `high`, `interval`, `n`, each with `_again`."""
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
