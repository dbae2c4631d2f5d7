"""recipe="auto": what was found is remembered by everything it depends on, and a bad cache only costs time."""

import logging
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import tiny_task
from families import hf_model

from ivlens import find_prompts, head_effects, load_model, pocket_path
from ivlens.common.store.store import Store
from ivlens.forward import remembered
from ivlens.forward.finding import PromptSearch
from ivlens.forward.remembered import auto_recipe, recipe_for, remembered_search
from ivlens.models.fingerprint import is_built_in, model_identity
from ivlens.prompts import TASK, PromptRecipe

TINY = tiny_task()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IVLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Task and seed of every search that really happens, on few inputs."""
    done: list[tuple[str, int]] = []

    def counted(model, task, *, seed=0):
        done.append((task.name, seed))
        return find_prompts(model, task, shots=(0, 2), n_prompts=4, seed=seed)

    monkeypatch.setattr(remembered, "find_prompts", counted)
    return done


def test_what_was_found_is_remembered(llama, cache, searches):
    first, again = remembered_search(llama, TINY), remembered_search(llama, TINY)
    assert searches == [("antonym", 0)] and (first.remembered, again.remembered) == (False, True)
    pd.testing.assert_frame_equal(first.table, again.table)
    assert (again.recipes, again.task, again.model, again.best) == (first.recipes, first.task, first.model, first.best)
    assert str(again) == f"{first} (remembered)"
    (entry,) = Store(cache / "prompts").entries("prompts")
    assert entry.labels["task"] == "antonym" and not list((cache / "prompts").rglob("*.pkl"))


def test_another_model_task_seed_or_chat_is_another_search(llama, cache, searches, new_model, byte_level):
    remembered_search(llama, TINY)
    remembered_search(llama, TINY, 1)
    remembered_search(llama, tiny_task(shift=2))  # of the same name
    remembered_search(load_model(hf_model=hf_model("llama", seed=1), tokenizer=byte_level), TINY)
    assert searches == [("antonym", 0), ("antonym", 1), ("antonym", 0), ("antonym", 0)]
    remembered_search(new_model("llama", byte_level), TINY)  # the same weights
    assert len(searches) == 4


@pytest.mark.parametrize("what", ["table.parquet", "recipes.json", "manifest.json"])
def test_a_damaged_cache_is_made_again(llama, cache, searches, what, caplog):
    found = remembered_search(llama, TINY)
    (file,) = (cache / "prompts" / "entries").rglob(what)
    file.write_bytes(file.read_bytes()[:-20] + b"damaged")
    assert remembered_search(llama, TINY).recipes == found.recipes
    assert len(searches) == 2 and "set aside" in caplog.text
    assert remembered_search(llama, TINY).remembered


def test_what_is_whole_but_means_nothing_is_looked_for_again(llama, cache, searches, monkeypatch, caplog):
    what = remembered._search_key(llama, TINY, 0)
    monkeypatch.setattr(PromptRecipe, "to_dict", lambda self: {"template": "plain"})
    monkeypatch.setattr(remembered, "_search_key", lambda *given: what)
    remembered_search(llama, TINY)
    found = remembered_search(llama, TINY)
    assert not found.remembered and "cannot be read (a recipe lacks instruction" in caplog.text


def test_a_cache_that_cannot_be_written_does_not_stop_the_work(llama, cache, searches, monkeypatch, caplog):
    cache.write_text("a file in the way")
    assert not remembered_search(llama, TINY).remembered
    assert "cannot be remembered" in caplog.text
    cache.unlink()

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "put", full)
    caplog.clear()
    assert auto_recipe(llama, [TINY]).seed == 0
    assert "cannot be remembered: [Errno 28] No space left" in caplog.text and len(searches) == 2


def test_what_was_chosen_is_said_in_a_line(llama, cache, searches, caplog):
    caplog.set_level(logging.INFO, "ivlens")
    recipe = auto_recipe(llama, [TINY], seed=3)
    chosen, warning = [record for record in caplog.records if record.name == remembered.__name__]
    assert recipe.seed == 3 and "\n" not in chosen.getMessage() + warning.getMessage()
    assert (
        chosen.getMessage().startswith("prompts found for antonym: template ") and "best of 8 forms" in chosen.message
    )
    assert warning.levelname == "WARNING" and "no vector can carry" in warning.getMessage()
    caplog.clear()
    auto_recipe(llama, [TINY], seed=3)
    assert caplog.records[0].getMessage() == f"{chosen.getMessage()} (remembered)"


def row(template, n_shots, instruction, clean, n_tokens, *more):
    recipe = PromptRecipe(template, TASK if instruction == "task" else None, n_shots)
    values = {"template": template, "n_shots": n_shots, "instruction": instruction, "clean": clean, "bare": 0.0, "n": 8}
    return values | {"n_tokens": n_tokens}, (recipe, *more)


def test_several_tasks_get_the_form_that_is_best_on_average(llama, monkeypatch, caplog):
    after = PromptRecipe("after", None, 5)
    rows = {
        "antonym": [
            row("plain", 5, "none", 1.0, 50, after),
            row("plain", 0, "task", 0.6, 20),
            row("qa", 5, "none", 0.9, 50),
        ],
        "synonym": [row("plain", 0, "task", 0.8, 20), row("qa", 5, "none", 0.5, 50), row("after", 5, "none", 0.2, 50)],
    }

    def search(model, task, seed):
        table = pd.DataFrame([values for values, _ in rows[task.name]])
        return PromptSearch(table, tuple(recipes for _, recipes in rows[task.name]), task.name, model_identity(model))

    monkeypatch.setattr(remembered, "remembered_search", search)
    caplog.set_level(logging.INFO, "ivlens")
    tasks = [TINY, tiny_task("synonym", shift=2)]
    # 0.7 on average for both, and the one without demonstrations is cheaper; plain by 5 shots is in one search only
    assert auto_recipe(llama, tasks) == PromptRecipe("plain", TASK, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "prompts found for 2 tasks: template plain, the task's instruction, 0 demonstrations, seed 0: mean accuracy "
        "0.70, bare 0.00 on select inputs; 6 forms tried"
    ]
    rows["synonym"][2] = row("after", 5, "none", 0.9, 50)
    assert auto_recipe(llama, tasks) == after
    rows["synonym"] = [row("chat", 0, "task", 0.8, 20)]
    with pytest.raises(ValueError, match="no form suits all of the tasks antonym, synonym, expected one recipe"):
        auto_recipe(llama, tasks)


def test_head_effects_take_auto(llama, cache, searches):
    found = head_effects(llama, TINY, recipe="auto", n_prompts=2)
    assert searches == [("antonym", 0)] and found.recipe.alike(remembered_search(llama, TINY).best, TINY)
    assert recipe_for(llama, TINY, None) == PromptRecipe() and len(searches) == 1


def test_the_built_in_model_is_known_by_its_weights(llama):
    pocket = load_model("pocket")
    again = load_model(pocket_path())
    assert is_built_in(pocket) and is_built_in(again) and not is_built_in(llama)


def test_no_other_word_than_auto(llama):
    with pytest.raises(TypeError):
        recipe_for(llama, replace(TINY), "best")
