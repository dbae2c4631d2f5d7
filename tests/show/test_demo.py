import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import WORDS, hf_model
from pickles import assert_no_pickle

import ivlens.show.demo.run as demo_module
from ivlens.common.files import write_whole
from ivlens.effects import HeadEffects
from ivlens.forward.borders import begins_with
from ivlens.forward.completions import complete, first_line
from ivlens.models import load_model
from ivlens.prompts.recipe import PromptRecipe
from ivlens.show.demo.plans import SHARED_WORDS, demo_grid, plan_for
from ivlens.show.demo.run import DemoOptions, DemoResult, run_demo
from ivlens.show.demo.writing import summary, write_demo
from ivlens.show.pages.demo import page
from ivlens.steering.evaluation import Evaluation
from ivlens.steering.summary import Setting
from ivlens.tasks import list_tasks, load_bank
from ivlens.vectors import InstructionVector


def task_file(folder: Path, name: str, shift: int) -> Path:
    """A table with an instruction: every word answered by the one `shift` places on."""
    rows = [
        {"instruction": f"Give the {name} of the word.", "input": word, "output": WORDS[(n + shift) % len(WORDS)]}
        for n, word in enumerate(WORDS)
    ]
    path = folder / f"{name}.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, byte_level) -> DemoOptions:
    folder = tmp_path_factory.mktemp("demo")
    hf_model("llama", n_ctx=256).save_pretrained(folder / "checkpoint")
    byte_level.save_pretrained(folder / "checkpoint")
    tasks = tuple(str(task_file(folder, name, shift)) for name, shift in (("next", 1), ("second", 2)))
    return DemoOptions(
        str(folder / "checkpoint"), tasks, n_prompts=2, k=3, n_draws=2, n_examples=2, recipe=PromptRecipe()
    )


@pytest.fixture(scope="module")
def result(options: DemoOptions) -> DemoResult:
    return run_demo(options)


def test_default_tasks_are_built_in_trained_and_share_their_inputs() -> None:
    bank = load_bank()
    assert set(SHARED_WORDS) <= set(list_tasks(in_training=True))
    assert {bank[name].inputs for name in SHARED_WORDS} == {"words"}


def test_the_plan_of_smollm2_asks_its_tasks_by_five_demonstrations() -> None:
    plan = plan_for("smollm2")
    assert set(plan.tasks) == set(plan.recipes) <= set(list_tasks()) and plan.n_draws == 19
    assert {(recipe.n_shots, recipe.instruction) for recipe in plan.recipes.values()} == {(5, None)}
    assert not plan_for("./smollm2").recipes and plan_for("another/model").tasks == SHARED_WORDS


def test_a_deep_model_is_tried_in_the_residual_stream(model, monkeypatch) -> None:
    assert len(demo_grid(model).sites) == 2
    monkeypatch.setattr(model.cfg, "n_layers", 30)
    assert demo_grid(model).sites == ("resid_post",)


def test_every_task_is_judged_beside_every_control(result: DemoResult) -> None:
    assert [task.name for task in result.tasks] == ["next", "second"]
    conditions = {"clean", "bare", "iv", "iv_heads", "random", "random_heads", "other_tasks", "constant"}
    for _, rows in result.conditions.groupby("task"):
        assert set(rows["condition"]) == conditions
    counts = result.conditions.set_index(["task", "condition"])["n_vectors"]
    assert counts["next", "random"] == 2 and counts["next", "other_tasks"] == 1
    table = result.table()
    assert list(table["task"]) == ["next", "second"] and conditions < set(table)
    assert table["layer"].between(0, 2).all() and not table["alpha"].isna().any()
    assert (result.sweep["alpha"] == 0).groupby(result.sweep["task"]).sum().tolist() == [1, 1]
    assert set(result.curves["condition"]) == {"iv", "random", "random_heads", "other_tasks"}
    settings = result.curves.groupby(["task", "condition", "vector"]).size()
    assert settings["next", "random"].tolist() == settings["next", "random_heads"].tolist() == [24, 24]
    own = result.curves.query("condition == 'iv'")
    assert own["accuracy"].tolist() == result.sweep["accuracy"].tolist()
    assert [iv.k for iv in result.vectors] == [3, 3]


def test_what_the_model_cannot_do_is_said_and_not_headlined(result: DemoResult) -> None:
    """With random weights it can do nothing; with one task that it can, the headline is about that one alone."""
    assert result.able == () and summary(result)["able"] == []
    own = without_plotly(page(result))
    assert "This model cannot do these tasks with these prompts" in own and "it takes the accuracy from" not in own
    assert "next (clean 0&nbsp;%, bare 0&nbsp;% of" in own and "ivlens prompts" in own
    able = {**result.effects[0].settings, "ability": {"clean": 0.9, "bare": 0.1, "n": 24}}
    half = replace(result, effects=(replace(result.effects[0], settings=able), result.effects[1]))
    assert half.able == ("next",)
    own = without_plotly(page(half))
    assert "it <b>changes nothing</b>" in own and "means over 1 of 2 tasks" in own and "second (clean 0&nbsp;%" in own
    assert own.count("the model cannot do this task with these prompts") == 1 and "Means over 1 tasks" in own


