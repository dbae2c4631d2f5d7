"""Shares, means, few groups, clusters, p of draws: against scipy, and how often they hold."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest, ttest_1samp

from ivlens.common.intervals import (
    clustered_difference,
    grouped_interval,
    grouped_name,
    holm,
    max_t_reach,
    named_of,
    p_of_draws,
    t_interval,
    t_reach,
    wilson,
)


def test_wilson_agrees_with_scipy_and_has_a_width_where_all_are_right():
    for k, n in ((0, 24), (18, 20), (24, 24), (500, 1000)):
        theirs = binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert wilson(k, n) == pytest.approx((theirs.low, theirs.high))
    assert all(wilson(n, n)[1] == 1 and wilson(0, n)[0] == 0 for n in range(1, 200))
    assert wilson(19.5, 20)[0] < wilson(20, 20)[0]  # means over several vectors are no whole numbers
    with pytest.raises(ValueError, match="wilson got 25 of 24"):
        wilson(25, 24)


@pytest.mark.parametrize(("p", "n"), [(0.5, 16), (0.9, 16), (0.98, 16), (0.9, 55), (0.98, 55)])
def test_shares_hold(p, n):
    ends = [wilson(k, n) for k in range(n + 1)]
    coverage = sum(float(binom.pmf(k, n, p)) for k, (low, high) in enumerate(ends) if low <= p <= high)
    assert coverage >= 0.92  # the resampled interval of 0 and 1: 0.28 for p = 0.98, n = 16


def test_t_agrees_with_scipy():
    values = np.random.default_rng(1).exponential(size=12)
    theirs = ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert t_interval(values, 0.9) == pytest.approx((values.mean(), theirs.low, theirs.high))
    assert t_interval([*values, np.nan], 0.9) == t_interval(values, 0.9)
    assert np.isnan(t_interval([])).all() and np.isnan(t_interval([1.0])[1])


def test_groups_are_what_varies():
    mean, low, high = grouped_interval([[0.0, 0.0], [1.0, 1.0]])
    assert (mean, high - low) == (0.5, pytest.approx(2 * t_reach(2) * 0.5))
    drawn = np.random.default_rng(0).normal(size=(40, 30))
    mean, low, high = grouped_interval(list(drawn))
    assert low < mean < high and (high - low) / 2 == pytest.approx(2.02 * (1 / 30 / 40) ** 0.5, rel=0.2)
    assert grouped_interval([[1.0, 2.0, 4.0]]) == t_interval([1.0, 2.0, 4.0])  # of one group its members
    assert np.isnan(grouped_interval([])).all() and np.isnan(grouped_interval([[1.0], [np.nan]])[1])


@pytest.mark.parametrize("k", [2, 3, 4, 5, 6, 8, 14])
def test_few_groups_hold(k):
    drawn, inside = np.random.default_rng(k), []
    for _ in range(600):
        groups = [0.3 * drawn.standard_normal() + drawn.standard_normal(50) for _ in range(k)]
        _, low, high = grouped_interval(groups)
        inside.append(low <= 0 <= high)
    assert 0.93 <= np.mean(inside) <= 0.98  # resampled groups: 0.77 of two, 0.86 of four


def test_intervals_of_few_are_called_descriptive():
    names = ["", "", "descriptive", "descriptive", "descriptive", "descriptive", "t 95 %", "t 95 %"]
    assert [named_of(n) for n in range(8)] == names
    assert grouped_name([[1.0, 2.0]] * 3) == "descriptive" and grouped_name([[1.0] * 9]) == "t 95 %"
    assert grouped_name([[1.0, 2.0]] * 6 + [[np.nan]]) == "t 95 %"


def test_what_several_seeds_say_of_one_input_counts_once():
    drawn = np.random.default_rng(0)
    inputs = [f"input {number}" for number in range(12)]
    hard, inside, naive = drawn.standard_normal(12), [], []
    for _ in range(400):
        hard = drawn.standard_normal(12)  # how much an input differs, the same under all three seeds
        lost = np.concatenate([hard + 0.1 * drawn.standard_normal(12) for _ in range(3)])
        _, low, high = clustered_difference(lost, np.zeros(36), inputs * 3)
        inside.append(low <= 0 <= high)
        _, low, high = t_interval(lost)
        naive.append(low <= 0 <= high)
    assert 0.93 <= np.mean(inside) <= 0.98 and np.mean(naive) < 0.85
    assert clustered_difference([1.0, 2.0], [0.0, 0.0], ["a", "b"]) == t_interval([1.0, 2.0])
    with pytest.raises(ValueError, match="have 2, 2 and 1 entries, expected as many of each"):
        clustered_difference([1.0, 2.0], [0.0, 0.0], ["a"])
    with pytest.raises(ValueError, match="have 3, 2 and 3 entries, expected as many of each"):
        clustered_difference([1.0, 2.0, 3.0], [0.0, 0.0], ["a", "b", "c"])


def test_p_of_draws_and_holm():
    assert p_of_draws(0, 19) == 0.05 and p_of_draws(19, 19) == 1 and p_of_draws(0, 39) == 0.025
    with pytest.raises(ValueError, match="p_of_draws got 0 of 0"):
        p_of_draws(0, 0)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
    corrected = holm([0.02, float("nan"), 0.03])
    assert corrected[0] == pytest.approx(0.04) and np.isnan(corrected[1])


def test_max_t_is_the_same_for_the_same_seed_and_ignores_scale():
    values = np.random.default_rng(0).standard_normal((40, 30))
    found = max_t_reach(values, seed=3)
    assert found == max_t_reach(values, seed=3) and found != max_t_reach(values, seed=4)
    assert max_t_reach(values * np.logspace(-6, 6, 30) + 5, seed=3).times == pytest.approx(found.times)
    assert found.kind == "simultaneous 95 %" and found.ratio == pytest.approx(1, abs=0.1)
    assert t_reach(40) < max_t_reach(values, level=0.5, seed=3).times + 1 < found.times + 1


def test_max_t_is_refused_where_one_row_makes_a_column():
    values = np.random.default_rng(0).standard_normal((40, 30))
    values[:, 7] = 0
    assert max_t_reach(values).kind == "pointwise 95 %"  # a column that never varied may do so in other prompts
    values[3, 7] = 1
    found = max_t_reach(values)
    assert found.kind == "pointwise 95 %" and found.ratio > 1.5 and found.times == t_reach(40)
