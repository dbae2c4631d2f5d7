"""What the lab shows beside the completions, what it keeps on disk, and how its state travels as a text."""

import json
import logging
from dataclasses import asdict, replace
from random import Random

import pytest
import torch
from labs import STATE, Screen, assert_code_prints_what_is_shown, opened
from test_lab import OWN, random_state

import ivlens
from ivlens.cli import main as cli
from ivlens.common.intervals import wilson
from ivlens.common.store import Store
from ivlens.forward.completions import complete
from ivlens.show.lab.engine import Engine, begins_right
from ivlens.show.lab.kept import Kept
from ivlens.show.lab.limits import Limits
from ivlens.show.lab.maps import effects_maps
from ivlens.show.lab.measures import EngineOptions
from ivlens.show.lab.session import Session
from ivlens.show.lab.share import MAX_SHARED, template_text
from ivlens.show.lab.state import LabState
from ivlens.vectors import InstructionVector

FEW = EngineOptions(n_prompts=8, n_search=6)


@pytest.fixture(scope="module")
def pocket():
    return ivlens.load_model("pocket")


@pytest.fixture(scope="module")
def tasks():
    return {name: ivlens.load_task(name) for name in ("antonym", "synonym", "english_french")}


@pytest.fixture(scope="module")
def engine(pocket, tasks):
    return Engine(pocket, tasks, FEW)


@pytest.fixture
def lab(engine):
    session, screen = opened([engine])
    yield session, screen
    session.close()


def test_many_inputs_are_completed_as_steer_and_complete_do(engine, lab):
    session, screen = lab
    session.change(view="many", random=True, seed=3)
    assert session.wait() and not screen["status"]["error"]
    view, task, vector = screen["view"], engine.tasks["antonym"], session.vectors()[0]
    assert view["done"] and len(view["rows"]) == 32
    select = {example.input: example for example in task.split("select", 0)}
    rows = {row["input"]: row for row in view["rows"]}
    assert set(rows) <= set(select) and len(rows) == 32
    prompts = [f"Input: {each}\nOutput:" for each in rows]
    longest = max(len(row["patched"][0].split()) for row in rows.values())
    assert longest >= 1
    with ivlens.steer(engine.model, vector, layer=2, alpha=4.0):
        patched = complete(engine.model, prompts, max_new_tokens=4)
    with ivlens.steer(engine.model, vector.random_like(3), layer=2, alpha=4.0):
        random = complete(engine.model, prompts, max_new_tokens=4)
    texts = {"plain": complete(engine.model, prompts, max_new_tokens=4), "patched": patched, "random": random}
    for kind, wanted in texts.items():
        good = [begins_right(text, select[each].answers) for text, each in zip(wanted, rows, strict=True)]
        assert [row[kind][1] for row in rows.values()] == good
        assert [row[kind][0][:6] for row in rows.values()] == [text.strip()[:6] for text in wanted]
        (total,) = [one for one in view["totals"] if one["name"] == kind]
        assert total["value"] == sum(good) / 32 and (total["low"], total["high"]) == wilson(sum(good), 32)
    assert view["totals"][1]["value"] > 0.8 > view["totals"][0]["value"], "otherwise the table proves nothing"


def test_views_that_depend_on_nothing_new_are_shown_again_at_once(lab, monkeypatch):
    session, screen = lab
    session.change(view="places")
    assert session.wait()
    shown = screen["view"]
    assert shown["done"] and shown["places"] == ["instruction", "query", "last"] and len(shown["targets"]) == 3
    assert shown["targets"][1]["effects"][-1][0] == pytest.approx(shown["taken"], abs=0.3)

    def never(*given, **more):
        raise AssertionError("measured again")

    monkeypatch.setattr("ivlens.show.lab.inside.patch_places", never)
    session.change(alpha=1.0, text="hot")
    assert session.wait() and screen["view"] == shown and not screen["status"]["error"]


