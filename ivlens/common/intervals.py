"""Confidence intervals (Wilson's for shares, t for means, max-T for many means at once), p values, Holm's correction.

Formulas, and how often each interval covers the true value: docs/method.md, 13 Intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, inf, nan, sqrt
from statistics import NormalDist

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

N_RESAMPLES = 2000
LEVEL = 0.95
FEWEST = 6  # groups or prompts; an interval over fewer is called "descriptive"
WIDEST = 1.5  # times Bonferroni's t interval; a wider max-T interval depends on few prompts, and is not given
DESCRIPTIVE = "descriptive"
# max-T aims at this share of the allowed misses (3.5 of 5 %), as samples that lack rare prompts by chance look too good
_MISSES_ALLOWED = 0.7
_FEWEST_CORRECTED = 24  # rows; with fewer, max-T keeps its extra width, which skewed effects need
_CHUNK = 256  # means whose resamples are in memory at once
_SAME = 1e-10  # share of the sample's variance; below it all values of a resample are equal up to rounding


def named(what: str, level: float = LEVEL) -> str:
    """The name of an interval of this level, such as "Wilson 95 %"."""
    return f"{what} {100 * level:g} %"


def named_of(n: int, what: str = "t", level: float = LEVEL) -> str:
    """The name of a t interval over `n` groups or prompts: "descriptive" below six, empty below two."""
    if n < 2:
        return ""
    return DESCRIPTIVE if n < FEWEST else named(what, level)


def wilson(k: float | int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Low and high end of Wilson's interval for a share, `k` of `n` inputs; it has a width even where all are right.

    Args:
        k: Inputs that are right. It may be fractional where the value of an input is a mean of several draws of a
            control; the interval is then wider than it has to be.
        n: Distinct inputs, which count as independent.
        level: Coverage.

    Raises:
        ValueError: no inputs, or more right ones than inputs.

    Source: docs/method.md, 3 Scores and accuracy.
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"wilson got {k} of {n}, expected 0 to all of 1 or more inputs; count each input once.")
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle, reach = (k + z * z / 2) / (n + z * z), z * sqrt(k * (n - k) / n + z * z / 4) / (n + z * z)
    # where all or none are right, one end is exactly 1 or 0, which rounding would miss
    return 0.0 if k == 0 else max(0.0, middle - reach), 1.0 if k == n else min(1.0, middle + reach)


def t_reach(n: int, level: float = LEVEL, n_means: int = 1) -> float:
    """How many standard errors a t interval over `n` values reaches from its mean.

    With `n_means`, the reach has Bonferroni's correction for so many intervals at once.
    """
    return float(stdtrit(n - 1, 1 - (1 - level) / 2 / n_means))


def t_interval(values: Sequence[float] | np.ndarray, level: float = LEVEL) -> tuple[float, float, float]:
    """Mean, low end and high end of a t interval over independent values; NaN values are left out.

    The ends are NaN for fewer than two values; without any value the mean is NaN, too.
    """
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    if not len(known):
        return nan, nan, nan
    mean = float(known.mean())
    if len(known) < 2:
        return mean, nan, nan
    reach = t_reach(len(known), level) * float(known.std(ddof=1)) / sqrt(len(known))
    return mean, mean - reach, mean + reach


def grouped_interval(groups: Sequence[Sequence[float] | np.ndarray]) -> tuple[float, float, float]:
    """Mean of the means of several groups (tasks, runs), and its 95 % t interval over the groups.

    Members of one group are not independent, so `n` is the number of groups; the variation between members is already
    part of the variation between the groups' means. With a single group, `n` is the number of its members. NaN members
    are left out, and so are groups that have no others.

    Returns:
        Mean, low end, high end; NaN where there are too few values for them.
    """
    kept = _without_nan(groups)
    return t_interval(kept[0] if len(kept) == 1 else [group.mean() for group in kept])


def grouped_name(groups: Sequence[Sequence[float] | np.ndarray]) -> str:
    """The name of the interval of `grouped_interval`: "t 95 %", "descriptive" for two to five groups, or empty."""
    kept = _without_nan(groups)
    return named_of(len(kept[0]) if len(kept) == 1 else len(kept))


def clustered_difference(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, inputs: Sequence[str], level: float = LEVEL
) -> tuple[float, float, float]:
    """Mean of the paired differences `a - b`, and its t interval over inputs: the prompts of one input are averaged.

    Args:
        a, b: Two scores of each prompt; prompts of several seeds follow one another.
        inputs: The input of each prompt.
        level: Coverage.

    Returns:
        Mean, low end, high end.

    Raises:
        ValueError: `a`, `b` and `inputs` differ in length.
    """
    if not len(a) == len(b) == len(inputs):
        raise ValueError(
            f"a, b and inputs have {len(a)}, {len(b)} and {len(inputs)} entries, expected as many of each."
        )
    differences = np.asarray(a, float) - np.asarray(b, float)
    by_input: dict[str, list[float]] = {}
    for text, value in zip(inputs, differences, strict=True):
        by_input.setdefault(text, []).append(float(value))
    return t_interval([float(np.mean(values)) for values in by_input.values()], level)


@dataclass(frozen=True)
class Reach:
    """How far the intervals of several means reach, and what these intervals are called.

    Attributes:
        times: Half the width of an interval, in standard errors of its mean.
        kind: "simultaneous 95 %", "pointwise 95 %", or "descriptive" for fewer than six values.
        ratio: Width of the max-T intervals divided by the width of Bonferroni's t intervals, also where max-T intervals
            were too wide to be used; NaN where none were computed.
    """

    times: float
    kind: str
    ratio: float = nan


def pointwise_reach(n: int, level: float = LEVEL) -> Reach:
    """The reach of t intervals over `n` values that hold for each mean alone."""
    return Reach(t_reach(n, level), named_of(n, "pointwise", level))


def max_t_reach(
    values: Float[np.ndarray, "n n_means"], *, level: float = LEVEL, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Reach:
    """The reach of intervals that hold for all columns at once with probability `level`; otherwise of pointwise ones.

    Rows are resampled, all columns together, and every resample is divided by its own standard errors::

        T* = max over columns of  |mean* - mean| / (s* / sqrt(n))

    The reach is a quantile of T* (0.965 for 95 %). On normal noise that is too far, because resamples repeat rows; from
    24 rows on it is divided by the factor by which it is too far.

    If a column's mean depends on one or two rows, resamples without these rows have no spread, and the quantile
    explodes. Where the reach is more than 1.5 times Bonferroni's t, where a column does not vary, or where there are
    fewer than six rows, no interval can be claimed for all columns at once: the reach is that of pointwise t intervals.

    Args:
        values: One row for each prompt, one column for each mean.
        level: Coverage.
        n_resamples: How many resamples are drawn.
        seed: Seed of the resamples.

    Source: docs/method.md, 13 Intervals.
    """
    n, n_means = values.shape
    alone = pointwise_reach(n, level)
    spread = values.std(0, ddof=1)
    if n < FEWEST or not (spread > 1e-12 * np.abs(values).max(0)).all():
        return alone
    aim = 1 - _MISSES_ALLOWED * (1 - level)
    times_se = _largest(values, aim, n_resamples, np.random.default_rng(seed))
    if n >= _FEWEST_CORRECTED:
        times_se /= _too_far(n, n_means, aim, n_resamples)
    ratio = times_se / t_reach(n, level, n_means)
    return Reach(times_se, named("simultaneous", level), ratio) if ratio <= WIDEST else replace(alone, ratio=ratio)


def _largest(values: np.ndarray, aim: float, n_resamples: int, drawn: np.random.Generator) -> float:
    """The quantile `aim`, over resamples of the rows, of T* (`max_t_reach`)."""
    n = len(values)
    standard = (values - values.mean(0)) / values.std(0, ddof=1)
    # a resample is how often each row was drawn, so that means and squares are products of matrices
    times = drawn.multinomial(n, np.full(n, 1 / n), n_resamples).astype(float)
    worst = np.zeros(n_resamples)
    for start in range(0, standard.shape[1], _CHUNK):
        part = standard[:, start : start + _CHUNK]
        means = times @ part / n
        variance = (times @ part**2 - n * means**2) / (n - 1)
        # a column without spread is infinitely far off: such resamples are what makes the quantile explode
        apart = np.abs(means) / np.sqrt(np.maximum(variance, _SAME) / n)
        np.maximum(worst, np.where(variance > _SAME, apart, inf).max(1), out=worst)
    at = ceil(aim * (n_resamples + 1))  # this order statistic covers `aim` for any number of resamples
    return float(np.sort(worst)[at - 1]) if at <= n_resamples else inf


@lru_cache(maxsize=64)
def _too_far(n: int, n_means: int, aim: float, n_resamples: int) -> float:
    """The factor (1 or more) by which `_largest` is too large on normal noise of this shape: resamples repeat rows."""
    drawn = np.random.default_rng(0)
    many = min(12, max(1, 4096 // n_means))  # one draw of many columns is precise enough
    found = [_largest(drawn.standard_normal((n, n_means)), aim, n_resamples, drawn) for _ in range(many)]
    # exact where columns are independent (Šidák)
    right = float(stdtrit(n - 1, (1 + aim ** (1 / n_means)) / 2))
    return max(1.0, float(np.median(found)) / right)


def p_of_draws(n_as_good: int, n_draws: int) -> float:
    """p value of "no better than a drawn control": `(1 + n_as_good) / (1 + n_draws)`, so at least 0.05 for 19 draws.

    Args:
        n_as_good: Draws that are as good as what is judged, or better.
        n_draws: All draws.

    Raises:
        ValueError: no draws, or more good ones than draws.
    """
    if not 0 <= n_as_good <= n_draws or n_draws < 1:
        raise ValueError(f"p_of_draws got {n_as_good} of {n_draws} draws, expected 0 to all of 1 or more; draw one.")
    return (1 + n_as_good) / (1 + n_draws)


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number by Holm's method, in the given order; NaN stay NaN, and do not count."""
    known = sorted((value, at) for at, value in enumerate(p) if value == value)  # NaN is not equal to itself
    found, least = [nan] * len(p), 0.0
    for place, (value, at) in enumerate(known):
        # no corrected value lies below that of a smaller p
        least = max(least, min(1.0, value * (len(known) - place)))
        found[at] = least
    return found


def _without_nan(groups: Sequence[Sequence[float] | np.ndarray]) -> list[np.ndarray]:
    """The groups without their NaN members, and without groups that have no others."""
    kept = [np.asarray(group, float) for group in groups]
    kept = [group[~np.isnan(group)] for group in kept]
    return [group for group in kept if len(group)]
