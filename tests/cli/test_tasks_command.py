"""`ivlens tasks`, and the columns of a task's file in other commands."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import WORDS, hf_model

from ivlens.cli._options import ColumnOptions
from ivlens.cli.main import main
from ivlens.tasks import list_tasks, load_task


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def as_json(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    status, out, err = run(capsys, *words, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "mine.csv"
    rows = [f"{n},{word},{WORDS[(n + 1) % len(WORDS)]},nothing" for n, word in enumerate(WORDS)]
    path.write_text("\n".join(["id,stem,gold,answer", *rows]))
    return path


def test_the_list_has_every_task_with_its_number_and_an_example(capsys):
    status, out, _ = run(capsys, "tasks")
    lines = out.splitlines()
    assert status == 0 and [line.split()[0] for line in lines[2 : 2 + len(list_tasks())]] == list_tasks()
    (line,) = [line for line in lines if line.startswith("antonym ")]
    assert line.split()[1] == "216" and line.endswith("big -> small / little / tiny")
    found = as_json(capsys, "tasks", "--group", "words")["tasks"]
    assert [one["name"] for one in found] == list_tasks(group="words") and found[0]["n"] == sum(
        found[0]["splits"].values()
    )
    status, _, err = run(capsys, "tasks", "--group", "nothing")
    assert status == 2 and err.startswith("ivlens: Group 'nothing' is unknown, expected one of ")


def test_one_task_is_shown(capsys, table):
    status, out, _ = run(capsys, "tasks", "show", "antonym")
    task = load_task("antonym")
    assert status == 0 and out.startswith("antonym: 216 inputs (fit ")
    assert all(f"\n  {text}\n" in out for text in (*task.instructions, *task.held_out_instructions, *task.clozes))
    assert "\nheld-out instructions:\n" in out and "\nexamples:\n  big -> small / little / tiny\n" in out
    found = as_json(capsys, "tasks", "show", "antonym")
    assert found["instructions"] == list(task.instructions) and len(found["examples"]) == 216
    status, _, err = run(capsys, "tasks", "show", "antonymm")
    assert status == 2 and "did you mean 'antonym'" in err


def test_a_file_is_checked(capsys, table):
    status, out, err = run(capsys, "tasks", "check", table, "--input-column", "stem")
    assert (status, err) == (0, "") and "read: input from 'stem', answer from 'answer'" in out
    assert f"  --answer-column gold: the first answer would be {WORDS[1]!r}" in out.splitlines()
    found = as_json(capsys, "tasks", "check", table, "--input-column", "stem", "--answer-column", "gold")
    assert found["uses"] == {"input": "stem", "answer": "gold"} and found["n_examples"] == len(WORDS)
    assert found["examples"][0] == {"input": WORDS[0], "answers": [WORDS[1]]} and len(found["examples"]) == 3
    status, out, err = run(capsys, "tasks", "check", table)
    assert (status, out) == (2, "") and "name it with input_column= (--input-column)" in err
    assert err.count("\n") == 1


def test_a_file_of_parts_and_one_of_another_format(capsys, tmp_path):
    (tmp_path / "both.json").write_text(
        json.dumps({"train": [{"input": "a", "output": "b"}], "test": [{"x": 1, "y": 2}]})
    )
    assert as_json(capsys, "tasks", "check", tmp_path / "both.json", "--part", "test")["examples"][0]["input"] == "1"
    (tmp_path / "grid.toml").write_text('tasks = ["antonym"]\n')
    status, _, err = run(capsys, "tasks", "check", tmp_path / "grid.toml")
    assert status == 2 and "grid.toml: its format is unknown (it looks like TOML), expected JSON, " in err


def test_columns_and_parts_of_a_task_that_is_shown(capsys, tmp_path):
    (tmp_path / "both.json").write_text(json.dumps({"train": [{"a": "x", "b": "y"}], "test": [{"a": "u", "b": "v"}]}))
    words = [tmp_path / "both.json", "--input-column", "a", "--answer-column", "b", "--part", "test"]
    status, out, _ = run(capsys, "tasks", "show", *words)
    assert status == 0 and "u -> v" in out and "x -> y" not in out


def test_nothing_that_terminals_obey_is_printed(capsys, tmp_path):
    (tmp_path / "t.json").write_text(json.dumps([{"input": "a\x1b[31m\u202eb", "output": "c\x07", "\x1b[2J": "d"}]))
    for words in (("check",), ("show",)):
        status, out, _ = run(capsys, "tasks", *words, tmp_path / "t.json")
        assert status == 0 and not {"\x1b", "\u202e", "\x07"} & set(out)


def test_other_commands_take_the_columns(capsys, table, tmp_path, byte_level, monkeypatch):
    monkeypatch.setenv("IVLENS_CACHE", str(tmp_path / "cache"))
    hf_model("gpt2", n_ctx=512).save_pretrained(tmp_path / "gpt2")
    byte_level.save_pretrained(tmp_path / "gpt2")
    columns = ["--input-column", "stem", "--answer-column", "gold"]
    few = ["--model", tmp_path / "gpt2", "--task", table, "--n-prompts", "2", *columns]
    for command, more in (
        ("effects", ["--n-shots", "2", "--instruction", "none", "--again", "0"]),
        ("prompts", ["--shots", "2", "--template", "plain"]),
        ("vector", ["--n-shots", "2", "--instruction", "none", "--k", "2"]),
    ):
        assert run(capsys, command, *few, *more)[0] == 0
        status, _, err = run(capsys, command, *few[:-1], "nope", *more)
        assert status == 2 and "expected 'nope'; name it with output_column= (--answer-column)" in err
    status, _, err = run(capsys, "effects", "--task", "antonym", *columns)
    assert status == 2 and "got column, part or config options, which built-in tasks do not have" in err
    status, _, err = run(capsys, "steer", "--text", "a", "--vector", "x", "--layer", 0, "--alpha", 1, *columns)
    assert status == 2 and "columns or a part are named, but no task" in err


@pytest.mark.parametrize("command", ["evaluate", "attention", "forget", "dynamics", "lab", "effects", "tune"])
def test_every_command_that_takes_a_file_takes_its_columns(capsys, table, tmp_path, command):
    """The error for unusual names leads on: with the options that it names, the command comes to what is wrong next."""
    places = [tmp_path / "none"] if command in ("forget", "dynamics") else []
    words = [command, *places, "--task", table, *([] if command in ("lab", "effects") else ["--out", tmp_path / "out"])]
    words += ["--model", tmp_path / "none"] * (not places)
    status, _, err = run(capsys, *words)
    assert status == 2 and "name it with input_column= (--input-column)" in err
    status, _, err = run(capsys, *words, "--input-column", "stem", "--answer-column", "gold")
    assert status == 2 and "/none" in err and "--input-column" not in err


def test_columns_are_those_of_the_files_among_several_tasks(table):
    options = ColumnOptions(input_column="stem", answer_column="gold")
    files = options.load_all(["antonym", str(table)])
    assert [task.name for task in files] == ["antonym", "mine"] and files[1].examples[0].answer == WORDS[1]
    with pytest.raises(ValueError, match="columns or a part are named, but antonym, synonym are built-in tasks"):
        options.load_all(["antonym", "synonym"])
    assert len(ColumnOptions().load_all(["antonym", "synonym"])) == 2