def test_layers_are_those_of_the_lens(engine, lab):
    session, screen = lab
    session.change(view="layers")
    assert session.wait()
    (model,) = screen["view"]["models"]
    at, vector = ivlens.Setting(2, 4.0, "resid_post"), session.vectors()[0]
    lens = ivlens.logit_lens(engine.model, "Input: big\nOutput:", vector, at=at)
    assert [each["layer"] for each in model["layers"]] == list(range(6)) and model["added"] == 2
    for layer, shown in enumerate(model["layers"]):
        for run in (0, 1):
            assert shown["runs"][run]["tokens"][0] == lens.tokens[run][0][layer][0]
            assert shown["runs"][run]["probs"] == pytest.approx(lens.probs[run, 0, layer, :3].tolist(), abs=1e-4)
    answers = [run["answer"] for run in model["layers"][-1]["runs"]]
    top = {token.strip(): p for token, p in screen["result"]["models"][0]["columns"][1]["top"]}
    assert (
        model["answer"] == "small" and answers[1] == pytest.approx(top["small"], abs=1e-4) and answers[1] > answers[0]
    )


def test_a_view_that_cannot_be_made_says_why_and_the_rest_stays(engine, lab, monkeypatch):
    session, screen = lab

    def refuse(*given, **more):
        raise ValueError("no lens for this model")

    monkeypatch.setattr("ivlens.show.lab.inside.logit_lens", refuse)
    session.change(view="layers")
    assert session.wait() and screen["view"]["error"] == "no lens for this model"
    assert not screen["status"]["error"] and screen.texts()["patched"]


def test_what_was_measured_is_kept(pocket, tasks, tmp_path, monkeypatch, caplog):
    options = replace(FEW, kept=Kept(Store(tmp_path / "kept")))
    first = Engine(pocket, tasks, options)
    session, screen = opened([first], LabState("antonym", text="big"))
    before, state = dict(screen), session.state
    session.close()

    def never(*given, **more):
        raise AssertionError("measured again")

    for name in ("head_effects", "measure_ability", "best_settings"):
        monkeypatch.setattr(f"ivlens.show.lab.measures.{name}", never)
    session, screen = opened([Engine(pocket, tasks, options)], LabState("antonym", text="big"))
    assert not screen["status"]["error"] and session.state == state
    for channel in ("ability", "task", "result", "code"):
        assert screen[channel] == before[channel]
    assert not [value for channel, value in screen.history if channel == "result" and not value["measured"]]
    session.close()
    # other prompts, another number of them, or a damaged file: measured again
    for other in (replace(options, n_prompts=7), replace(options, score="logprob"), replace(options, seed=1)):
        session, screen = opened([Engine(pocket, tasks, other)], LabState("antonym", text="big"))
        assert "measured again" in screen["status"]["error"]
        session.close()
    monkeypatch.undo()
    for path in (tmp_path / "kept").rglob("effects.safetensors"):
        path.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        session, screen = opened([Engine(pocket, tasks, options)], LabState("antonym", text="big"))
    assert not screen["status"]["error"] and screen["task"]["maps"] == before["task"]["maps"]
    session.close()


def test_the_plain_completion_and_the_inputs_come_before_any_measurement(pocket, tasks, monkeypatch):
    monkeypatch.setattr("ivlens.show.lab.work._EVERY", 0.0)  # every step is shown, however fast they come
    fresh, screen = Engine(pocket, tasks, FEW), Screen()
    session = Session([fresh], LabState("antonym", text="big"), screen)
    session.refresh()
    assert session.wait()
    order = [channel for channel, _ in screen.history]
    first = order.index("result")
    assert first < order.index("ability") and screen.history[first][1]["measured"] is False
    assert [each["name"] for each in screen.history[first][1]["models"][0]["columns"]] == ["plain"]
    bars = [value for channel, value in screen.history if channel == "progress" and value]
    assert {bar["step"] for bar in bars} == {1, 2, 3} and screen["progress"] == {}
    shares = [bar["share"] for bar in bars if bar["part"] == "heads"]
    assert shares and shares == sorted(shares) and all(0 < share <= 1 for share in shares)
    session.close()


def test_a_loaded_vector_marks_its_own_heads(engine, lab, tmp_path):
    session, screen = lab
    own = ((5, 5), (4, 4))
    InstructionVector.from_effects(engine.effects(STATE), heads=own).save(tmp_path / "v.safetensors")
    session.load(tmp_path / "v.safetensors")
    assert session.wait() and screen["state"]["heads"] == [[5, 5], [4, 4]] and session.state.source == "file"
    session.toggle([0, 7])
    assert session.wait() and session.state.heads == (*own, (0, 7)) and session.state.source == "heads"
    session.load(tmp_path / "v.safetensors")
    session.change(heads=[])
    assert session.wait() and session.vectors() == [None]


