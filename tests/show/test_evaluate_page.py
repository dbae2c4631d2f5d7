"""The page of `ivlens evaluate`: what it says agrees with the tables, it loads nothing, and it fits a phone."""

import json
import re
from dataclasses import replace

import pytest
from browser import chromium

from ivlens import Grid, MoreRows, load_model, load_task
from ivlens.runs.evaluation import EvaluateOptions, TaskEvaluations, evaluate_tasks
from ivlens.show.figures.theme import LIGHT
from ivlens.show.pages.evaluate import evaluation_figures, page, write_page

OPTIONS = EvaluateOptions(
    k=4,
    n_prompts=3,
    n_judge_prompts=6,
    n_draws=2,
    grid=Grid(layers=(1,), alphas=(1.0, 2.0), sites=("resid_post",)),
    more=MoreRows(("necessity", "by_k", "distributed"), n_draws=1, ks=(1, 4), n_mean_prompts=3, head_alphas=(1.0,)),
)
BAD = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def result() -> TaskEvaluations:
    model = load_model("pocket")
    return evaluate_tasks(model, [load_task("antonym"), load_task("synonym")], OPTIONS)


@pytest.fixture(scope="module")
def text(result: TaskEvaluations) -> str:
    return page(result)


def own(text: str) -> str:
    """The page but for plotly.js, the longest script in it."""
    scripts = sorted(re.findall(r"<script[^>]*>.*?</script>", text, flags=re.DOTALL), key=len)
    return text.replace(scripts[-1], "") if scripts else text


