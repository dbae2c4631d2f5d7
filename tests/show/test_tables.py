"""What notebooks show of a result, and the figures that results draw of themselves."""

import re
from dataclasses import replace

import numpy as np
import pytest
from browser import chromium

import ivlens
from ivlens.prompts.recipe import PromptRecipe
from ivlens.show.figures.conditions import LOOKS, condition_plot
from ivlens.show.figures.theme import DARK
from ivlens.show.figures.vectors import head_shares
from ivlens.steering.evaluate import JudgeOptions
from ivlens.steering.search import Grid
from ivlens.tasks.task import Task, TaskExample
from ivlens.vectors.vector import InstructionVector

BAD = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def pocket():
    return ivlens.load_model("pocket")


@pytest.fixture(scope="module")
def effects(pocket):
    recipe = PromptRecipe(instruction=f"Give the opposite. {BAD}")
    return ivlens.head_effects(pocket, ivlens.load_task("antonym"), recipe=recipe, n_prompts=8)


@pytest.fixture(scope="module")
def vector(effects):
    return InstructionVector.from_effects(effects, 4)


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_effects_show_their_strongest_heads(effects):
    shown = effects._repr_html_()
    assert shown.count("<tr>") == 1 + 10 + 5 and "<script>" not in shown
    first = effects.to_frame().iloc[0]
    assert f"{first['label']} {first['aie']:+.4g} {first['low']:+.4g} to {first['high']:+.4g}" in text_of(shown)
    assert "own instruction, 0 demonstrations" in shown and "8 corrupted" in shown and "score" in shown
    assert "clean accuracy" in shown and "% of the clean score" in shown
    said = [text for text in effects.warnings if "no vector can carry" in text]
    assert said and text_of(shown).index("Warning: antonym: clean accuracy") < text_of(shown).index("head AIE")
    figure = effects.plot(top=3)
    assert np.allclose(figure.data[0].z, effects.aie)
    (ranks,) = [trace for trace in figure.data if trace.type == "scatter" and trace.mode == "text"]
    assert list(ranks.text) == ["1", "2", "3"]


def test_a_vector_shows_heads_norm_recipe_and_model(effects, vector, pocket):
    shown = text_of(vector._repr_html_())
    assert " ".join(f"L{layer}H{head}" for layer, head in vector.heads) in shown
    assert f"{vector.norm:.4g}" in shown and "own instruction" in shown and "pocket" in shown
    assert "of several recipes" in text_of((vector - 2 * vector).random_like(0)._repr_html_()) or vector.recipe
    computed = replace(vector.random_like(0), task=BAD, settings={})._repr_html_()
    assert "none: trained or computed" in computed and "not recorded" in computed and BAD not in computed


def test_a_vector_draws_the_shares_of_its_heads_without_a_model(effects, vector, tmp_path):
    loaded = InstructionVector.load(vector.save(tmp_path / "v.safetensors"))
    (bars,) = loaded.plot().data
    assert list(bars.y) == [f"L{layer}H{head}" for layer, head in vector.heads]
    assert sum(bars.x) == pytest.approx(1.0) and "share" in loaded.plot().layout.xaxis.title.text
    # by hand: the share of the strongest head is what is missing along the vector without it
    rest = InstructionVector.from_effects(effects, heads=vector.heads[1:])
    along = float(rest.theta @ vector.theta) / vector.norm**2
    assert bars.x[0] == pytest.approx(1 - along, abs=1e-5)
    assert (0.5 * loaded).plot().data[0].x == bars.x
    old = replace(loaded, settings={name: value for name, value in loaded.settings.items() if name != "shares"})
    figure = head_shares(old, theme=DARK)
    assert list(figure.data[0].x) == pytest.approx(loaded.head_means.norm(dim=1).tolist())
    assert "norm" in figure.layout.xaxis.title.text
    with pytest.raises(ValueError, match="has no heads to draw"):
        (vector - vector).plot()