def test_a_text_of_ones_own_is_honoured(engine):
    session, screen = opened([engine], replace(STATE, text="no such word"))
    assert session.state.text == "no such word" and "no such word" in screen["result"]["models"][0]["prompt"]
    session.close()


def test_the_difference_of_two_maps(pocket, engine):
    other = ivlens.load_model("pocket")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    tuned = Engine(other, engine.tasks, FEW)
    one, two, difference = effects_maps([engine, tuned], STATE)
    found = [each.effects(STATE) for each in (engine, tuned)]
    change = found[1].aie - found[0].aie
    assert difference["kind"] == "difference" and [one["kind"], two["kind"]] == ["effect"] * 2
    assert torch.tensor(difference["aie"]) == pytest.approx(change, abs=1e-4)
    names = [each.facts()["weights"] for each in (engine, tuned)]
    assert all(name in difference["name"] for name in names), "both models have one name"
    most = divmod(int(change.abs().argmax()), 8)
    assert difference["ranked"][0] == list(most) and difference["interval"]
    assert difference["low"][most[0]][most[1]] <= difference["aie"][most[0]][most[1]]


def test_demonstrations_beginning_and_system_text(engine, lab):
    session, screen = lab

    def prompt():
        assert session.wait() and not screen["status"]["error"], screen["status"]
        return screen["result"]["models"][0]["prompt"]

    session.change(n_shots=2)
    drawn = prompt()
    assert drawn.count("Output:") == 3 and len(screen["result"]["shots"]) == 2
    session.change(demo_seed=5)
    assert prompt() != drawn and drawn.count("\n") == prompt().count("\n")
    session.change(demos=[["up", "down"]])
    assert prompt() == "Input: up\nOutput: down\n\nInput: big\nOutput:"
    session.change(begins="It is {x}")
    assert prompt() == "Input: up\nOutput: It is {x} down\n\nInput: big\nOutput: It is {x}"
    assert "{{x}}" in engine.effects(session.state).recipe.template.bare, "measured in the same form"
    session.change(bare=True)
    assert prompt() == "Input: big\nOutput: It is {x}"
    session.change(bare=False, begins="", n_shots=1)
    assert session.state.demos is None and prompt().count("Output:") == 2
    chat = LabState("antonym", text="big", template="chat", system="Be {brief}.", begins="Answer:").form()
    assert (chat.system, chat.answer_start, chat.separator) == ("Be {{brief}}.", "Answer:", " ")
    for wrong in ([["up"]], [["", "down"]], "up", [["up", 3]], [["a", "b"]] * 65):
        with pytest.raises(ValueError, match="demos is"):
            session.change(demos=wrong)


def test_the_best_form_is_offered_and_taken(engine, lab):
    session, screen = lab
    session.change(template="qa", n_shots=0, told=["Name a colour."])
    assert session.wait() and screen["ability"][0]["warning"]
    session.find_form()
    assert session.wait(120) and not screen["status"]["error"]
    best = engine.search("antonym").best
    assert session.state.template == best.template and (session.state.n_shots or 0) == best.shots(
        engine.tasks["antonym"]
    )
    assert not screen["ability"][0]["warning"] and screen["progress"] == {}


@pytest.mark.parametrize("number", range(4))
def test_a_state_travels_as_a_text(engine, number, monkeypatch):
    monkeypatch.setattr(ivlens, "load_model", lambda name: engine.model)
    session, screen = opened([engine])
    session.change(**random_state(Random(100 + number)))
    assert session.wait() and not screen["status"]["error"], screen["status"]
    text = screen["shared"]
    assert json.loads(text)["values"]["task"] == "antonym" and "/" not in json.loads(text)["model"]["name"]
    second, other = opened([engine], LabState("synonym", text="hot"))
    assert second.open(text) == "" and second.wait() and not other["status"]["error"]
    assert second.state == session.state and other["result"] == screen["result"] and other["code"] == screen["code"]
    assert_code_prints_what_is_shown(other)
    assert second.shared() == text
    for each in (session, second):
        each.close()


