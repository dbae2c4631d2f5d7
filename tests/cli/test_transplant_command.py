"""`ivlens transplant`, between two tiny models."""

import json
from pathlib import Path

import pandas as pd
from test_cli import asked, place, refused, run  # noqa: F401 - fixtures, too


def command(place: Path, out: Path, *more: object) -> list[object]:  # noqa: F811
    task = ["--task", place / "next.json", "--task", place / "second.json", "--n-shots", 2]
    few = ["--n-prompts", 2, "--n-judge-prompts", 3, "--n-draws", 2, "--k", 1, "--k", 2, "--figures", "json"]
    return ["transplant", place / "gpt2", place / "other", *task, *few, "--out", out, *more]


def test_it_writes_both_tables_and_figures_and_goes_on_from_what_is_kept(place, tmp_path, capsys, monkeypatch):  # noqa: F811
    out = tmp_path / "deep" / "transplant"
    status, text, _ = run(capsys, *command(place, out))
    assert status == 0 and "with 2 draws never below 0.333" in text and f"written: {out}" in text
    rows = [line.split() for line in text.splitlines() if line.startswith(("next ", "second "))]
    assert [row[:4] for row in rows[:6]] == [
        ["next", "tuned", "own", "–"], ["next", "tuned", "vector", "1"], ["next", "tuned", "random", "1"],
        ["next", "tuned", "vector", "2"], ["next", "tuned", "random", "2"], ["next", "tuned", "every", "12"],
    ]  # fmt: skip
    assert len(rows) == 24
    swapped, spliced = pd.read_parquet(out / "transplant.parquet"), pd.read_parquet(out / "splices.parquet")
    assert len(swapped) == 24 and set(swapped["n"]) == {3} and set(spliced["layer"]) == set(range(4))
    assert {path.name for path in out.iterdir()} == {
        "transplant.parquet", "splices.parquet", "transplant.json", "splices.json", "store"
    }  # fmt: skip

    def again(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("ivlens.analysis.transplant.several.transplant", again)
    monkeypatch.setattr("ivlens.analysis.transplant.several.splice", again)
    status, text, _ = run(capsys, *command(place, out, "--json"))
    found = json.loads(text)
    assert status == 0 and len(found["transplant"]) == 24 and found["recipe"]["n_shots"] == 2
    pd.testing.assert_frame_equal(pd.DataFrame(found["transplant"]).fillna(0), swapped.fillna(0), check_dtype=False)


def test_wrong_input_is_one_line(place, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "a"
    wrong = command(place, out)
    wrong[2] = place / "llama"
    assert "before has" in refused(capsys, *wrong)
    assert "--k is 0, expected a whole number, 1 or more" in refused(capsys, *command(place, out, "--k", 0))
