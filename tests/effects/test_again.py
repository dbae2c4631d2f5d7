"""The strongest heads on prompts that did not choose them."""

from dataclasses import replace

import pytest
import torch
from conftest import WORDS
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import ivlens
from ivlens.effects import EffectOptions
from ivlens.effects.bands import ChosenHeads
from ivlens.effects.results import HeadEffects
from ivlens.models.load import load_model
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.task import Task, TaskExample


@pytest.fixture(scope="module")
def pocket():
    return ivlens.load_model("pocket")


@pytest.fixture(scope="module")
def task():
    return ivlens.load_task("antonym")


@pytest.fixture(scope="module")
def effects(pocket, task):
    return ivlens.head_effects(pocket, task, score="logprob", n_prompts=12)


@pytest.fixture(scope="module")
def again(effects, task):
    return ivlens.measure_again(effects, task, heads=3)


def test_only_chosen_heads_on_prompts_of_another_split(again, effects, task):
    found = again.again
    assert found.heads == tuple(effects.top_heads(3)) and found.cie.shape == (12, 3) and found.split == "select"
    assert set(found.inputs) <= {example.input for example in task.split("select", 0)}
    assert not set(found.inputs) & set(effects.inputs)


def test_on_the_same_prompt_a_head_has_the_same_effect(effects, task):
    as_select = replace(effects, settings={**effects.settings, "split": "select"})
    found = ivlens.measure_again(as_select, task, heads=3, split="fit").again
    met = [(row, effects.inputs.index(text)) for row, text in enumerate(found.inputs) if text in effects.inputs]
    assert met, "no input of the first map was met again"
    for row, there in met:
        first = torch.stack([effects.cie[there, layer, head] for layer, head in found.heads])
        torch.testing.assert_close(found.cie[row], first, atol=1e-4, rtol=1e-4)


def test_the_table_has_both(again):
    frame = again.to_frame()
    assert list(frame)[-5:] == ["aie_again", "low_again", "high_again", "interval_again", "n_again"]
    assert frame["aie_again"].notna().tolist() == [True] * 3 + [False] * 45
    first = frame.iloc[0]
    assert first["interval_again"] == "pointwise 95 %" and first["n_again"] == 12
    assert first["low_again"] < first["aie_again"] < first["high_again"]
    assert first["aie_again"] == pytest.approx(float(again.again.aie[0]), abs=1e-6)


def test_it_survives_the_file(again, effects, tmp_path):
    loaded = HeadEffects.load(again.save(tmp_path / "again.safetensors"))
    assert torch.equal(loaded.again.cie, again.again.cie)
    assert (loaded.again.heads, loaded.again.inputs, loaded.again.split) == (
        again.again.heads,
        again.again.inputs,
        "select",
    )
    assert HeadEffects.load(effects.save(tmp_path / "plain.safetensors")).again is None
    assert again.to("cpu").again is again.again
    broken = replace(again, again=ChosenHeads(((9, 9),), again.again.cie[:, :1], again.again.inputs, "select"))
    with pytest.raises(ValueError, match="heads that the model does not have"):
        HeadEffects.load(broken.save(tmp_path / "broken.safetensors"))
    broken = replace(again, again=replace(again.again, inputs=("x",)))
    with pytest.raises(ValueError, match="no tensor again_cie of 1 prompts and 3 heads"):
        HeadEffects.load(broken.save(tmp_path / "broken.safetensors"))


def test_the_same_seed_gives_the_same_prompts(again, effects, task):
    other = ivlens.measure_again(effects, task, heads=3)
    assert other.again.inputs == again.again.inputs and torch.equal(other.again.cie, again.again.cie)


def test_what_cannot_be_measured_again(effects, task, pocket, llama):
    with pytest.raises(ValueError, match="split is 'fit', which chose the heads"):
        ivlens.measure_again(effects, task, split="fit")
    with pytest.raises(ValueError, match="task is 'comparative', expected the task 'antonym'"):
        ivlens.measure_again(effects, ivlens.load_task("comparative"))
    with pytest.raises(ValueError, match="is not in memory; pass model="):
        ivlens.measure_again(replace(effects, model_ref=None), task)
    with pytest.raises(ValueError, match="has other weights and another configuration.*as it was when the effects"):
        ivlens.measure_again(effects, task, model=llama)
    for name, other in (("config_hash", "another configuration"), ("tokenizer_hash", "another tokenizer")):
        stranger = replace(effects, model=replace(effects.model, **{name: "other"}))
        with pytest.raises(ValueError, match=f"has {other}"):
            ivlens.measure_again(stranger, task, model=pocket)
    with pytest.raises(ValueError, match="others are synonym, expected the built-in tasks"):
        ivlens.measure_again(effects, task, others=[ivlens.load_task("synonym")])
    with pytest.raises(ValueError, match="L9H0, which was not measured"):
        ivlens.measure_again(effects, task, heads=[(9, 0)])
    with pytest.raises(ValueError, match="heads is empty"):
        ivlens.measure_again(effects, task, heads=[])
    with pytest.raises(ValueError, match="k is 0, expected 1 to 48"):
        ivlens.measure_again(effects, task, heads=0)


def test_demonstrations_are_followed(pocket):
    task = ivlens.load_task("english_french")
    effects = ivlens.head_effects(pocket, task, recipe=PromptRecipe(n_shots=3, instruction=None), n_prompts=6)
    found = ivlens.measure_again(effects, task, heads=100)
    assert len(found.again.heads) == 48 and found.again.cie.shape == (6, 48) and found.again.cie.isfinite().all()


def test_logit_differences_are_of_prompts_with_a_foil(llama):
    """Of half of the inputs the other task's answer begins as the right one does: with a lone space."""
    tasks = [
        Task(name, tuple(TaskExample(word, (answer(n),)) for n, word in enumerate(words)), instructions=(f"{name}!",))
        for name, words, answer in (
            ("plus", WORDS, lambda n: str(n + 11)),
            ("minus", WORDS, lambda n: str(n + 40)),
            ("word", WORDS[::2], lambda n: "small"),
        )
    ]
    options = ivlens.EffectOptions(others=tasks[1:], n_check_prompts=0, n_mean_prompts=4)
    effects = ivlens.head_effects(llama, tasks[0], score="logit_diff", n_prompts=3, options=options)
    found = ivlens.measure_again(effects, tasks[0], heads=2, others=tasks[1:]).again
    assert found.cie.isfinite().all() and set(found.inputs) <= set(WORDS[::2])


def test_the_same_weights_under_another_configuration_are_another_model(effects, task):
    config = AutoConfig.from_pretrained(ivlens.pocket_path())
    config.hidden_act = "relu"
    changed = AutoModelForCausalLM.from_pretrained(ivlens.pocket_path(), config=config)
    other = load_model(hf_model=changed, tokenizer=AutoTokenizer.from_pretrained(ivlens.pocket_path()))
    with pytest.raises(ValueError, match="has another configuration, expected"):
        ivlens.measure_again(effects, task, model=other)


def test_counterfactuals_of_other_tasks_are_another_measure(pocket, task):
    others = [ivlens.load_task(name) for name in ("comparative", "english_french")]
    effects = ivlens.head_effects(pocket, task, n_prompts=4, options=EffectOptions(others=others, n_check_prompts=0))
    assert len(ivlens.measure_again(effects, task, heads=1, others=others).again.inputs) == 4
    with pytest.raises(ValueError, match="others are the built-in tasks, expected comparative, english_french"):
        ivlens.measure_again(effects, task, heads=1)