def test_a_session_of_a_file_says_what_is_missing(engine, lab, tmp_path):
    session, _ = lab
    InstructionVector.from_effects(engine.effects(STATE), heads=[(5, 5)]).save(tmp_path / "mine.safetensors")
    session.load(tmp_path / "mine.safetensors")
    assert session.wait()
    text = session.shared()
    assert str(tmp_path) not in text and "mine.safetensors" in text
    second, _ = opened([engine])
    assert "came from 'mine.safetensors': load that file again" in second.open(text)
    assert second.wait() and second.state.heads == ((5, 5),) and second.state.source == "heads"
    other = json.loads(text) | {"model": {**json.loads(text)["model"], "weights": "0"}}
    other["measured"] = {"n_prompts": 99, "seed": 0, "score": None}
    said = second.open(json.dumps(other))
    assert "made on other weights" in said and "measured with n_prompts 99" in said
    second.close()


def text_of(change=lambda about: None, **values):
    about = {"format": "ivlens lab 1", "model": {"n_layers": 6, "n_heads": 8}, "values": {"task": "antonym"} | values}
    change(about)
    return json.dumps(about)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "no text of at most"),
        ("x" * (MAX_SHARED + 1), "no text of at most"),
        ("[" * 50_000, "cannot be read"),
        ("{}", "another format"),
        (text_of(lambda about: about.pop("values")), "lacks its model or its values"),
        (text_of(lambda about: about["model"].update(n_layers=7)), "a model with 7 layers"),
        (text_of(task="no such"), "the session is of task 'no such'"),
        (text_of(task=["antonym"]), "the session is of task"),
        (text_of(layer=6), "layer is 6"),
        (text_of(template="/etc/passwd.json"), "template is '/etc/passwd.json'"),
        (text_of(template={"name": "x", "instructed": "{input}"}), "template 'x': instructed"),
        (text_of(template={"path": "x"}), "expected some of"),
        (text_of(template={"chat": "yes"}), "template has chat 'yes'"),
        (text_of(path="x"), "no setting 'path'"),
    ],
)
def test_what_a_stranger_wrote_is_checked(lab, text, what):
    session, screen = lab
    before = session.state
    with pytest.raises(ValueError, match=what):
        session.open(text)
    assert session.state == before


def test_a_template_from_a_file(lab):
    session, screen = lab
    values = {name: value for name, value in asdict(OWN).items() if name != "name"}
    session.change(template=template_text("mine.json", json.dumps(values)))
    assert session.wait() and screen["state"]["template"] == "mine"
    assert screen["result"]["models"][0]["prompt"] == "big ->"
    for wrong, what in (("[1]", "expected some of"), ("{", "is no JSON"), ("x" * (MAX_SHARED + 1), "is larger than")):
        with pytest.raises(ValueError, match=what):
            template_text("mine.json", wrong)


def test_every_value_of_the_state_is_checked():
    assert set(asdict(STATE)) == set(Limits(("antonym",), 6, 8)._checks())


def test_effects_and_score_on_the_command_line(engine, tmp_path, monkeypatch, capsys):
    pytest.importorskip("panel")

    def told(engines, state, *, port):
        knows, options = engines[0].knows(state), engines[0].options
        raise ValueError(f"{state.task} {state.template} {state.n_shots} {state.bare} {options.score} {knows}")

    monkeypatch.setattr("ivlens.show.lab.server.open_server", told)
    recipe = ivlens.PromptRecipe("qa", n_shots=2)
    measured = ivlens.head_effects(engine.model, engine.tasks["synonym"], recipe=recipe, n_prompts=4)
    path = str(measured.save(tmp_path / "effects.safetensors"))
    assert cli.main(["lab", "--effects", path]) == 2
    assert "synonym qa 2 True None True" in capsys.readouterr().err
    assert cli.main(["lab", "--effects", path, "--template", "plain", "--score", "logprob"]) == 2
    assert "synonym plain 2 True logprob False" in capsys.readouterr().err
    assert cli.main(["lab", "--effects", path, "--task", "antonym"]) == 2
    assert "belong to none of the lab's tasks" in capsys.readouterr().err
