"""`ivlens get`: what it says before and after, as text and as JSON, and what it refuses."""

import json

import pytest

from ivlens.cli.main import main
from ivlens.models import getting
from ivlens.models.known import KNOWN


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IVLENS_CACHE", str(tmp_path))
    return tmp_path


def put_there(name, *, progress=False):
    """In place of a download: what counts as being there."""
    KNOWN[name].folder.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "model.safetensors"):
        (KNOWN[name].folder / file).write_text("{}")
    return KNOWN[name].folder


def test_licence_and_size_come_before_the_download(monkeypatch, capsys):
    said = []

    def look(name, *, progress):
        said.append(capsys.readouterr().out)
        return put_there(name)

    monkeypatch.setattr(getting, "get_model", look)
    assert main(["get", "smollm2"]) == 0
    assert "Apache-2.0" in said[0] and "93 MB to download, 542 MB on the disk" in said[0]
    after = capsys.readouterr().out
    assert f"stored in {KNOWN['smollm2'].folder}" in after
    assert "next: ivlens prompts --model smollm2 --task third_person" in after
    assert main(["get", "smollm2"]) == 0
    assert "to download" not in "".join(said[1:]) and "Apache-2.0" in said[1]


def test_the_list_shows_what_is_here(capsys):
    assert main(["get", "--list"]) == 0
    before = capsys.readouterr().out
    assert all(f"{name} " in before for name in KNOWN)
    line = next(line for line in before.splitlines() if line.startswith("smollm2"))
    assert "Apache-2.0" in line and "93 MB" in line and " no " in line
    put_there("smollm2")
    assert main(["get", "--list", "--json"]) == 0
    models = {one["name"]: one for one in json.loads(capsys.readouterr().out)["models"]}
    assert models["smollm2"]["here"] and models["pocket"]["here"] and models["pocket"]["download_bytes"] == 0


def test_json_is_one_object(monkeypatch, capsys):
    monkeypatch.setattr(getting, "get_model", put_there)
    assert main(["get", "smollm2", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["folder"] == str(KNOWN["smollm2"].folder) and about["licence"] == "Apache-2.0" and about["here"]


def test_what_is_built_in_is_there(capsys):
    assert main(["get", "pocket"]) == 0
    assert str(KNOWN["pocket"].folder) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "was given no name, expected"),
        (["smollm2", "--list"], "was given a name and --list"),
        (["smolm2"], "did you mean 'smollm2'"),
    ],
)
def test_one_line_for_what_makes_no_sense(words, what, capsys):
    assert main(["get", *words]) == 2
    error = capsys.readouterr().err
    assert what in error and error.count("\n") == 1


def test_another_command_names_this_one(capsys):
    assert main(["effects", "--model", "smollm2", "--task", "antonym"]) == 2
    assert "get it with `ivlens get smollm2`" in capsys.readouterr().err


def test_doctor_says_whether_it_is_here(capsys):
    main(["doctor", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["smollm2"] is None and "ivlens get smollm2" in facts["remedies"]["smollm2"] and facts["ok"]
    put_there("smollm2")
    main(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)["smollm2"] == str(KNOWN["smollm2"].folder)
