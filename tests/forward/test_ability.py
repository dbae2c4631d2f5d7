"""Whether a model can do a task is asked first, counted plainly, and said."""

import logging
from dataclasses import replace

import pytest
from conftest import chained, tiny_task

import ivlens
from ivlens.common.intervals import wilson
from ivlens.forward.ability import Ability, measure_ability
from ivlens.forward.scoring import greedy_accuracy
from ivlens.prompts import PromptRecipe, build_prompts
from ivlens.steering.steer import steer
from ivlens.tasks import Task
from ivlens.vectors import InstructionVector


@pytest.fixture(scope="module")
def pocket():
    return ivlens.load_model("pocket")


def test_it_is_the_plain_count_on_select_inputs(pocket, caplog):
    task, recipe = ivlens.load_task("antonym"), PromptRecipe(seed=3)
    whole = task.split("select", 3)
    with caplog.at_level(logging.INFO, "ivlens"):
        found = measure_ability(pocket, task, recipe, len(whole))
    for name, corruption in (("clean", None), ("bare", "drop")):
        batch = build_prompts(pocket.tokenizer, task, whole, recipe, corruption=corruption)
        assert getattr(found, name) == pytest.approx(float(greedy_accuracy(pocket, batch).float().mean()))
    assert found.n == len(whole) and found.clean > 0.9 and found.is_enough and not found.warning("antonym", "pocket")
    (line,) = [record for record in caplog.records if "accuracy" in record.getMessage()]
    assert line.levelno == logging.INFO and line.getMessage().startswith("antonym: clean accuracy 1.00")
    assert measure_ability(pocket, task, recipe, 8) == measure_ability(pocket, task, recipe, 8)
    assert measure_ability(pocket, task, recipe, 8).n == 8


@pytest.mark.parametrize(
    ("clean", "bare", "enough", "said"),
    [
        (0.29, 0.0, False, "no vector can carry"),
        (0.3, 0.1, True, ""),
        (0.9, 0.71, False, "nearly as well"),
        (0.9, 0.7, True, ""),
        (0.9, None, True, ""),
        (0.1, None, False, "no vector can carry"),
    ],
)
def test_limits(clean, bare, enough, said):
    found = Ability(clean, bare, 100)
    warning = found.warning("my_task", "./model")
    assert found.is_enough is enough and said in warning and bool(warning) is not enough
    if warning:
        assert "ivlens prompts --model ./model --task my_task" in warning and "find_prompts" in warning
    assert Ability.recorded({"ability": found.to_dict()}) == found and Ability.recorded({}) is None
    assert found.intervals["clean"] == wilson(round(100 * clean), 100) and ("bare" in found.intervals) == (
        bare is not None
    )


def test_one_warning_where_the_model_cannot(llama, caplog):
    found = measure_ability(llama, tiny_task(), PromptRecipe())
    assert found is not None and found.clean < 0.3
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "no vector can carry" in record.getMessage()


def test_what_cannot_be_asked_is_left_out(llama, caplog):
    few = Task("few", tiny_task().examples[:1], instructions=("Say it.",))
    assert measure_ability(llama, few, PromptRecipe()) is None or few.split("select", 0)
    fused = replace(tiny_task(), instructions=(), fused=True)
    assert measure_ability(llama, fused, PromptRecipe()).bare is None


def test_refused_inside_steer(new_model, byte_level):
    model = chained(new_model("llama", byte_level), {})
    effects = ivlens.head_effects(model, tiny_task(), n_prompts=2, options=ivlens.EffectOptions(n_check_prompts=0))
    iv = InstructionVector.from_effects(effects, 2, model=model)
    with pytest.raises(RuntimeError), steer(model, iv, layer=0):
        measure_ability(model, tiny_task(), PromptRecipe())


def test_wilson():
    low, high = wilson(0, 24)
    assert low == 0 and high == pytest.approx(0.138, abs=1e-3)
    assert wilson(24, 24)[0] == pytest.approx(1 - high) and wilson(12, 24) == pytest.approx((0.314, 0.686), abs=1e-3)
    with pytest.raises(ValueError, match="wilson got 3 of 2"):
        wilson(3, 2)
