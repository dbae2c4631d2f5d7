"""A corruption has to take something away: clean minus corrupted score stands beside every map, with a warning."""

import logging
from dataclasses import replace

import pytest
import torch
from conftest import tiny_task

import ivlens
from ivlens.effects import EffectOptions, HeadEffects, head_effects
from ivlens.effects.taken import Taken
from ivlens.vectors import InstructionVector


@pytest.fixture(scope="module")
def pocket():
    return ivlens.load_model("pocket")


@pytest.fixture(scope="module")
def effects(pocket):
    return head_effects(pocket, ivlens.load_task("antonym"), n_prompts=8)


def test_clean_scores_are_those_of_the_same_inputs(pocket, effects):
    from ivlens.forward.scoring import answer_logits, first_token_prob
    from ivlens.prompts import build_prompts

    task = ivlens.load_task("antonym")
    examples = [task.find(text) for text in effects.inputs]
    batch = build_prompts(pocket.tokenizer, task, examples, effects.recipe)
    want = first_token_prob(answer_logits(pocket, batch)[:, 0], batch.answer_tokens[:, 0])
    assert torch.allclose(effects.clean_scores, want, atol=1e-5)
    taken = effects.taken
    assert taken.mean == pytest.approx(float((want - effects.base_scores).mean()), abs=1e-5)
    assert taken.low < taken.mean < taken.high and taken.share > 0.9 and taken.is_enough and not effects.taken_warning


@pytest.mark.parametrize("score", ["logprob", "logit_diff"])
def test_every_score_has_them(pocket, score):
    found = head_effects(pocket, ivlens.load_task("antonym"), n_prompts=6, score=score)
    assert found.taken.mean > 1 and found.taken.is_enough and found.clean_scores.shape == (6,)


def test_accuracies_and_scores_survive_the_file(effects, pocket, tmp_path):
    assert effects.clean_accuracy == 1.0 and effects.bare_accuracy < 0.3
    back = HeadEffects.load(effects.save(tmp_path / "effects.safetensors"), pocket)
    assert (back.ability, back.taken, back.warnings) == (effects.ability, effects.taken, ())
    assert "clean minus corrupted score" in repr(back) and str(back) == repr(back)


def test_older_files_have_neither(effects, tmp_path):
    import dataclasses

    settings = {name: value for name, value in effects.settings.items() if name != "ability"}
    old = dataclasses.replace(effects, settings=settings, clean_scores=None)
    back = HeadEffects.load(old.save(tmp_path / "old.safetensors"))
    assert back.clean_accuracy is back.bare_accuracy is back.taken is back.clean_scores is None
    assert back.warnings == () and "clean less" not in repr(back)


def test_the_check_can_be_left_out_or_given(pocket, effects, caplog):
    task = ivlens.load_task("antonym")
    without = head_effects(pocket, task, n_prompts=8, options=EffectOptions(n_check_prompts=0))
    assert without.ability is None and torch.equal(without.cie, effects.cie)
    given = head_effects(pocket, task, n_prompts=8, options=EffectOptions(n_check_prompts=0, ability=effects.ability))
    assert given.ability == effects.ability
    with pytest.raises(ValueError, match="n_check_prompts is -1"):
        EffectOptions(n_check_prompts=-1)


@pytest.mark.parametrize(
    ("clean", "corrupted", "score", "enough", "share"),
    [
        ([0.9, 0.8, 0.9, 0.8], [0.1, 0.1, 0.0, 0.1], "prob", True, 0.91),
        ([0.9, 0.8, 0.9, 0.8], [0.8, 0.7, 0.8, 0.7], "prob", False, 0.12),  # less than a fifth
        ([0.9, 0.1, 0.9, 0.1], [0.1, 0.9, 0.1, 0.5], "prob", False, 0.2),  # the interval includes 0
        ([-0.1, -0.2] * 2, [-3.0, -4.0] * 2, "logprob", True, 0.965),
        ([-1.0, -1.0], [-1.1, -1.1], "logprob", False, 0.095),
        ([2.0, 3.0] * 2, [-1.0, -2.0] * 2, "logit_diff", True, 1.6),
    ],
)
def test_what_is_enough(clean, corrupted, score, enough, share):
    taken = Taken.of(torch.tensor(clean), torch.tensor(corrupted), score)
    assert taken.is_enough is enough and taken.share == pytest.approx(share, abs=0.01)


def test_one_prompt_has_no_interval():
    taken = Taken.of(torch.tensor([0.9]), torch.tensor([0.1]), "prob")
    assert (
        taken.low != taken.low
        and taken.is_enough
        and str(taken) == "clean minus corrupted score +0.8, 89 % of the clean score"
    )


def test_a_large_share_that_may_be_nothing_is_not_called_little(effects):
    one = torch.zeros_like(effects.base_scores)
    said = replace(effects, clean_scores=one.index_fill(0, torch.tensor([0]), 1.0), base_scores=one).taken_warning
    assert "may take nothing away (the interval includes 0)" in said and "100 % of the clean score" in said


def test_effects_say_it_first_and_a_vector_once(llama, caplog):
    caplog.set_level(logging.WARNING, "ivlens")
    found = head_effects(
        llama, tiny_task(), n_prompts=4, options=EffectOptions(others=[tiny_task("other", "Freeze.", 2)])
    )
    said = [record.getMessage() for record in caplog.records]
    assert sum("no vector can carry" in text for text in said) == 1 and not any("little" in text for text in said)
    assert str(found).startswith("antonym: clean accuracy 0.00") and len(str(found).splitlines()) == 3
    caplog.clear()
    unchecked = EffectOptions(others=[tiny_task("other", "Freeze.", 2)], n_check_prompts=0)
    head_effects(llama, tiny_task(), n_prompts=4, options=unchecked)
    assert ["takes little away" in record.getMessage() for record in caplog.records] == [True]
    caplog.clear()
    for _ in range(2):
        InstructionVector.from_effects(found, 2)
    (record,) = caplog.records
    assert "say little" in record.getMessage()
    InstructionVector.from_effects(found, heads=[(0, 0)])  # chosen by hand, not by these effects
    assert len(caplog.records) == 1


def test_where_nothing_is_taken_on_purpose_nothing_is_said(llama, tmp_path):
    found = head_effects(llama, tiny_task(), n_prompts=4, corruption="none", options=EffectOptions(contrast=True))
    assert torch.equal(found.clean_scores, found.base_scores) and found.taken.mean == 0 and not found.taken_warning
    # both scores may be one tensor in memory; in the file each stands by itself
    kept = HeadEffects.load(found.save(tmp_path / "found.safetensors"))
    assert torch.equal(kept.clean_scores, found.base_scores) and torch.equal(kept.mean_z_corrupted, found.mean_z)


@pytest.mark.parametrize("score", ["prob", "logprob"])
def test_scores_that_are_not_finite_say_nothing(score):
    broken = Taken.of(torch.tensor([0.5, torch.inf]), torch.tensor([0.1, 0.1]), score)
    assert all(value != value for value in (broken.mean, broken.low, broken.high, broken.share))
    assert Taken.of(torch.tensor([-2000.0, -2000.0]), torch.tensor([0.0, 0.0]), "logprob").share < 0


def test_a_share_of_thousands_of_percent_is_not_told():
    assert str(Taken(-0.1, -0.2, -0.01, -23.35)) == "clean minus corrupted score -0.1 (-0.2 to -0.01)"
