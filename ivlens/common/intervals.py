"""Intervals that hold: Wilson's for shares, t for means and few groups, max-T for many means at once; p and Holm.

Formulas, and how often each holds: docs/method.md, section 13.
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
FEWEST = 6  # groups, or prompts: an interval of fewer describes what was seen, and is called so
WIDEST = 1.5  # times Bonferroni's t interval: max-T beyond that rests on few prompts, and is not given
DESCRIPTIVE = "descriptive"
_SPARED = 0.7  # max-T aims at this part of the misses: samples that lack a map's rare prompts look better than they are
_CORRECTED = 24  # rows: below, max-T stays as careful as it is, since skewed effects need that
_CHUNK = 256  # means whose resamples are in memory at once
_SAME = 1e-10  # a resample's variance below this share of the sample's is rounding: all its values are the same


def named(what: str, level: float = LEVEL) -> str:
    """The name of an interval of this level, such as "Wilson 95 %"."""
    return f"{what} {100 * level:g} %"


def named_of(n: int, what: str = "t", level: float = LEVEL) -> str:
    """The name of a t interval of so many groups or prompts: "descriptive" below six; empty where there is none."""
    if n < 2:
        return ""
    return DESCRIPTIVE if n < FEWEST else named(what, level)


def wilson(k: float | int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of a share: `k` right of `n` that are independent; it has a width where all are right, too.

    Args:
        k: A whole number, or with parts where each of the `n` is a mean of several (draws of a control); the interval
            is then wider than it has to be.
        n: Distinct inputs.
        level: Coverage.

    Raises:
        ValueError: no trials, or more hits than trials.
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"wilson got {k} of {n}, expected 0 to all of one or more trials.")
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle, reach = (k + z * z / 2) / (n + z * z), z * sqrt(k * (n - k) / n + z * z / 4) / (n + z * z)
    # where all or none are right the end is exact, and rounding must not put it inside
    return 0.0 if k == 0 else max(0.0, middle - reach), 1.0 if k == n else min(1.0, middle + reach)


def t_reach(n: int, level: float = LEVEL, n_means: int = 1) -> float:
    """How many standard errors a t interval of `n` values reaches; `n_means`: Bonferroni's for so many at once."""
    return float(stdtrit(n - 1, 1 - (1 - level) / 2 / n_means))