def test_a_task_shows_counts_examples_and_instructions():
    task = Task(f"odd {BAD}", (TaskExample("a & b", ("x", BAD)),) * 1, instructions=tuple("abcde"), source="s.json")
    shown = task._repr_html_()
    assert BAD not in shown and "a &amp; b" in shown and "and 2 more" in shown and "s.json" in shown
    known = text_of(ivlens.load_task("antonym")._repr_html_())
    assert "examples 216" in known and all(each.input in known for each in ivlens.load_task("antonym").examples[:3])
    assert "skipped" not in known
    assert "…" in replace(task, name="x" * 1000)._repr_html_()


def test_an_evaluation_draws_its_conditions(pocket, effects, vector):
    evaluation = ivlens.evaluate_intervention(
        pocket, ivlens.load_task("antonym"), vector, at=Grid(layers=(1, 2), alphas=(2.0,)), n_prompts=6, n_draws=2,
        options=JudgeOptions(other_vectors=(), means=effects),
    )  # fmt: skip
    figure = evaluation.plot()
    drawn = {trace.name: trace.x[0] for trace in figure.data}
    shown = [name for name in LOOKS if name in set(evaluation.table["condition"]) and name != "other_tasks"]
    assert {LOOKS[name].label: evaluation.accuracy(name) for name in shown}.items() <= drawn.items()
    assert "antonym" in figure.layout.title.text and {"bare", "clean", "iv"} <= set(shown)
    assert "<table" in evaluation._repr_html_()
    # a table that was kept before the condition was renamed
    older = evaluation.table.replace({"condition": {"bare": "baseline"}}).assign(task="antonym")
    assert condition_plot(older).to_json() == figure.to_json()


LONG = "word " * 60 + "x" * 300


@pytest.fixture(scope="module")
def tables(pocket, effects, vector) -> dict[str, str]:
    """The table of every result that has one, with names and texts that are far too long."""
    task = ivlens.load_task("antonym")
    named = replace(task, name=LONG, instructions=(LONG,), examples=(TaskExample(LONG, (LONG,)), *task.examples))
    grid = Grid(layers=(1,), alphas=(2.0,), sites="attn_out", n_screen=2, n_finalists=0)
    judge = JudgeOptions(means=effects, other_vectors=())
    evaluation = ivlens.evaluate_intervention(pocket, task, vector, at=grid, n_prompts=3, n_draws=1, options=judge)
    looked = ivlens.head_attention(pocket, task, recipe=PromptRecipe(n_shots=3), n_prompts=2)
    shown = {
        "effects": replace(effects, task=LONG), "vector": replace(vector, task=LONG), "task": named,
        "evaluation": evaluation, "attention": replace(looked, task=LONG), "recipe": PromptRecipe(instruction=LONG),
        "compared": ivlens.compare_heads(effects, effects, k=3),
        "found": ivlens.find_prompts(pocket, task, templates=["plain"], shots=(0,), n_prompts=2),
    }  # fmt: skip
    return {name: each._repr_html_() for name, each in shown.items()}


def test_long_texts_are_cut_and_stand_in_a_title(tables):
    for name in ("task", "recipe", "vector"):
        assert "…" in tables[name] and max(len(text) for text in re.findall(r">([^<]*)<", tables[name])) <= 120, name
    assert f'title="{LONG[:200]}' in tables["task"] and f'title="{LONG[:200]}' in tables["recipe"]
    assert "x" * 2001 not in "".join(tables.values())


def test_tables_fit_a_cell_of_800_pixels(tables, tmp_path):
    """As JupyterLab styles them, in a real browser."""
    from playwright.sync_api import sync_playwright

    style = "table{table-layout:fixed;border-collapse:collapse;font-size:12px}td,th{padding:.5em;text-align:right}"
    cells = "".join(f'<div class="cell" id="{name}">{html}</div>' for name, html in tables.items())
    page = f"<style>.cell{{width:700px;font-family:sans-serif}}{style}</style>{cells}"
    (tmp_path / "cells.html").write_text(f"<!doctype html><meta charset=utf-8>{page}", encoding="utf-8")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 800, "height": 600})
        shown.goto((tmp_path / "cells.html").as_uri())
        wide = shown.locator(".cell").evaluate_all("nodes => nodes.map(node => [node.id, node.scrollWidth])")
        assert shown.evaluate("document.documentElement.scrollWidth") <= 800
        browser.close()
    assert len(wide) == len(tables) and not [name for name, width in wide if width > 700]
