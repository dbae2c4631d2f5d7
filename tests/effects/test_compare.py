"""Whether two measurements find the same heads: overlap with its chance, rank correlation with its limit."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from scipy.stats import hypergeom, spearmanr

import ivlens
from ivlens import PromptRecipe, compare_heads, head_effects
from ivlens.effects.compare import _bonett_wright, _p_of_overlap, _reliability, spearman


@pytest.fixture(scope="module")
def told():
    model = ivlens.load_model("pocket")
    return head_effects(model, ivlens.load_task("antonym"), n_prompts=8), model


def with_aie(effects, aie: torch.Tensor, n_prompts: int = 4):
    """Effects with this map on every prompt."""
    cie = aie.expand(n_prompts, *aie.shape).clone()
    scores = torch.zeros(n_prompts)
    return replace(
        effects, cie=cie, base_scores=scores, clean_scores=scores + 1, corruptions=("drop",) * n_prompts,
        inputs=tuple(map(str, range(n_prompts))),
    )  # fmt: skip


def test_effects_share_all_heads_with_themselves(told):
    effects, _ = told
    found = compare_heads(effects, effects, k=5)
    assert (
        found.overlap == 5
        and found.shared == tuple(effects.top_heads(5))
        and found.only_first == found.only_second == ()
    )
    assert (found.correlation, found.low, found.high) == pytest.approx((1, 1, 1))
    assert found.expected == 25 / 48 and found.p == pytest.approx(hypergeom.sf(4, 48, 5, 5))
    assert list(found.table["label"][:5]) == [f"L{layer}H{head}" for layer, head in found.shared]


def test_planted_heads_are_counted(told):
    effects, _ = told
    first, second = torch.zeros(2, 6, 8)
    for rank, (layer, head) in enumerate([(0, 1), (2, 3), (4, 5)]):
        first[layer, head] = 3.0 - rank
    for rank, (layer, head) in enumerate([(4, 5), (1, 1), (0, 1)]):
        second[layer, head] = 3.0 - rank
    found = compare_heads(with_aie(effects, first), with_aie(effects, second), k=3)
    assert found.shared == ((0, 1), (4, 5)) and found.only_first == ((2, 3),) and found.only_second == ((1, 1),)
    assert found.p == pytest.approx(hypergeom.sf(1, 48, 3, 3)) and found.n_heads == 48
    assert found.correlation == pytest.approx(spearmanr(first.flatten(), second.flatten()).statistic)
    row = found.table.set_index("label").loc["L4H5"]
    assert (row["first"], row["second"], row["rank_first"], row["rank_second"]) == (1.0, 3.0, 3, 1)
    text = str(found)
    assert "2 of 3 strongest heads are shared (by chance 0.19, p = 0.0079)" in text and "only second: L1H1" in text
    assert "plain, the task's instruction" in found.first and "4 prompts" in found.second
    html = found._repr_html_()
    assert "L0H1 L4H5" in html and "2 (by chance 0.19, p = 0.0079)" in html
    assert repr(found) == f"HeadComparison(2 of 3 shared, rank correlation {found.correlation:.2f})"


def test_heads_that_one_did_not_measure_are_left_out(told):
    effects, _ = told
    first = torch.rand(6, 8)
    second = first.clone()
    second[0] = torch.nan
    found = compare_heads(with_aie(effects, first), with_aie(effects, second), k=40)
    assert found.n_heads == 40 and found.overlap == 40 and found.p == 1.0
    assert not any(layer == 0 for layer, _ in found.shared)
    with pytest.raises(ValueError, match="k is 41, expected 1 to 40, the number of heads that both measured"):
        compare_heads(with_aie(effects, first), with_aie(effects, second), k=41)


def test_chance_by_counting():
    # all ways to draw 3 of 6 heads; the fixed ones are 0, 1, 2
    drawn = list(combinations(range(6), 3))
    for overlap in range(4):
        share = sum(len({0, 1, 2}.intersection(one)) >= overlap for one in drawn) / len(drawn)
        assert _p_of_overlap(overlap, 3, 6) == pytest.approx(share)
    assert 0 < _p_of_overlap(10, 10, 1024) < 1e-22


def test_rank_correlation_with_ties():
    a, b = torch.tensor([1.0, 1, 2, 3, 3, 3]), torch.tensor([2.0, 1, 1, 5, 4, 5])
    assert spearman(a.double(), b.double()) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman(a, torch.ones(6)) != spearman(a, torch.ones(6)), "no ranks, no correlation: NaN"


def test_the_interval_covers_what_it_should():
    generator, rho, inside = torch.Generator().manual_seed(0), 0.6, 0
    many = torch.randn(2, 200_000, generator=generator, dtype=torch.float64)
    true = spearman(many[0], rho * many[0] + (1 - rho**2) ** 0.5 * many[1])
    for _ in range(400):
        x, noise = torch.randn(2, 48, generator=generator, dtype=torch.float64)
        low, high = _bonett_wright(spearman(x, rho * x + (1 - rho**2) ** 0.5 * noise), 48)
        inside += low <= true <= high
    assert 0.92 <= inside / 400 <= 0.98
    assert all(end != end for end in _bonett_wright(0.5, 3))


def test_reliability_falls_with_noise(told):
    effects, _ = told
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(6, 8, generator=generator)
    noise = torch.randn(16, 6, 8, generator=generator)
    clear, noisy = (replace(with_aie(effects, signal, 16), cie=signal + scale * noise) for scale in (0.01, 8.0))
    places = list(range(48))
    assert _reliability(clear, places) > 0.99 > _reliability(noisy, places) + 0.3
    # the estimate from halves is near the correlation of two measurements of full length
    other = torch.randn(16, 6, 8, generator=generator)
    middle = [replace(clear, cie=signal + 2.0 * one) for one in (noise, other)]
    both = spearman(*(one.aie.flatten().double() for one in middle))
    assert _reliability(middle[0], places) == pytest.approx(both, abs=0.2)
    assert _reliability(with_aie(effects, signal, 1), places) != _reliability(with_aie(effects, signal, 1), places)


def test_two_models_are_refused(told, llama):
    effects, _ = told
    from conftest import tiny_task

    quick = ivlens.EffectOptions(n_mean_prompts=4, n_check_prompts=0)
    other = head_effects(llama, tiny_task(), n_prompts=2, corruption="drop", options=quick)
    with pytest.raises(ValueError, match="first and second were measured on two models .*expected one model"):
        compare_heads(effects, other)


def test_an_instruction_and_demonstrations_on_the_built_in_model(told):
    effects, model = told
    shown = head_effects(
        model, ivlens.load_task("antonym"), recipe=PromptRecipe(instruction=None, n_shots=5), n_prompts=8
    )
    found = compare_heads(effects, shown)
    assert 0 <= found.overlap <= 10 and found.warnings == (*effects.warnings, *shown.warnings)
    assert all(warning in str(found) for warning in found.warnings)