def test_examples_are_test_inputs_completed_both_ways(result: DemoResult) -> None:
    for task in result.tasks:
        rows = result.examples[result.examples["task"] == task.name]
        assert len(rows) == 2
        assert set(rows["input"]) <= {example.input for example in task.split("test")}
        for row in rows.to_dict("records"):
            assert "Instruction" not in row["prompt"] and row["input"] in row["prompt"]
            assert row["right_after"] == any(begins_with(row["after"], answer) for answer in row["answers"])


def test_an_example_is_wrong_where_its_answer_goes_on(result: DemoResult, options, monkeypatch) -> None:
    model, table = load_model(options.model), result.conditions.query("task == 'next'")
    row = table.set_index("condition").loc["iv"]
    judged = Evaluation(
        table, Setting(int(row["layer"]), float(row["alpha"]), str(row["site"])), {"recipe": PromptRecipe().to_dict()}
    )
    answers = {word: WORDS[(n + 1) % len(WORDS)] for n, word in enumerate(WORDS)}

    def completed(model, prompts, **_):
        complete(model, prompts, max_new_tokens=1)  # a context in which nothing runs says so
        ending = next(endings)
        return [f" {answers[prompt.split('Input: ')[1].split(chr(10))[0]]}{ending}\nInput" for prompt in prompts]

    monkeypatch.setattr(demo_module, "complete", completed)
    for ending, expected in (("", True), (" dog", True), (".", True), ("er", False), ("2", False)):
        endings = iter(["ish", ending])
        rows = demo_module._examples(model, result.tasks[0], result.vectors[0], judged, options)
        assert set(rows["right_before"]) == {False} and set(rows["right_after"]) == {expected}


def test_same_seed_same_result(options: DemoOptions, result: DemoResult) -> None:
    again = run_demo(options)
    pd.testing.assert_frame_equal(again.conditions, result.conditions)
    pd.testing.assert_frame_equal(again.examples, result.examples)


def test_files_are_complete_and_open_again(result: DemoResult, tmp_path: Path) -> None:
    written = write_demo(result, tmp_path / "out", also=lambda folder: (folder / "index.html").write_text("page"))
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in written)
    assert names == sorted(
        ["conditions.parquet", "curves.parquet", "effects.parquet", "examples.parquet", "index.html", "sweep.parquet"]
        + [f"{kind}/{task}.safetensors" for kind in ("effects", "vectors") for task in ("next", "second")]
    )
    found = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(found) == sorted(written)
    for name in ("conditions", "sweep", "curves", "examples"):
        read = pd.read_parquet(tmp_path / "out" / f"{name}.parquet")
        assert len(read) == len(getattr(result, name))
    assert len(pd.read_parquet(tmp_path / "out" / "effects.parquet")) == 2 * 3 * 4
    vector = InstructionVector.load(tmp_path / "out" / "vectors" / "next.safetensors")
    assert vector.cosine(result.vectors[0]) == pytest.approx(1.0)
    assert HeadEffects.load(tmp_path / "out" / "effects" / "next.safetensors").task == "next"