def t_interval(values: Sequence[float] | np.ndarray, level: float = LEVEL) -> tuple[float, float, float]:
    """Mean, low and high of a t interval over independent values; the ends are NaN for fewer than two.

    NaN values are left out.
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
    """Mean over groups (tasks, runs) of their means, and its 95 % t interval over the groups.

    The members of a group share what made it, so that groups are what is counted: how much their members vary is in
    their means already. With one group its members are counted. NaN members are left out, and so are groups of nothing
    else.

    Returns:
        Mean, low, high; NaN where there is nothing to take them of.
    """
    kept = _known(groups)
    return t_interval(kept[0] if len(kept) == 1 else [group.mean() for group in kept])


def grouped_name(groups: Sequence[Sequence[float] | np.ndarray]) -> str:
    """The name of `grouped_interval`: "t 95 %", "descriptive" for two to five groups; empty where there is none."""
    kept = _known(groups)
    return named_of(len(kept[0]) if len(kept) == 1 else len(kept))


def clustered_difference(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, inputs: Sequence[str], level: float = LEVEL
) -> tuple[float, float, float]:
    """Mean of `a - b`, paired, and its t interval over inputs: what several seeds say of one input counts once.

    Args:
        a, b: Scores of the same prompts, of one seed or several, one after the other.
        inputs: What each of them asks about.
        level: Coverage.

    Raises:
        ValueError: not as many of one as of the others.
    """
    if not len(a) == len(b) == len(inputs):
        raise ValueError(
            f"a, b and inputs have {len(a)}, {len(b)} and {len(inputs)} entries, expected as many of each."
        )
    lost = np.asarray(a, float) - np.asarray(b, float)
    by_input: dict[str, list[float]] = {}
    for text, value in zip(inputs, lost, strict=True):
        by_input.setdefault(text, []).append(float(value))
    return t_interval([float(np.mean(values)) for values in by_input.values()], level)


@dataclass(frozen=True)
class Reach:
    """How far the intervals of several means reach, in standard errors of each, and what they are called.

    Attributes:
        times: Standard errors.
        kind: "simultaneous 95 %", "pointwise 95 %", or "descriptive" for fewer than six values.
        ratio: How much wider than Bonferroni's t intervals those of max-T are, or would have been; NaN where it was not
            asked for.
    """

    times: float
    kind: str
    ratio: float = nan


def pointwise_reach(n: int, level: float = LEVEL) -> Reach:
    """The reach of a t interval for each mean alone, over `n` values."""
    return Reach(t_reach(n, level), named_of(n, "pointwise", level))


def max_t_reach(
    values: Float[np.ndarray, "n n_means"], *, level: float = LEVEL, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Reach:
    """The reach of intervals that hold for all columns at once, with probability `level`; pointwise where it has none.

    Rows are resampled, all columns together. Every resample is studentised with its own standard errors, and the reach
    is a quantile (0.965 for 95 %) of the largest of all columns, from 24 rows on less what that is too far on normal
    noise of the same shape::

        T* = max over columns of  |mean* - mean| / (s* / sqrt(n))

    A column whose mean hangs on one or two rows gives resamples without these rows, and so without a spread: the
    quantile explodes. Where it goes beyond 1.5 times Bonferroni's t, or a column does not vary while others do, the
    data cannot carry the claim, and the pointwise t interval is given and called so.

    Source: docs/method.md, section 13.
    """
    n, n_means = values.shape
    alone = pointwise_reach(n, level)
    spread = values.std(0, ddof=1)
    if n < FEWEST or not (spread > 1e-12 * np.abs(values).max(0)).all():
        return alone
    aim = 1 - _SPARED * (1 - level)
    times_se = _largest(values, aim, n_resamples, np.random.default_rng(seed))
    if n >= _CORRECTED:
        times_se /= _too_far(n, n_means, aim, n_resamples)
    ratio = times_se / t_reach(n, level, n_means)
    return Reach(times_se, named("simultaneous", level), ratio) if ratio <= WIDEST else replace(alone, ratio=ratio)


def _largest(values: np.ndarray, aim: float, n_resamples: int, drawn: np.random.Generator) -> float:
    """The quantile over resamples of rows of how many of its own standard errors the worst column is off."""
    n = len(values)
    standard = (values - values.mean(0)) / values.std(0, ddof=1)
    # a resample is how often each row was drawn
    times = drawn.multinomial(n, np.full(n, 1 / n), n_resamples).astype(float)
    worst = np.zeros(n_resamples)
    for start in range(0, standard.shape[1], _CHUNK):
        part = standard[:, start : start + _CHUNK]
        means = times @ part / n
        variance = (times @ part**2 - n * means**2) / (n - 1)
        apart = np.abs(means) / np.sqrt(np.maximum(variance, _SAME) / n)
        np.maximum(worst, np.where(variance > _SAME, apart, inf).max(1), out=worst)
    at = ceil(aim * (n_resamples + 1))
    return float(np.sort(worst)[at - 1]) if at <= n_resamples else inf


@lru_cache(maxsize=64)
def _too_far(n: int, n_means: int, aim: float, n_resamples: int) -> float:
    """How many times `_largest` is too large on normal noise of this shape, as resamples repeat rows; 1 or more."""
    drawn = np.random.default_rng(0)
    many = min(12, max(1, 4096 // n_means))  # of many columns one draw says it well
    found = [_largest(drawn.standard_normal((n, n_means)), aim, n_resamples, drawn) for _ in range(many)]
    right = float(stdtrit(n - 1, (1 + aim ** (1 / n_means)) / 2))
    return max(1.0, float(np.median(found)) / right)


def p_of_draws(n_as_good: int, n_draws: int) -> float:
    """p of "no better than a drawn control": `(1 + n_as_good) / (1 + n_draws)`; of 19 draws it is never below 0.05.

    Raises:
        ValueError: no draws, or more that are as good than there are.
    """
    if not 0 <= n_as_good <= n_draws or n_draws < 1:
        raise ValueError(f"p_of_draws got {n_as_good} of {n_draws}, expected 0 to all of one or more draws.")
    return (1 + n_as_good) / (1 + n_draws)


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm): each is then read as if it were alone. NaN stay, and do not count."""
    known = sorted((value, at) for at, value in enumerate(p) if value == value)
    found, least = [nan] * len(p), 0.0
    for place, (value, at) in enumerate(known):
        least = max(least, min(1.0, value * (len(known) - place)))
        found[at] = least
    return found


def _known(groups: Sequence[Sequence[float] | np.ndarray]) -> list[np.ndarray]:
    kept = [np.asarray(group, float) for group in groups]
    kept = [group[~np.isnan(group)] for group in kept]
    return [group for group in kept if len(group)]
