"""`ivlens prompts`, and what commands do where no option says in which form to ask."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import WORDS, hf_model

import ivlens.cli._options
import ivlens.forward.finding
import ivlens.forward.remembered
from ivlens.cli.main import main
from ivlens.forward.finding import find_prompts
from ivlens.prompts import PromptRecipe

QUICK = ("--shots", "0,2", "--n-prompts", "4")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, byte_level) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    hf_model("gpt2", n_ctx=512).save_pretrained(folder / "gpt2")
    byte_level.save_pretrained(folder / "gpt2")
    pairs = [{"input": word, "output": WORDS[(n + 1) % len(WORDS)]} for n, word in enumerate(WORDS)]
    (folder / "next.json").write_text(json.dumps(pairs))
    mine = {"instructed": "{instruction} {input} =", "bare": "{input} =", "demonstration": "{input} = {answer}\n"}
    (folder / "mine.json").write_text(json.dumps(mine))
    return folder


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, int]]:
    """Searches on few inputs, remembered in a cache of this test's own; each that really happened."""
    monkeypatch.setenv("IVLENS_CACHE", str(tmp_path / "cache"))
    done: list[tuple[str, int]] = []

    def quick(model: Any, task: Any, *, seed: int = 0) -> Any:
        done.append((task.name, seed))
        return find_prompts(model, task, shots=(2, 3), n_prompts=4, seed=seed)

    monkeypatch.setattr(ivlens.forward.remembered, "find_prompts", quick)
    return done


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def asked(place: Path, *more: object) -> list[object]:
    return ["--model", place / "gpt2", "--task", place / "next.json", *more]


def test_the_table_and_the_options_to_paste(place, capsys):
    status, out, err = run(capsys, "prompts", *asked(place, *QUICK))
    assert status == 0 and "next on " in out and "of 2 forms" in out
    lines = out.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("template"))
    assert lines[head].split()[:5] == ["template", "shots", "instruction", "clean", "95"]
    assert [line.split()[:3] for line in lines[head + 2 : head + 4]] == [["plain", "2", "none"], ["qa", "2", "none"]]
    assert "best: --template plain --n-shots 2 --instruction none" in out and "no vector can carry" in out


def test_json_and_templates_from_files(place, capsys):
    words = asked(place, *QUICK, "--template", "plain", "--template", place / "mine.json", "--seed", 3, "--json")
    status, out, _ = run(capsys, "prompts", *words)
    facts = json.loads(out)
    assert status == 0 and {row["template"] for row in facts["forms"]} == {"plain", "mine"} and facts["n_forms"] == 2
    assert facts["options"] == f"--template {place / 'mine.json'} --n-shots 2 --instruction none --seed 3"
    assert PromptRecipe.from_dict(facts["recipe"]) == PromptRecipe(str(place / "mine.json"), None, 2, 3)
    pasted = ["effects", *asked(place, "--n-prompts", 2, "--json"), *facts["options"].split()]
    assert json.loads(run(capsys, *pasted)[1])["recipe"] == facts["recipe"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shots", "two"], "--shots is 'two', expected numbers of demonstrations separated by commas"),
        (["--template", "fancy"], "template is 'fancy', expected one of plain"),
        (["--shots", "400"], "n_shots is 400, but task 'next' has examples for at most n_shots = "),
        (["--shots", "0"], "nothing tells the task: no instruction, and shots are all 0"),
    ],
)
def test_what_cannot_be_looked_for(place, capsys, words, message):
    status, out, err = run(capsys, "prompts", *asked(place, *words))
    assert (status, out) == (2, "") and message in err and err.strip().count("\n") == 0


def test_effects_look_for_the_form_and_say_so(place, capsys, searches):
    words = ["effects", *asked(place, "--n-prompts", 2, "--seed", 1, "--json")]
    status, out, err = run(capsys, *words)
    assert status == 0 and searches == [("next", 1)]
    recipe = PromptRecipe.from_dict(json.loads(out)["recipe"])
    assert recipe == PromptRecipe("plain", None, 2, 1)
    assert "ivlens: prompts found for next: template plain, 2 demonstrations, no instruction" in err
    assert "best of 4 forms" in err and "remembered" not in err
    status, out, err = run(capsys, *words)
    assert searches == [("next", 1)] and "best of 4 forms (remembered)" in err
    assert PromptRecipe.from_dict(json.loads(out)["recipe"]) == recipe


@pytest.mark.parametrize("option", [("--template", "plain"), ("--n-shots", 3), ("--instruction", "none")])
def test_one_option_is_enough_to_decide(place, capsys, searches, option):
    assert run(capsys, "effects", *asked(place, "--n-prompts", 2, *option))[0] == 0
    assert searches == []


def test_the_built_in_model_is_asked_as_it_was_trained(capsys, searches):
    status, out, err = run(capsys, "effects", "--task", "antonym", "--n-prompts", 2, "--json")
    assert status == 0 and searches == [] and "prompts found" not in err
    assert json.loads(out)["recipe"] == PromptRecipe(n_shots=0).to_dict()


def test_a_file_brings_its_own_form(place, capsys, searches, tmp_path):
    vector = tmp_path / "next.safetensors"
    made = ["vector", *asked(place, "--n-prompts", 2, "--k", 2, "--n-shots", 3, "--out", vector)]
    assert run(capsys, *made)[0] == 0
    steered = ["steer", "--model", place / "gpt2", "--vector", vector, "--layer", 1, "--alpha", 1, "--text", "big"]
    status, out, _ = run(capsys, *steered, "--json")
    assert status == 0 and searches == [] and json.loads(out)["recipe"]["n_shots"] == 3


def test_bad_options_fail_before_the_model_is_loaded(place, capsys, monkeypatch):
    def loaded(self: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(ivlens.cli._options.ModelOptions, "load", loaded)
    for command in ("effects", "vector", "prompts"):
        status, _, err = run(capsys, command, *asked(place, "--template", "fancy"))
        assert status == 2 and "template is 'fancy'" in err
    status, _, err = run(capsys, "steer", *asked(place, "--text", "big", "--template", "fancy"))
    assert status == 2 and "template is 'fancy'" in err


def test_every_task_of_the_demo_gets_its_own(place, monkeypatch):
    from ivlens.show.demo import run as demo

    class Enough(Exception):
        pass

    seen: list[Any] = []

    def effects(model: Any, task: Any, *, recipe: PromptRecipe, **more: Any) -> None:
        seen.append((task.name, recipe))
        if len(seen) == 2:
            raise Enough

    monkeypatch.setattr(demo, "head_effects", effects)
    monkeypatch.setattr(demo, "auto_recipe", lambda model, tasks, **more: PromptRecipe(n_shots=len(tasks[0].name)))
    options = demo.DemoOptions(str(place / "gpt2"), ("antonym", "synonym"))
    with pytest.raises(Enough):
        demo.run_demo(options)
    assert seen == [("antonym", PromptRecipe(n_shots=7)), ("synonym", PromptRecipe(n_shots=7))]