def test_interrupted_writing_leaves_the_last_result_alone(
    result: DemoResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_demo(result, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def interrupt(self: InstructionVector, path: Path) -> Path:
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(InstructionVector, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_demo(result, tmp_path)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before and not list(tmp_path.glob(".writing*"))


def test_interrupted_measuring_writes_nothing(
    options: DemoOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_module, "evaluate_intervention", interrupt)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_demo(options)
    assert not list(tmp_path.iterdir())


def test_write_whole_replaces_or_leaves(tmp_path: Path) -> None:
    target = write_whole(tmp_path / "new" / "a.txt", lambda path: path.write_text("one"))
    assert target.read_text() == "one"

    def half(path: Path) -> None:
        path.write_text("tw")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(target, half)
    assert target.read_text() == "one" and [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_one_task_and_repeated_tasks_are_refused(options: DemoOptions) -> None:
    for tasks in (options.tasks[:1], options.tasks[:1] * 2):
        with pytest.raises(ValueError, match="expected two or more with distinct names"):
            run_demo(replace(options, tasks=tasks))


def test_summary_is_plain(result: DemoResult) -> None:
    facts = json.loads(json.dumps(summary(result)))
    assert [row["task"] for row in facts["tasks"]] == ["next", "second"] and facts["model"]["n_layers"] == 3
    assert facts["options"]["recipe"] == PromptRecipe().to_dict()


# --- the page --------------------------------------------------------------------------------------------------------


def without_plotly(text: str) -> str:
    """The page but for plotly.js, the longest script in it."""
    scripts = sorted(re.findall(r"<script[^>]*>.*?</script>", text, flags=re.DOTALL), key=len)
    return text.replace(scripts[-1], "")


@pytest.fixture(scope="module")
def text(result: DemoResult) -> str:
    return page(result)


def test_page_loads_nothing_and_holds_plotly_once(text: str) -> None:
    assert len(re.findall(r"plotly\.js v\d", text)) == 1
    own = without_plotly(text)
    assert len(own) < len(text) / 5
    assert not re.search(r"https?://|<link|@import|url\(|\ssrc=", own)


def test_page_shows_every_part(result: DemoResult, text: str) -> None:
    own = without_plotly(text)
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', own, flags=re.DOTALL)[1])
    assert set(figures) == {"conditions", "similarity", "sweep-0", "sweep-1", "sweep-2", "heads-0", "heads-1"}
    assert all(set(themes) == {"light", "dark"} for themes in figures.values())
    places = set(re.findall(r'data-figure="([\w-]+)"', own))
    assert places == {"conditions", "similarity", "sweep-0", "heads-0", "heads-1"}
    assert set(re.findall(r'<option value="([\w-]+)"', own)) == {"sweep-0", "sweep-1", "sweep-2"}
    for row in result.examples.to_dict("records"):
        assert row["input"] in own
    for vector in result.vectors:
        assert " ".join(f"L{layer}H{head}" for layer, head in vector.heads) in own
    assert "best constant answer" in own and "$" not in re.sub(r"<script.*?</script>", "", own, flags=re.DOTALL)


def test_page_escapes_what_a_model_writes(result: DemoResult) -> None:
    bad = '</script><script>alert("1")</script>'
    examples = result.examples.assign(after=bad, before=bad, input=[f"{bad}{n}" for n in range(4)])
    decoded = {task: [(bad, 1.0)] for task in result.decoded}
    tasks = tuple(replace(task, name=f"{bad}{index}") for index, task in enumerate(result.tasks))
    names = {old.name: new.name for old, new in zip(result.tasks, tasks, strict=True)}
    renamed = {name: getattr(result, name).replace({"task": names}) for name in ("conditions", "sweep")}
    effects = tuple(replace(found, task=names[found.task]) for found in result.effects)
    text = page(replace(result, examples=examples, decoded=decoded, tasks=tasks, effects=effects, **renamed))
    assert "<script>alert" not in text
    own = without_plotly(text)
    assert len(re.findall(r"</script>", own)) == 2
    # inputs that the tasks do not share are listed one below the other
    assert "without a vector" in own


def test_the_built_in_model_is_taught_a_task_with_and_without_guidance(result: DemoResult, tmp_path: Path) -> None:
    from ivlens.models import load_model
    from ivlens.show.demo.tuning import EARLIER_TASKS, GUIDANCE, NEW_TASK, can_tune, run_tuning

    assert can_tune("pocket") and not can_tune("./checkpoint") and result.tuning is None
    bank = load_bank()
    assert not bank[NEW_TASK].in_training and all(bank[name].in_training for name in EARLIER_TASKS)
    tuning = run_tuning(load_model("pocket"), steps=5, recipe=PromptRecipe())
    assert tuning.scores["task"].tolist() == [NEW_TASK, *EARLIER_TASKS]
    assert tuning.scores["role"].tolist() == ["new", "watched", "watched", "watched"]
    assert tuning.curves[["guidance", "step"]].values.tolist() == [[name, 5] for name in GUIDANCE]
    whole = replace(result, tuning=tuning)
    own = without_plotly(page(whole))
    assert "Teaching it one more task" in own and 'data-figure="tuning"' in own and NEW_TASK in own
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', own, flags=re.DOTALL)[1])
    lines = figures["tuning"]["dark"]["data"]
    assert [line["name"] for line in lines] == ["plain LoRA", "earlier instructions rehearsed"]
    assert "Teaching it" not in without_plotly(page(result))
    write_demo(whole, tmp_path)
    assert len(pd.read_parquet(tmp_path / "tuning.parquet")) == 4
    assert len(pd.read_parquet(tmp_path / "tuning_curves.parquet")) == 2
    assert len(summary(whole)["tuning"]) == 4
    assert_no_pickle(tmp_path, "tuning.parquet", "tuning_curves.parquet")


# --- completions -----------------------------------------------------------------------------------------------------


def test_completion_in_a_batch_equals_one_alone(llama) -> None:
    prompts = ["Input: big\nOutput:", "Instruction: Give the light of the word.\nInput: New York\nOutput:", "dark"]
    together = complete(llama, prompts, max_new_tokens=5)
    assert together == [complete(llama, [prompt], max_new_tokens=5)[0] for prompt in prompts]
    assert all(together)


def test_completion_refuses_bad_input(llama) -> None:
    with pytest.raises(ValueError, match="no prompts"):
        complete(llama, [])
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        complete(llama, ["big", ""])
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        complete(llama, ["big"], max_new_tokens=0)
    with pytest.raises(ValueError, match="n_ctx"):
        complete(llama, ["big " * 200])


def test_first_line() -> None:
    assert first_line(" small\nInput: x") == "small"
    assert first_line("\n\n small ") == "small"
    assert first_line(" \n ") == ""
