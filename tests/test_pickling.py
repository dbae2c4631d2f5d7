"""Results go through a pickle, as `multiprocessing` and joblib send them, and come back as they were."""

import copy
import multiprocessing
import pickle
from dataclasses import fields, is_dataclass
from operator import attrgetter

import pandas as pd
import pytest
import torch
from conftest import tiny_task

import ivlens
from ivlens.analysis.attention import AblationOptions
from ivlens.effects import EffectOptions, head_effects
from ivlens.prompts import PromptRecipe, PromptTemplate, build_prompts
from ivlens.prompts.recipe import TASK
from ivlens.steering.evaluate import evaluate_intervention
from ivlens.steering.search import Grid
from ivlens.vectors import InstructionVector


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0)) and one.dtype == other.dtype
    if isinstance(one, pd.DataFrame):
        return one.equals(other)
    if is_dataclass(one):
        mine = (each.name for each in fields(one) if each.name != "model_ref")
        return type(one) is type(other) and all(same(getattr(one, name), getattr(other, name)) for name in mine)
    if isinstance(one, float) and one != one:
        return other != other
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.fixture(scope="module")
def results(llama):
    task = tiny_task()
    options = EffectOptions(n_check_prompts=4, contrast=True)
    effects = head_effects(llama, task, n_prompts=4, corruption="drop", options=options)
    iv = InstructionVector.from_effects(effects, k=2)
    grid = Grid(layers=(1,), alphas=(1.0,), sites=("resid_post",))
    judge = ivlens.JudgeOptions(other_vectors=())
    return {
        "effects": effects,
        "again": ivlens.measure_again(effects, task, heads=2),
        "vector": iv,
        "sum": iv + iv * 2,
        "task": task,
        "bank task": ivlens.load_task("antonym"),
        "recipe": PromptRecipe(n_shots=2, instruction=TASK),
        "template": PromptTemplate("mine"),
        "batch": build_prompts(llama.tokenizer, task, task.examples[:3]),
        "evaluation": evaluate_intervention(llama, task, iv, at=grid, n_prompts=4, n_draws=1, options=judge),
        "attention": ivlens.head_attention(llama, task, effects, n_prompts=2),
        "ablation": ivlens.ablate_heads(
            llama, task, iv, n_prompts=2, options=AblationOptions(n_draws=1, corruption="drop", n_mean_prompts=2)
        ),
        "comparison": ivlens.compare_heads(effects, effects, k=2),
        "identity": effects.model,
        "grid": grid,
        "interval": effects.interval(simultaneous=True),
        "suite": ivlens.load_suite("pocket"),
    }


NAMES = (
    "effects", "again", "vector", "sum", "task", "bank task", "recipe", "template", "batch", "evaluation", "identity",
    "grid", "interval", "suite",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("protocol", [0, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_gives_the_same_back(results, name, protocol):
    given = results[name]
    found = pickle.loads(pickle.dumps(given, protocol))
    assert same(given, found)
    assert name == "suite" or repr(found) == repr(given)  # a suite shows sets, in any order


def test_the_model_is_left_behind_and_copies_keep_it(results, llama):
    effects, iv = results["effects"], results["vector"]
    assert effects.live_model is llama
    assert pickle.loads(pickle.dumps(effects)).live_model is None
    assert pickle.loads(pickle.dumps(iv)).model_ref is None
    for copied in (copy.copy, copy.deepcopy):
        assert copied(effects).live_model is llama and copied(iv).model_ref() is llama
    there = pickle.loads(pickle.dumps(effects))
    assert same(InstructionVector.from_effects(there, k=2, model=llama), iv)
    assert pickle.loads(pickle.dumps(PromptRecipe())).instruction is TASK


def test_a_spawned_process_gets_and_returns_them(results):
    sent = [results["effects"], results["vector"], results["evaluation"]]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(copy.copy, sent)
        assert pool.map(attrgetter("task"), sent[:2]) == ["antonym", "antonym"]
    assert all(map(same, sent, found))
