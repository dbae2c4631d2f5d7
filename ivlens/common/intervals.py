"""Intervals: percentile bootstrap, also of things that come in groups (prompts of tasks, tasks of runs); Wilson's."""

import math
from collections.abc import Sequence
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


def wilson(n_right: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of a proportion: what it can be, where `n_right` of `n` independent cases had it.

    ```text
    (p + z²/2n ± z sqrt(p (1 − p) / n + z²/4n²)) / (1 + z²/n)      p = n_right / n, z of the normal distribution
    ```

    Unlike a bootstrap it has a width where all or none of the cases had it. NaN where there are none.

    Raises:
        ValueError: more right ones than cases, or fewer than none.

    Source: docs/method.md, section 3; Wilson (1927).
    """
    if not 0 <= n_right <= n:
        raise ValueError(f"n_right is {n_right} of n = {n}, expected 0 to n.")
    if n == 0:
        return float("nan"), float("nan")
    share, z = n_right / n, NormalDist().inv_cdf((1 + level) / 2)
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


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
