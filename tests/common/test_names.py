"""What names a terminal or a page must not obey, and texts that are empty where something is expected."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import tiny_task

import ivlens
from ivlens.cli.main import main
from ivlens.common.files import ready_folder
from ivlens.common.names import expanded, path_of, shown
from ivlens.common.store import Store
from ivlens.models.fingerprint import model_identity
from ivlens.models.load import load_model
from ivlens.prompts import PromptTemplate
from ivlens.runs.sweep import read_grid
from ivlens.steering.steer import steer
from ivlens.tasks import load_task
from ivlens.vectors import InstructionVector

EVIL = "ant\x1b[31monym\x07\x9b2J\u202egnp\r\n\x00"
HARMLESS = "ant\\x1b[31monym\\x07\\x9b2J\\u202egnp\\r\\n\\x00"


def is_harmless(text):
    return text == shown(text, keep="\n\t")


def test_control_characters_are_written_out():
    assert shown(EVIL) == HARMLESS and shown("a\tb\n", keep="\n\t") == "a\tb\n"
    assert shown("naïve 日本 émile 🙂 – ½") == "naïve 日本 émile 🙂 – ½" and shown("\ud800") == "\\ud800"
    assert is_harmless(shown("".join(map(chr, range(0x3000)))))


def test_names_are_harmless_wherever_they_go(llama, capsys, caplog, tmp_path):
    task = tiny_task(EVIL)
    assert task.name == HARMLESS and PromptTemplate(EVIL).name == HARMLESS
    assert replace(model_identity(llama), name=EVIL).name == HARMLESS
    effects = ivlens.head_effects(llama, task, n_prompts=2, corruption="drop", options=ivlens.EffectOptions())
    iv = InstructionVector.from_effects(effects, k=1)
    evil = replace(iv, task=EVIL)
    assert evil.task == HARMLESS
    loaded = InstructionVector.load(evil.save(tmp_path / "iv.safetensors"))
    for text in (str(effects), repr(effects), repr(loaded), repr(task), effects.to_frame().to_string(), caplog.text):
        assert is_harmless(text)
    for shown_as in (effects, iv, task):
        assert is_harmless(shown_as._repr_html_())
    with pytest.raises(ValueError) as caught:
        task.split("none")
    assert is_harmless(str(caught.value))


def test_file_names_in_errors_and_logs(tmp_path, capsys):
    path = tmp_path / "t\x1b[31m\u202e.json"
    path.write_text("[]")
    with pytest.raises(ValueError) as caught:
        load_task(path)
    assert is_harmless(str(caught.value))
    assert main(["effects", "--task", str(path)]) == 2
    path.write_text('[{"input": "a", "output": "b"}, {"input": "", "output": "b"}]')
    from ivlens.cli._output import print_json, print_table, telling

    with telling(False):
        load_task(path)
        logging.getLogger("ivlens").warning("file %s", path)
    print_table(["a"], [[EVIL], [path]])
    print_json({"a": EVIL})
    out, err = capsys.readouterr()
    assert "\\x1b[31m" in err and "left out" in err and is_harmless(out) and is_harmless(err)
    import json

    assert json.loads(out[out.index("{") :]) == {"a": EVIL}


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["effects", "--task", "antonym", "--model", ""], "--model"),
        (["effects", "--task", "antonym", "--model="], "--model"),
        (["effects", "--task", "", "--model", "pocket"], "--task"),
        (["effects", "--task", "antonym", "--device", " "], "--device"),
        (["demo", "--out", ""], "--out"),
        (["steer", ""], "argument 2"),
        (["", "effects"], "argument 1"),
        (["sweep", "\t"], "argument 2"),
    ],
)
def test_an_empty_word_is_no_default(words, what, capsys):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"{what} is empty, expected a value" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: load_model(""),
        lambda: load_model(" "),
        lambda: load_model("pocket", revision=""),
        lambda: load_model("pocket", device=""),
        lambda: load_model("pocket", dtype=""),
        lambda: load_model("pocket", base=""),
        lambda: load_task(""),
        lambda: load_task("antonym", part=""),
        lambda: load_task("antonym", config=""),
        lambda: load_task("antonym", input_column=""),
        lambda: ivlens.load_suite("trace", ""),
        lambda: ivlens.load_suite("pocket", ""),
        lambda: ivlens.list_tasks(group=""),
        lambda: ivlens.PromptRecipe(""),
        lambda: ivlens.PromptRecipe(instruction=""),
        lambda: ready_folder(""),
        lambda: Store(""),
        lambda: read_grid(""),
        lambda: InstructionVector.load(""),
        lambda: ivlens.HeadEffects.load(""),
        lambda: path_of("\n"),
    ],
)
def test_an_empty_text_is_no_default_in_python(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, TypeError, FileNotFoundError)):
        make()
    assert not list(tmp_path.iterdir())


def test_an_empty_site_is_no_default(llama):
    effects = ivlens.head_effects(llama, tiny_task(), n_prompts=2, corruption="drop")
    iv = InstructionVector.from_effects(effects, k=1)
    with pytest.raises((ValueError, TypeError), match="site"), steer(llama, iv, layer=1, site=""):
        pass
    with pytest.raises((ValueError, TypeError), match="score|corruption"):
        ivlens.head_effects(llama, tiny_task(), n_prompts=2, corruption="")
    with pytest.raises((ValueError, TypeError), match="score"):
        ivlens.head_effects(llama, tiny_task(), n_prompts=2, corruption="drop", score="")


def test_the_home_of_nobody_is_a_path_like_any_other(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert expanded("~/x") == Path("/somewhere/x") and expanded(Path("a")) == Path("a")
    assert expanded("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
