"""`ivlens attention`, on the built-in model and on a tiny one."""

import json
from pathlib import Path

import pandas as pd
import pytest
from test_cli import asked, common, place, refused, run  # noqa: F401 - fixtures, too

from ivlens.analysis.attention import HeadAttention
from ivlens.cli.main import main


def command(place: Path, out: Path, *more: object) -> list[object]:  # noqa: F811
    return ["attention", *common(place), "--out", out, *more]


def test_it_prints_the_heads_and_writes_a_page_and_tables(place, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "deep" / "attention"
    status, text, err = run(capsys, *command(place, out, "--n-shots", 2, "--top", 3))
    assert status == 0 and err == ""
    assert (
        "attention from the last token of 2 clean, 2 shuffle prompts" in text
        and f"report: {out / 'index.html'}" in text
    )
    rows = [line.split() for line in text.splitlines() if line.startswith("L")]
    assert len(rows) == 6 and [row[1] for row in rows] == ["clean", "shuffle"] * 3
    assert "3 of 12 heads: those that look most at what tells the task; all are in attention.parquet" in text
    assert sorted(path.name for path in out.iterdir()) == [
        "attention.parquet", "attention.safetensors", "index.html", "scores.parquet"
    ]  # fmt: skip
    assert HeadAttention.load(out / "attention.safetensors").prompts == ("clean", "shuffle")
    frame = pd.read_parquet(out / "attention.parquet")
    assert len(frame) == 12 * 2 * 7 and set(frame["task"]) == {"next"}
    told = frame[(frame["prompts"] == "clean") & frame["segment"].isin(["inputs", "answers", "instruction"])]
    assert rows[0][0] == told.groupby("label")["share"].sum().idxmax()
    assert len(pd.read_parquet(out / "scores.parquet")) == 12


def test_named_heads_keep_their_order(place, tmp_path, capsys):  # noqa: F811
    status, text, _ = run(capsys, *command(place, tmp_path / "a", "--heads", "L2H1,L0H3", "--json"))
    found = json.loads(text)
    assert status == 0 and [row["head"] for row in found["rows"]] == ["L2H1", "L2H1", "L0H3", "L0H3"]
    assert found["settings"]["recipe"]["n_shots"] == 5 and found["settings"]["split"] == "select"
    assert sum(found["rows"][0][name] for name in ("start", "inputs", "answers", "query", "template")) == pytest.approx(
        1
    )


def test_effects_bring_heads_and_recipe(place, tmp_path, capsys):  # noqa: F811
    effects = tmp_path / "effects.safetensors"
    made = ["effects", *common(place), "--n-shots", "3", "--template", "qa", "--again", "0", "--out", str(effects)]
    assert main(made) == 0
    status, text, _ = run(capsys, *command(place, tmp_path / "a", "--effects", effects, "--k", 2, "--json"))
    found = json.loads(text)
    assert status == 0 and len(found["rows"]) == 4
    assert (found["settings"]["recipe"]["template"], found["settings"]["recipe"]["n_shots"]) == ("qa", 3)


def test_what_is_wrong_is_one_line(place, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "a"
    assert "heads have 'L1', expected a layer and a head" in refused(capsys, *command(place, out, "--heads", "L1"))
    assert "heads have L7H0 among them" in refused(capsys, *command(place, out, "--heads", "L7H0"))
    both = command(place, out, "--heads", "L0H0", "--effects", "x.safetensors")
    assert "got --heads and --effects, expected one of them" in refused(capsys, *both)
    assert "--top is -1, expected 0 or more" in refused(capsys, *command(place, out, "--top", -1))
    assert "--n-prompts is 0, expected 1 or more" in refused(capsys, "attention", "--task", "antonym", "--n-prompts", 0)
    assert not out.exists()
