"""Evaluations of several tasks in miniature: their parts, how they are kept, and what is written."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from ivlens import (
    Grid,
    HeadEffects,
    InstructionVector,
    JudgeOptions,
    MoreRows,
    PromptRecipe,
    Task,
    evaluate_intervention,
    load_model,
    load_task,
)
from ivlens.common.store import Store, verify
from ivlens.runs.evaluation import EvaluateOptions, TaskEvaluations, evaluate_tasks, keeping, running
from ivlens.steering.making_rows import MAKERS

ROWS = ("necessity", "by_k", "side_effects")
TINY = EvaluateOptions(
    k=4,
    n_prompts=3,
    n_judge_prompts=4,
    n_draws=2,
    grid=Grid(layers=(1,), alphas=(1.0, 2.0), sites=("resid_post",)),
    more=MoreRows(ROWS, n_draws=1, ks=(1,), n_mean_prompts=3),
)
NAMES = ("antonym", "synonym")


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return [load_task(name) for name in NAMES]


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def result(pocket, tasks, said) -> TaskEvaluations:
    return evaluate_tasks(pocket, tasks, TINY, say=said.append)


def test_a_line_says_which_part_begins(result, said):
    assert len(said) == 2 * (3 + 2) == len(set(said))
    assert said[0] == "1 of 10: antonym: effects of all heads" and said[1].endswith("synonym: effects of all heads")
    assert said[3] == "4 of 10: antonym: the vector and its controls"
    assert said[-1] == "10 of 10: synonym: other numbers of heads"


def test_a_judgement_in_parts_is_the_judgement(pocket, tasks, result):
    more = replace(TINY.more, others=(result.effects[1],))
    judge = JudgeOptions(other_vectors=[result.vectors[1]], means=result.effects[0], more=more)
    whole = evaluate_intervention(
        pocket, tasks[0], result.vectors[0], at=TINY.grid, n_prompts=4, n_draws=2, options=judge
    )
    pd.testing.assert_frame_equal(whole.table, result.evaluations[0].table)
    assert whole.settings == result.evaluations[0].settings


def test_tables_are_about_all_tasks(result):
    assert list(dict.fromkeys(result.table["task"])) == list(NAMES)
    drawn = result.table[result.table["condition"] == "random"]
    assert (drawn["p_holm"] >= drawn["p"]).all() and drawn["p_holm"].notna().all()
    assert [one["task"] for one in result.table.attrs["tasks"]] == list(NAMES)
    assert set(result.heads["task"]) == set(NAMES) and len(result.heads) == 2 * 48
    assert result.heads["aie_again"].notna().sum() == 2 * TINY.k
    assert set(result.by_setting["alpha"]) == {0.0, 1.0, 2.0}
    assert {"task", "vector"} <= set(result.by_vector) and len(result.by_vector) > len(result.table)


def test_the_matrix_has_every_vector_on_every_task(result):
    cells = result.matrix.set_index(["task", "vector"])["accuracy"]
    assert set(cells.index) == {(task, vector) for task in NAMES for vector in NAMES}
    for number, task in enumerate(NAMES):
        other = NAMES[1 - number]
        assert cells[task, task] == result.evaluations[number].accuracy("iv")
        assert cells[task, other] == result.evaluations[number].accuracy("other_tasks")


def test_the_prompts_that_are_shown_are_judged_ones(tasks, result):
    for task, shown in zip(tasks, result.shown, strict=True):
        asked = shown.bare.partition("Input: ")[2].partition("\n")[0]
        assert asked in {example.input for example in task.split("test")}
        assert asked in shown.clean and "Instruction" in shown.clean and "Instruction" not in shown.bare
        assert shown.answers == task.find(asked).answers


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts that are made from now on, by the functions that make them."""
    made = []
    for name in ("head_effects", "sweep_settings"):
        function = getattr(running, name)
        monkeypatch.setattr(running, name, lambda *a, f=function, n=name, **k: made.append(n) or f(*a, **k))
    for name, maker in list(MAKERS.items()):
        monkeypatch.setitem(MAKERS, name, lambda asked, f=maker, n=name: made.append(n) or f(asked))
    return made


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "store" not in path.parts}


