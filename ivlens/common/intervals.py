"""Percentile bootstrap intervals, also of things that come in groups: prompts of tasks, tasks of runs; and Wilson's."""

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np

N_RESAMPLES = 2000
LEVEL = 0.95


def resampled_means(
    values: np.ndarray, drawn: np.random.Generator | int = 0, n_resamples: int = N_RESAMPLES
) -> np.ndarray:
    """Means of so many resamples, each of as many values as there are, drawn from them with replacement."""
    size = len(values)
    # a resample is how often each value was drawn
    times = np.random.default_rng(drawn).multinomial(size, np.full(size, 1 / size), n_resamples)
    return times @ values / size


def percentiles(means: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The interval in the middle that holds this share of the resamples."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson(k: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of a share: `k` right of `n` that are independent; it has a width where all are right, too.

    Raises:
        ValueError: no trials, or more hits than trials.
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"wilson got {k} of {n}, expected 0 to n of one or more.")
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle, reach = (k + z * z / 2) / (n + z * z), z * sqrt(k * (n - k) / n + z * z / 4) / (n + z * z)
    return max(0.0, middle - reach), min(1.0, middle + reach)


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
    return mean, *percentiles(means)


def _resampled(groups: Sequence[np.ndarray], chosen: np.ndarray, drawn: np.random.Generator) -> np.ndarray:
    """One mean for each resample: of the members of its chosen group, resampled."""
    means = np.empty(len(chosen))
    for number, group in enumerate(groups):
        at = chosen == number
        means[at] = resampled_means(group, drawn, int(at.sum()))
    return means