def words(text: str) -> str:
    """What a reader sees of the page, in one line."""
    html = re.sub(r"<(script|style).*?</\1>", "", own(text), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", html).replace("&nbsp;", " ").split())


def section(text: str, number: int) -> str:
    found = re.search(rf'<section id="task-{number}">(.*?)</section>', text, flags=re.DOTALL)
    assert found is not None
    return found[1]


def test_it_loads_nothing_from_elsewhere(text: str) -> None:
    assert not re.search(r"https?://|<link|@import|url\(|\ssrc=", own(text))
    assert len(re.findall(r"plotly\.js v\d", text)) == 1 and "$" not in words(text)


def test_every_figure_has_its_place(result: TaskEvaluations, text: str) -> None:
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', own(text), flags=re.DOTALL)[1])
    assert sorted(re.findall(r'data-figure="([\w-]+)"', own(text))) == sorted(figures)
    kinds = {"conditions", "heads", "settings", "necessity", "by_k", "vectors"}
    of_tasks = {f"{kind}-{number}" for kind in kinds for number in range(2)}
    assert set(figures) == {"conditions", "matrix", "similarity"} | of_tasks
    assert all(set(themes) == {"light", "dark"} for themes in figures.values())
    assert set(re.findall(r'data-figure="([\w-]+)"', section(text, 1))) == {f"{kind}-1" for kind in kinds}


def test_headlines_are_those_of_the_table(result: TaskEvaluations, text: str) -> None:
    for number, task in enumerate(("antonym", "synonym")):
        rows = result.table[result.table["task"] == task].set_index(["condition", "variant"])
        said = words(section(text, number))
        iv, bare, clean = (rows.loc[(name, "")] for name in ("iv", "bare", "clean"))
        interval = f"{iv['accuracy']:.2f} ({iv['accuracy_lo']:.2f} to {iv['accuracy_hi']:.2f})"
        assert f"after block 1 with strength {iv['alpha']:g}, the vector of 4 heads takes accuracy from" in said
        assert f"{bare['accuracy']:.2f} ({bare['accuracy_lo']:.2f} to {bare['accuracy_hi']:.2f}) to {interval}" in said
        assert f"clean prompts reach {clean['accuracy']:.2f}" in said
        drawn = rows.loc[[(name, "") for name in ("random", "random_heads", "other_tasks")]]
        best = drawn.loc[drawn["accuracy"].idxmax()]
        assert f"{best['accuracy']:.2f} ({best['accuracy_lo']:.2f} to {best['accuracy_hi']:.2f})" in said
        lost = rows.loc[("necessity", "other_tasks")]
        assert (
            f"the model loses {lost['lost']:.2f} ({lost['lost_lo']:.2f} to {lost['lost_hi']:.2f}) of accuracy" in said
        )
    mean = result.table[result.table["condition"] == "iv"]["accuracy"].mean()
    assert "the mean of 2 tasks, from" in words(text) and f"to {mean:.2f} ; prompts that tell the task" in words(text)


def test_it_shows_what_was_asked(result: TaskEvaluations, text: str) -> None:
    for number, shown in enumerate(result.shown):
        clean, bare = re.findall(r"<pre><code>(.*?)</code></pre>", section(text, number), flags=re.DOTALL)
        assert (clean, bare) == (shown.clean.replace("'", "&#x27;"), shown.bare.replace("'", "&#x27;"))
        assert f"Accepted: {shown.answers[0]}" in section(text, number)
    said = words(text)
    assert "template plain, the task's instruction, 0 demonstrations, seed 0" in said.replace("&#x27;", "'")
    assert "no evidence about other models" in said and "corrected for 2 tasks (Holm)" in said
    assert "necessity, by k, distributed; 1 draws of each control" in said


def test_every_row_is_in_a_table(result: TaskEvaluations, text: str) -> None:
    for title in ("The vector and its controls", "Are the heads needed?", "Other numbers of heads", "Other ways"):
        assert own(text).count(f"<h3>{title}") == (4 if title == "Other ways" else 2), title
    assert section(text, 0).count("<tr><td") == 8 + 9 + 2 + 5 + OPTIONS.k


def test_what_a_task_says_is_escaped(result: TaskEvaluations) -> None:
    tasks = (replace(result.tasks[0], name=f"a{BAD}"), result.tasks[1])
    shown = (result.shown[0]._replace(clean=BAD, answers=(BAD,)), result.shown[1])
    effects = (replace(result.effects[0], task=BAD), result.effects[1])
    found = page(replace(result, tasks=tasks, shown=shown, effects=effects))
    assert BAD not in own(found) and own(found).count("&lt;script&gt;") > 3


def test_one_task_without_further_rows(result: TaskEvaluations) -> None:
    alone = {name: getattr(result, name)[:1] for name in ("tasks", "effects", "vectors", "settings", "shown")}
    first = result.evaluations[0]
    table = first.table[first.table["variant"] == ""]
    made = replace(first, table=table, judged=tuple(one for one in first.judged if not one.variant))
    one = replace(result, **alone, evaluations=(made,), options=replace(OPTIONS, more=None))
    found = page(one)
    assert set(evaluation_figures(one, LIGHT)) == {"conditions-0", "heads-0", "settings-0"}
    assert "All tasks" not in found and "Holm" not in words(found) and "the model loses" not in words(found)
    assert "of antonym , from" in words(found)


def test_a_model_that_cannot_do_the_tasks_is_not_headlined(result: TaskEvaluations) -> None:
    unable = {"ability": {"clean": 0.1, "bare": 0.05, "n": 24}}
    effects = [replace(one, settings={**one.settings, **unable}) for one in result.effects]
    assert "This model cannot do these tasks with these prompts" in words(page(replace(result, effects=tuple(effects))))
    half = words(page(replace(result, effects=(effects[0], result.effects[1]))))
    assert "of synonym , from" in half and "The model cannot do 1 of the tasks with these prompts" in half
    assert "no vector can carry what the model does not do" in half


@pytest.mark.parametrize("scheme, width", [("light", 1200), ("dark", 420)])
def test_it_draws_in_a_browser_and_fits_the_screen(result: TaskEvaluations, tmp_path, scheme: str, width: int) -> None:
    browser = chromium()
    from playwright.sync_api import sync_playwright

    path, wrong = write_page(result, tmp_path / "index.html"), []
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = opened.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith("file:") else None)
        tab.goto(path.as_uri())
        tab.locator("details").first.click()
        drawn, places = tab.locator(".plot .main-svg").count(), tab.locator(".plot").count()
        wide = tab.evaluate("document.documentElement.scrollWidth")
        opened.close()
    assert wrong == [] and wide <= width
    assert places == 15 and drawn >= places