def test_an_interrupted_evaluation_goes_on_to_the_same_bytes(pocket, tasks, result, tmp_path, monkeypatch):
    result.write(tmp_path / "whole")
    made = counted(monkeypatch)

    def interrupt(text):
        if text.startswith("6 of 10"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_tasks(pocket, tasks, TINY, folder=tmp_path, say=interrupt)
    assert made == ["head_effects"] * 2 + ["sweep_settings"] * 2 + ["necessity"]
    made.clear()
    lines = []
    found = evaluate_tasks(pocket, tasks, TINY, folder=tmp_path, say=lines.append)
    assert made == ["by_k", *["sweep_settings"] * 2, "necessity", "by_k"]
    assert [line.endswith(" (kept)") for line in lines] == [True] * 5 + [False] * 5
    found.write(tmp_path / "parts")
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    made.clear()
    # other rows find the controls that are there, and other draws of further rows do not replace those
    fewer = replace(TINY, more=replace(TINY.more, rows=("necessity", "side_effects")))
    some = evaluate_tasks(pocket, tasks, fewer, folder=tmp_path)
    assert made == []
    expected = result.table[~result.table["condition"].str.startswith("by_k")].reset_index(drop=True)
    pd.testing.assert_frame_equal(some.table, expected, check_flags=False)
    evaluate_tasks(pocket, tasks, replace(fewer, more=replace(fewer.more, n_draws=2)), folder=tmp_path)
    assert made == ["necessity"] * 2
    whole, findings = verify(Store(tmp_path / "store"))
    assert whole == 2 * (3 + 2) + 2 and not findings


def test_what_a_part_depends_on_is_in_its_key(pocket, tasks, tmp_path, monkeypatch):
    """Effects alone, as they are the first part: other numbers, recipes and tasks have others."""
    made = counted(monkeypatch)

    def begun(options, *which):
        def stop(text):
            if not text.endswith("effects of all heads") and not text.endswith("(kept)"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluate_tasks(pocket, which or tasks[:1], options, folder=tmp_path, say=stop)
        return len(made)

    plain = replace(TINY, more=None)
    assert begun(plain) == 1 and begun(plain) == 1
    assert begun(replace(plain, n_prompts=2)) == 2 and begun(replace(plain, k=3)) == 3
    assert begun(replace(plain, recipe=PromptRecipe(seed=1))) == 4
    assert begun(plain, replace(tasks[0], examples=tasks[0].examples[:-1])) == 5
    assert begun(replace(plain, n_draws=1)) == 5, "draws make no difference to effects"


@pytest.mark.parametrize("part", ["controls", "by_k"])
def test_what_rows_depend_on_is_in_their_key(tasks, part):
    def key(options=TINY, others=tasks[1:]):
        return keeping.rows_facts(options, part, others)

    def more(**change):
        return replace(TINY, more=replace(TINY.more, **change))

    assert key() == key(more(rows=("side_effects", "distributed"))), "which other rows there are makes no difference"
    for other in (
        replace(TINY, n_draws=3), replace(TINY, k=5), replace(TINY, n_judge_prompts=None),
        replace(TINY, grid=Grid()), more(rows=("by_k",)), more(text="Another text.\nIt has two lines."),
    ):  # fmt: skip
        assert key(other) != key()
    assert key(others=()) != key()
    # options of further rows alone
    for other in (more(n_draws=2), more(ks=(2,)), more(n_mean_prompts=4)):
        assert (key(other) == key()) is (part == "controls")


def test_a_damaged_part_is_made_again(pocket, tasks, tmp_path, monkeypatch):
    plain = replace(TINY, more=None)
    first = evaluate_tasks(pocket, tasks, plain, folder=tmp_path)
    (rows,) = [one for one in Store(tmp_path / "store").entries() if one.labels["task"] == "synonym"
               and one.labels["part"] == "controls"]  # fmt: skip
    path = rows.path(keeping.ROWS_FILE)
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    made, lines = counted(monkeypatch), []
    again = evaluate_tasks(pocket, tasks, plain, folder=tmp_path, say=lines.append)
    assert [line for line in lines if not line.endswith("(kept)")] == ["6 of 6: synonym: the vector and its controls"]
    assert made == []
    pd.testing.assert_frame_equal(again.table, first.table)


def test_one_task_has_built_in_ones_as_controls(pocket, tasks, tmp_path, monkeypatch):
    asked = []

    def some(model, task, iv, n):
        asked.append(n)
        return [InstructionVector.from_effects(HeadEffects.load(effects), 4, model=model)]

    effects = evaluate_tasks(pocket, tasks, replace(TINY, more=None)).effects[1].save(tmp_path / "e.safetensors")
    monkeypatch.setattr(running, "some_other_vectors", some)
    options = replace(TINY, more=None)
    for _ in range(2):
        found = evaluate_tasks(pocket, tasks[:1], options, folder=tmp_path)
    assert asked == [2], "kept, and as many as there are draws"
    assert found.matrix["vector"].tolist() == ["antonym", "synonym"] and "p_holm" not in found.table


def test_files(result, tmp_path):
    paths = result.write(tmp_path, also=lambda folder: (folder / "index.html").write_text("page"))
    names = {path.relative_to(tmp_path).as_posix() for path in paths}
    assert names == {
        "rows.parquet", "by_vector.parquet", "heads.parquet", "settings.parquet", "index.html",
        "vectors/antonym.safetensors", "vectors/synonym.safetensors",
    }  # fmt: skip
    rows = pd.read_parquet(tmp_path / "rows.parquet")
    pd.testing.assert_frame_equal(rows, result.table)
    assert rows.attrs["tasks"][1]["task"] == "synonym", "the settings of each judgement lie in the file"
    vector = InstructionVector.load(tmp_path / "vectors" / "antonym.safetensors")
    assert vector.heads == result.vectors[0].heads
    assert result.about()["options"]["more"]["rows"] == ROWS and repr(result).startswith(
        "TaskEvaluations('pocket': anto"
    )


@pytest.mark.parametrize(
    "change, which, said_",
    [
        ({}, [], "tasks is empty, expected one or more"),
        ({"k": 49}, NAMES, "k is 49, expected 1 to 48 for this model"),
        ({"grid": Grid(layers=(9,))}, NAMES, "layer"),
        ({"recipe": PromptRecipe(instruction="Do it.")}, NAMES, "an instruction of its own"),
        ({"recipe": PromptRecipe("chat")}, NAMES, "chat template"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(pocket, change, which, said_):
    lines = []
    with pytest.raises(ValueError, match=said_):
        evaluate_tasks(pocket, [load_task(name) for name in which], replace(TINY, **change), say=lines.append)
    assert lines == []


def test_a_task_without_inputs_in_a_split_is_refused_at_once(pocket, tasks):
    few = replace(tasks[1], name="few", examples=tasks[1].split("fit")[:5])
    lines = []
    with pytest.raises(ValueError, match="Split 'select' of task 'few' is empty"):
        evaluate_tasks(pocket, [tasks[0], few], TINY, say=lines.append)
    assert lines == []


def test_options_say_what_they_expect(result):
    for name in ("k", "n_prompts", "n_judge_prompts", "n_draws"):
        with pytest.raises(ValueError, match=f"{name} is 0, expected a whole number, 1 or more"):
            EvaluateOptions(**{name: 0})
    with pytest.raises(ValueError, match="leave others out"):
        EvaluateOptions(more=MoreRows(others=[result.effects[0]]))
    assert EvaluateOptions(more=None).rows == () and TINY.rows == ROWS[:-1]
