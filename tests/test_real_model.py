"""What ivlens does on a real language model: `make real-test`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import real
import torch
from browser import chromium, running
from show.test_lab_browser import Tab

import ivlens
from ivlens.forward.borders import begins_with
from ivlens.forward.completions import complete, first_line
from ivlens.forward.forms import tried_examples
from ivlens.forward.remembered import auto_recipe

pytestmark = pytest.mark.real

TEN_SHOTS = ivlens.PromptRecipe("plain", instruction=None, n_shots=10)
GRID = ivlens.Grid(layers=range(6, 20, 2), alphas=(1.0, 2.0, 4.0), sites=("resid_post",), n_screen=8, n_finalists=4)


@pytest.fixture(scope="module", autouse=True)
def two_threads() -> Iterator[None]:
    """All cores: these passes are large enough for that, and run alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def third_person() -> ivlens.Task:
    return ivlens.load_task("third_person")


@pytest.fixture(scope="module")
def effects(smollm2, third_person) -> ivlens.HeadEffects:
    options = ivlens.EffectOptions(n_mean_prompts=32)
    return ivlens.head_effects(smollm2, third_person, recipe=TEN_SHOTS, n_prompts=16, options=options)


@pytest.fixture(scope="module")
def iv(effects) -> ivlens.InstructionVector:
    return ivlens.InstructionVector.from_effects(effects, k=10)


def test_exact_effects_are_those_of_hooked_passes(smollm2, third_person) -> None:
    """Forty heads, five of each of eight layers."""
    some = {"layers": range(1, 30, 4), "heads": range(0, 9, 2)}
    recipe = ivlens.PromptRecipe("plain", instruction=None, n_shots=5)
    quick = {"n_mean_prompts": 4, "n_check_prompts": 0}
    exact, hooked = (
        ivlens.head_effects(
            smollm2, third_person, recipe=recipe, n_prompts=2,
            options=ivlens.EffectOptions(method=method, **some, **quick),
        )
        for method in ("exact", "reference")
    )  # fmt: skip
    measured = ~hooked.cie[0].isnan()
    assert exact.method == "exact" and int(measured.sum()) == 40
    assert (exact.cie - hooked.cie)[:, measured].abs().max() < 1e-5 < hooked.cie[:, measured].abs().max()


def test_the_head_that_is_known_is_among_the_strongest(effects) -> None:
    assert (20, 5) in effects.top_heads(3)
    assert effects.clean_accuracy > 0.8 and effects.bare_accuracy < 0.1


def test_the_vector_does_it_and_its_controls_do_not(smollm2, third_person, iv, effects) -> None:
    found = ivlens.evaluate_intervention(
        smollm2, third_person, iv, at=GRID, n_prompts=40, n_draws=4,
        options=ivlens.JudgeOptions(means=effects, other_vectors=()),
    )  # fmt: skip
    assert found.recipe.n_shots == 10 and found.recipe.instruction is None
    assert found.accuracy("bare") <= 0.05
    assert found.accuracy("iv") >= 0.6
    assert found.accuracy("random") <= 0.1 and found.accuracy("random_heads") <= 0.15


def test_a_trained_vector_does_what_demonstrations_do(smollm2) -> None:
    """Doubling a word, from which the vector of strong heads is far away."""
    task, recipe = ivlens.load_task("double"), ivlens.PromptRecipe(instruction=None, n_shots=5)
    options = ivlens.TrainedOptions(layers=(20,), norms=(2.0,), steps=40, n_select=24)
    found = ivlens.train_vector(smollm2, task, recipe=recipe, options=options)
    judged = ivlens.evaluate_intervention(
        smollm2, task, found.vector, at=found.setting, n_prompts=24, n_draws=2,
        options=ivlens.JudgeOptions(other_vectors=()),
    )  # fmt: skip
    assert judged.recipe.n_shots == 5 and judged.recipe.instruction is None
    assert judged.accuracy() >= 0.8 and judged.accuracy("bare") == judged.accuracy("random") == 0.0


