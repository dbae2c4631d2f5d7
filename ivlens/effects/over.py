"""The interval of the mean of several maps of effects."""

from collections.abc import Sequence

import torch

from ivlens.common.intervals import LEVEL
from ivlens.effects.bands import MapInterval
from ivlens.effects.results import HeadEffects


def interval_over(effects: Sequence[HeadEffects], level: float = LEVEL) -> MapInterval:
    """Interval of the mean of several maps, such as those of several seeds or tasks; each map counts as one value.

    Two to five maps give a t interval, called descriptive; six and more a simultaneous one where that is possible.

    Raises:
        ValueError: no effects, or of models of different shapes.
    """
    shapes = {tuple(each.aie.shape) for each in effects}
    if len(shapes) != 1:
        raise ValueError(f"effects have the shapes {sorted(shapes)}, expected one or more maps of the same shape.")
    return MapInterval.of(torch.stack([each.aie.cpu() for each in effects]), level, simultaneous=True)
