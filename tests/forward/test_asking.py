"""Prompts that outgrow a model's context, refused with the number of demonstrations that fits."""

import re

import pytest
from conftest import tiny_task

from ivlens import PromptRecipe, head_effects
from ivlens.forward.asking import most_shots, prompts_for
from ivlens.prompts import build_prompts
from ivlens.steering.prompt_sets import PromptSets
from ivlens.tuning.exams import make_exam
from ivlens.tuning.training.data import training_set

TASK = tiny_task()
LONG = PromptRecipe(instruction=None, n_shots=8)


@pytest.fixture(scope="module")
def short(new_model, byte_level):
    """A model with room for some demonstrations, not for eight."""
    return new_model("llama", byte_level, n_layers=1, n_ctx=64)


def longest(model, n_shots):
    batch = build_prompts(model.tokenizer, TASK, TASK.examples, PromptRecipe(instruction=None, n_shots=n_shots))
    answer = max(len(answer) for answers in batch.alternatives for answer in answers)
    return int(batch.attention_mask.sum(1).max()) + answer - 1


def test_the_largest_number_that_fits_is_the_largest(short):
    most = most_shots(short, TASK, TASK.examples, LONG)
    assert 0 < most < 8 and longest(short, most) <= 64 < longest(short, most + 1)
    message = f"expected at most 64 together .* n_shots is 8, and at most n_shots = {most} fits; ask for that"
    with pytest.raises(ValueError, match=message):
        prompts_for(short, TASK, TASK.examples, LONG)
    assert len(prompts_for(short, TASK, TASK.examples, PromptRecipe(instruction=None, n_shots=most))) == len(TASK)


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: head_effects(model, TASK, recipe=LONG),
        lambda model: PromptSets(model, TASK, LONG).batch("test", corrupted=False),
        lambda model: training_set(model, TASK, TASK.split("fit"), recipe=LONG),
        lambda model: make_exam(model, [(TASK, TASK.examples)], recipe=LONG),
    ],
    ids=["effects", "judgement", "training", "exam"],
)
def test_whoever_asks_says_so(short, ask):
    with pytest.raises(ValueError, match=r"prompt \d+ has \d+ tokens .* n_shots is 8, and at most n_shots = \d fits"):
        ask(short)


def test_what_does_not_fit_at_all(new_model, byte_level):
    tiny = new_model("llama", byte_level, n_layers=1, n_ctx=4)
    with pytest.raises(ValueError, match="does not fit without demonstrations either; use another model"):
        prompts_for(tiny, TASK, TASK.examples, LONG)
    with pytest.raises(ValueError, match=re.escape("(the model's n_ctx); use shorter inputs, or another model.")):
        prompts_for(tiny, TASK, TASK.examples, PromptRecipe())
