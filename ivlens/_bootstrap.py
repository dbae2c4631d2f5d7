"""Percentile intervals over things that come in groups: prompts of tasks, tasks of runs."""

from collections.abc import Sequence

import numpy as np

N_RESAMPLES = 2000
LEVEL = 0.95


def grouped_interval(groups: Sequence[Sequence[float] | np.ndarray], seed: int = 0) -> tuple[float, float, float]:
    """Mean over groups of their means, and its 95 % interval; groups are resampled, and the members of each as well.

    With one group only its members are. NaN members are left out, and so are groups of nothing else; an interval needs
    two members at least.

    Returns:
        Mean, low, high; NaN where there is nothing to take them of.
    """
    kept = [np.asarray(group, float) for group in groups]
    kept = [group[~np.isnan(group)] for group in kept]
    kept = [group for group in kept if len(group)]
    nan = float("nan")
    if not kept:
        return nan, nan, nan
    mean = float(np.mean([group.mean() for group in kept]))
    if sum(map(len, kept)) < 2:
        return mean, nan, nan
    drawn = np.random.default_rng(seed)
    # members are drawn anew for each place a group takes, or two places would move together
    places = drawn.integers(len(kept), size=(len(kept), N_RESAMPLES))
    means = np.mean([_resampled(kept, chosen, drawn) for chosen in places], 0)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return mean, float(low), float(high)


def _resampled(groups: Sequence[np.ndarray], chosen: np.ndarray, drawn: np.random.Generator) -> np.ndarray:
    """One mean for each resample: of the members of its chosen group, resampled."""
    means = np.empty(len(chosen))
    for number, group in enumerate(groups):
        at = chosen == number
        size = len(group)
        means[at] = drawn.multinomial(size, np.full(size, 1 / size), int(at.sum())) @ group / size
    return means
