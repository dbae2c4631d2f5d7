"""`ivlens evaluate` on the built-in model, with tiny amounts: what it prints and writes, interrupted, and refused."""

import json
from pathlib import Path

import pandas as pd
import pytest

from ivlens.cli.evaluate import EvaluateAmounts
from ivlens.cli.main import main
from ivlens.common.store import Store
from ivlens.prompts.recipe import PromptRecipe
from ivlens.runs.evaluation import running
from ivlens.steering.more_rows import ROWS

FEW = (
    "--n-prompts 3 --n-judge-prompts 4 --n-draws 2 --n-more-draws 1 --k 4 --rows necessity --rows side_effects".split()
)
TASKS = ["--task", "antonym", "--task", "synonym"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated")
    assert main(["evaluate", *TASKS, *FEW, "--out", str(out), "--figures", "html"]) == 0
    return out


def test_files_and_figures(done: Path):
    names = {
        path.relative_to(done).as_posix() for path in done.rglob("*") if path.is_file() and "store" not in path.parts
    }
    tables = {f"{name}.parquet" for name in ("rows", "by_vector", "heads", "settings")}
    vectors = {f"vectors/{name}.safetensors" for name in ("antonym", "synonym")}
    kinds = ("conditions", "heads", "settings", "necessity")
    figures = {f"figures/{task}-{kind}.html" for task in ("antonym", "synonym") for kind in kinds}
    overview = {f"figures/{name}.html" for name in ("conditions", "matrix", "similarity")}
    assert names == {"index.html", *tables, *vectors, *figures, *overview}
    assert (done / "index.html").read_text().count("<section") == 4
    rows = pd.read_parquet(done / "rows.parquet")
    assert set(rows["variant"]) == {"", "corrupted", "other_tasks", "bare"} and rows["kl"].notna().any()


def test_the_same_command_finds_every_part_and_prints_the_tables(done: Path, capsys):
    capsys.readouterr()
    assert main(["evaluate", *TASKS, *FEW, "--out", str(done)]) == 0
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if " of 8: " in line]
    assert len(lines) == 8 and all(line.startswith("ivlens: ") and line.endswith(" (kept)") for line in lines)
    for title in (
        "The vector and its controls: accuracy on 4 test inputs",
        "Are the heads needed? Clean prompts with outputs of heads replaced",
        "Side effects on unrelated texts",
    ):
        assert out.count(title) == 2
    assert "Wilson 95 %" in out and "antonym on pocket (6 layers x 8 heads" in out
    assert "(Holm); with 2 draws never below 0.333: too few to show p < 0.05" in out
    assert "further rows have 1 draws: p is never below 0.5 there" in out
    assert out.rstrip().endswith(f"report: {done / 'index.html'}")


def test_json_is_one_object(done: Path, capsys):
    capsys.readouterr()
    assert main(["evaluate", *TASKS, *FEW, "--out", str(done), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["task"] for one in found["tasks"]] == ["antonym", "synonym"] and len(found["tasks"][0]["heads"]) == 4
    assert {row["condition"] for row in found["rows"]} > {"iv", "random", "necessity"}
    assert found["options"]["recipe"] == PromptRecipe().to_dict() and found["page"] == str(done / "index.html")


def test_ctrl_c_keeps_what_is_done_and_says_so(tmp_path: Path, capsys, monkeypatch):
    def interrupted(*args, **more):
        raise KeyboardInterrupt

    command = ["evaluate", "--task", "antonym", "--task", "synonym", *FEW, "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(running, "evaluate_intervention", interrupted)
        assert main(command) == 130
    err = capsys.readouterr().err
    assert "what is done is kept in" in err and "the same command goes on from there" in err
    assert "3 of 8: antonym: accuracy by layer and strength" in err
    kept = [entry.labels["part"] for entry in Store(tmp_path / "store").entries()]
    assert sorted(kept) == ["effects", "effects", "settings"] and not (tmp_path / "index.html").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "ivlens evaluate got no --task, expected one or more; try --task third_person"),
        (["--task", "nosuch"], "Task 'nosuch' is unknown"),
        ([*TASKS, "--k", "0"], "k is 0, expected a whole number, 1 or more"),
        ([*TASKS, "--k", "49"], "k is 49, expected 1 to 48 for this model"),
        ([*TASKS, "--n-draws", "0"], "n_draws is 0, expected a whole number, 1 or more"),
        ([*TASKS, "--n-judge-prompts", "0"], "n_judge_prompts is 0, expected a whole number, 1 or more"),
        ([*TASKS, "--n-prompts", "-1"], "--n-prompts is -1, expected 0 or more"),
        ([*TASKS, "--rows", "magic"], "magic"),
        ([*TASKS, "--rows", "none", "--rows", "by_k"], "--rows is none, by_k, expected none alone, or other rows"),
        ([*TASKS, "--instruction", "Say it."], "has an instruction of its own"),
        ([*TASKS, "--template", "nosuch"], "nosuch"),
        ([*TASKS, "--figures", "gif"], "gif"),
        (["--task", "antonym", "--task", "./antonym.json"], "two different tasks are called 'antonym'"),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_measured(words, said, tmp_path, capsys, monkeypatch):
    def measured(*args, **more):
        raise AssertionError("measured")

    monkeypatch.setattr(running, "head_effects", measured)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "antonym.json").write_text(json.dumps({f"in {n}": f"out {n}" for n in range(40)}))
    assert main(["evaluate", *words, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and said in err, err
    assert not (tmp_path / "out").exists()


def test_rows_are_those_of_the_library():
    from typing import get_args

    from ivlens.cli.evaluate import Rows

    assert set(get_args(Rows)) == {*ROWS, "none"}
    recipe = PromptRecipe()
    every, none, some = (EvaluateAmounts(rows=rows).options(recipe) for rows in ((), ("none",), ("by_k",)))
    assert every.more.rows == ROWS and every.more.n_draws == 5 and none.more is None and some.more.rows == ("by_k",)