def test_demonstrations_are_preferred_for_the_past_tense(smollm2) -> None:
    search = ivlens.find_prompts(smollm2, ivlens.load_task("present_past"), templates=["plain", "chat"], n_prompts=16)
    assert search.best.n_shots and search.best.instruction is None and not search.warning
    assert search.ability.clean >= 0.7 and search.ability.bare <= 0.1


@pytest.mark.parametrize("name", ["comparative", "antonym"])
def test_forms_are_ranked_as_a_plain_count_ranks_them(smollm2, name) -> None:
    """Texts are written by `generate` and compared with the answers by hand: the best form is the same.

    Of twelve answers one may count by hand alone: the right word, spelled in other tokens than the tokenizer's own.
    """
    task = ivlens.load_task(name)
    search = ivlens.find_prompts(smollm2, task, templates=["plain", "qa"], shots=(0, 5), n_prompts=12)
    tried, gains = tried_examples(smollm2, task, 12, 0), []
    for row, (recipe, *_) in zip(search.table.to_dict("records"), search.recipes, strict=True):
        counts = {}
        for kind, corruption in (("clean", None), ("bare", "drop")):
            batch = ivlens.build_prompts(smollm2.tokenizer, task, tried[: row["n"]], recipe, corruption=corruption)
            # what comes after an empty line is no answer
            answers = [text.partition("\n")[0] for text in complete(smollm2, batch.texts, max_new_tokens=8)]
            counts[kind] = sum(
                any(begins_with(answer, wanted) for wanted in example.answers)
                for answer, example in zip(answers, batch.examples, strict=True)
            )
            assert counts[kind] - round(row[kind] * row["n"]) in (0, 1)
        gains.append((counts["clean"] - counts["bare"]) / row["n"])
    assert gains[0] >= max(gains) - 1 / 12, "the best form stands first"


def test_a_saved_vector_is_judged_by_its_recipe_in_a_new_process(iv, tmp_path: Path) -> None:
    file = iv.save(tmp_path / "third.safetensors")
    script = (
        "import json, sys, ivlens\n"
        "model, task = ivlens.load_model('smollm2'), ivlens.load_task('third_person')\n"
        "iv = ivlens.InstructionVector.load(sys.argv[1], model)\n"
        "found = ivlens.evaluate_intervention(model, task, iv, at=ivlens.Setting(14, 2.0, 'resid_post'), n_prompts=9,\n"
        "    n_draws=0, options=ivlens.JudgeOptions(other_vectors=()))\n"
        "print(json.dumps([found.recipe.to_dict(), found.accuracy('clean'), found.accuracy()]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True)
    recipe, clean, steered = json.loads(done.stdout.splitlines()[-1])
    assert recipe == TEN_SHOTS.to_dict()
    assert clean >= 0.8 and steered >= 0.4


def test_auto_warns_where_no_form_is_answered(smollm2, caplog) -> None:
    with caplog.at_level("INFO", logger="ivlens.forward.remembered"):
        recipe = auto_recipe(smollm2, [ivlens.load_task("english_french")])
    lines = [record.getMessage() for record in caplog.records if record.name == "ivlens.forward.remembered"]
    assert isinstance(recipe, ivlens.PromptRecipe)
    assert "forms" in lines[0] and "no vector can carry" in lines[1]


class PatientTab(Tab):
    """A page that measures a real model first."""

    patience = 300_000


def test_the_lab_answers_with_a_few_shot_vector() -> None:
    path = chromium()
    from playwright.sync_api import sync_playwright

    real.smollm2()
    options = ("--model", "smollm2", "--task", "present_past", "--template", "qa", "--n-shots", "5")
    options += ("--instruction", "none", "--text", "ask", "--n-prompts", "12", "--n-search", "8", "--no-browser")
    with sync_playwright() as play, running("ivlens", "lab", *options) as address:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        tab = PatientTab(browser.new_page(), address)
        patched, plain = tab.text("patched"), tab.text("plain")
        browser.close()
    assert first_line(patched).startswith("asked") and not first_line(plain).startswith("asked")
    assert not tab.foreign
