"""The lab without a page: a state gives one and the same texts, whoever asks, and only the newest request is shown."""

import contextlib
import io
import json
import socket
import sys
import threading
import time
from dataclasses import asdict, replace
from random import Random

import pytest
import torch
from labs import STATE, Screen, assert_code_prints_what_is_shown, opened

import ivlens
from ivlens.cli import main as cli
from ivlens.effects.measure import EffectOptions
from ivlens.effects.plan import Plan
from ivlens.forward.completions import complete
from ivlens.forward.hooks import model_lock
from ivlens.prompts.recipe import PromptRecipe
from ivlens.prompts.templates import PromptTemplate
from ivlens.show.lab.engine import Engine, begins_right
from ivlens.show.lab.limits import Limits
from ivlens.show.lab.measures import SEARCH, EngineOptions, Unwanted
from ivlens.show.lab.opening import Opened
from ivlens.show.lab.running import Turns
from ivlens.show.lab.session import Session
from ivlens.show.lab.state import LabState
from ivlens.show.lab.streams import Addition, stream_completions
from ivlens.show.lab.worker import Worker
from ivlens.steering.steer import steer
from ivlens.vectors import InstructionVector

LIMITS = Limits(("antonym", "synonym"), 6, 8)


@pytest.fixture(scope="module")
def pocket():
    return ivlens.load_model("pocket")


@pytest.fixture(scope="module")
def engine(pocket):
    tasks = {name: ivlens.load_task(name) for name in ("antonym", "synonym", "english_french", "last_letter")}
    return Engine(pocket, tasks, EngineOptions(n_prompts=16, n_search=12))


@pytest.fixture
def opened_lab(engine):
    session, screen = opened([engine])
    yield session, screen
    session.close()


@pytest.mark.parametrize("positions", ["prompt", "every", "all"])
@pytest.mark.parametrize("site", ["resid_post", "attn_out"])
def test_each_row_is_what_steer_and_complete_give_alone(pocket, site, positions):
    prompt, draw = "Input: happy\nOutput:", torch.Generator().manual_seed(3)
    vector = ivlens.InstructionVector.from_effects(
        ivlens.head_effects(pocket, ivlens.load_task("english_french"), n_prompts=8)
    )
    deltas = torch.stack([torch.zeros(128), 4 * vector.theta, 30 * torch.randn(128, generator=draw)])
    *_, rows = stream_completions(pocket, prompt, Addition(deltas, 1, site, positions), max_new_tokens=8)
    alone = complete(pocket, [prompt], max_new_tokens=8)
    for theta in deltas[1:]:
        with steer(pocket, vector.derived(theta, "x", {}), layer=1, site=site, positions=positions):
            alone += complete(pocket, [prompt], max_new_tokens=8)
    assert [row.text for row in rows] == alone
    assert len(set(alone)) == 3, "rows that do not differ prove nothing"
    assert all(row.done and len(row.top) == 10 for row in rows)
    with torch.no_grad():
        tokens = torch.tensor([pocket.tokenizer(prompt)["input_ids"]])
        best = pocket(tokens)[0, -1].softmax(-1).max()
    assert rows[0].top[0][1] == pytest.approx(float(best), abs=1e-5)


def test_stream_refuses_what_it_cannot_complete(pocket):
    nothing = Addition(torch.zeros(1, 128), 0)
    with pytest.raises(ValueError, match="the prompt is empty"):
        next(stream_completions(pocket, " ", nothing))
    with pytest.raises(ValueError, match="n_ctx"):
        next(stream_completions(pocket, "big " * 400, nothing))
    with pytest.raises(ValueError, match="layer 6 does not exist"):
        next(stream_completions(pocket, "big", Addition(torch.zeros(1, 128), 6)))


def test_stream_holds_the_lock_during_a_pass_only(pocket):
    stream = stream_completions(pocket, "Input: big\nOutput:", Addition(torch.zeros(1, 128), 0))
    next(stream)
    got = []

    def try_lock():
        got.append(model_lock(pocket).acquire(timeout=5))
        model_lock(pocket).release()

    thread = threading.Thread(target=try_lock)
    thread.start()
    thread.join()
    assert got == [True]
    assert not any(module._forward_hooks for module in pocket.original_model.modules())


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("task", "antonyms", "task is 'antonyms', expected antonym, synonym"),
        ("layer", 6, "layer is 6, expected a whole number from 0 to 5"),
        ("layer", 1.5, "layer is 1.5, expected a whole number"),
        ("layer", True, "layer is True, expected a whole number"),
        ("alpha", float("nan"), "alpha is nan, expected a strength"),
        ("alpha", "4", "alpha is '4', expected a strength"),
        ("site", "resid_mid", "site is 'resid_mid', expected resid_post, attn_out"),
        ("positions", "never", "positions is 'never', expected prompt, every, all"),
        ("heads", [[0, 8]], "head of heads is 8, expected a whole number from 0 to 7"),
        ("heads", "L0H7", "heads is 'L0H7', expected a list"),
        ("heads", [3], "heads is 3, expected pairs"),
        ("text", "\ud800", "text is .* expected whole characters"),
        ("text", 3, "text is 3, expected a text"),
        ("k", 0, "k is 0, expected a whole number from 1 to 48"),
        ("random", 1, "random is 1, expected true or false"),
        ("max_new_tokens", float("inf"), "max_new_tokens is inf, expected a whole number"),
        ("template", "odd", "template is 'odd', expected plain, after, qa, chat, raw"),
        ("n_shots", -1, "n_shots is -1, expected a whole number from 0 to 64"),
        ("told", ["Say it.", " "], "told is .* expected task, none, or instructions that are not empty"),
        ("told", [], "told is .* expected task, none"),
        ("bare", 0, "bare is 0, expected true or false"),
        ("colour", "red", "no setting 'colour', expected one of alpha"),
    ],
)
def test_what_a_browser_sends_is_checked(name, value, what):
    with pytest.raises(ValueError, match=what):
        LIMITS.changed(STATE, {name: value})


def test_toggling_twice_changes_nothing():
    heads = ((0, 7), (3, 4))
    assert LIMITS.toggled(heads, [0, 7]) == ((3, 4),)
    assert LIMITS.toggled(LIMITS.toggled(heads, [5, 5]), [5, 5]) == heads


def test_first_view_works_without_any_setting(engine):
    session, screen = opened([engine], LabState("antonym", text="big"))
    found = engine.setting(session.state)
    assert (session.state.layer, session.state.alpha, session.state.site) == found
    assert screen.texts()["patched"].split()[:1] == ["small"] and screen.texts()["plain"].split()[:1] != ["small"]
    assert screen["task"]["maps"][0]["aie"][0][7] == pytest.approx(float(engine.effects(STATE).aie[0, 7]), abs=1e-5)
    assert screen["result"]["models"][0]["columns"][1]["right"] is True
    assert not screen["status"]["error"] and "s in all" in screen["status"]["done"]
    session.close()


def test_strength_changes_the_patched_text_alone(opened_lab):
    session, screen = opened_lab
    before = screen.texts()
    session.change(alpha=0.0)
    assert session.wait()
    after = screen.texts()
    assert after["plain"] == before["plain"] == after["patched"] != before["patched"]


def test_random_vector_has_the_same_norm_and_another_text(engine, opened_lab):
    session, screen = opened_lab
    session.change(random=True, seed=5)
    assert session.wait()
    vector = session.vectors()[0]
    with steer(engine.model, vector.random_like(5), layer=2, alpha=4.0):
        alone = complete(engine.model, [engine.prompt(session.state)], max_new_tokens=12)
    assert [screen.texts()["random"]] == alone
    assert vector.random_like(5).norm == pytest.approx(vector.norm, rel=1e-5)


def test_toggled_heads_make_the_vector(opened_lab):
    session, screen = opened_lab
    strongest = session.vectors()[0]
    first = strongest.heads[0]
    session.toggle(list(first))
    assert session.wait()
    without = session.vectors()[0]
    assert first not in without.heads and len(without.heads) == 9
    assert screen["result"]["models"][0]["vector"]["norm"] == pytest.approx(without.norm)
    session.toggle(list(first))
    assert sorted(session.vectors()[0].heads) == sorted(strongest.heads)
    torch.testing.assert_close(session.vectors()[0].theta, strongest.theta, atol=1e-5, rtol=1e-5)
    session.change(heads=[])
    assert session.wait()
    assert session.vectors() == [None] and screen.texts()["patched"] == screen.texts()["plain"]
    assert screen["result"]["models"][0]["vector"] is None
    session.change(k=10)
    assert session.vectors()[0].heads == strongest.heads


def test_another_task_brings_its_own_heads_and_setting(opened_lab):
    session, screen = opened_lab
    session.change(instruction="Give the opposite of the word.", heads=[(5, 5)])
    session.change(task="english_french")
    assert session.wait()
    state = session.state
    assert state.text == "big" and state.instruction == "" and state.heads is None
    assert (state.layer, state.alpha, state.site) == session.engines[0].setting(state)
    assert screen.texts()["patched"].split()[:1] == ["grand"]


def test_code_gives_the_same_texts(opened_lab):
    session, screen = opened_lab
    session.change(random=True, seed=2, heads=[(0, 7), (0, 1), (3, 4)], positions="every", max_new_tokens=5)
    assert session.wait()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(screen["code"], {})
    assert printed.getvalue().splitlines() == [str([text]) for text in screen.texts().values()]


OWN = PromptTemplate("own", "{instruction}\n{input} ->", "{input} ->", "{input} -> {answer}\n")


def random_state(draw: Random) -> dict:
    """Values of a state that nobody would think of."""
    n_shots = draw.choice([None, 0, 1, 3])
    told = ["task", "Say the opposite.", ("Say the opposite.", "Give the contrary.")]
    place = {"layer": draw.randrange(6), "alpha": draw.uniform(-8, 8), "site": "attn_out"}
    heads = [[draw.randrange(6), draw.randrange(8)] for _ in range(draw.randrange(1, 12))]
    return {
        "text": draw.choice(["big", "no such word", "hot"]),
        "template": draw.choice(["plain", "after", "qa", "raw", OWN]),
        "n_shots": n_shots,
        "told": draw.choice(told + ["none"] * (n_shots in (None, 3))),
        "bare": draw.random() < 0.2,
        "instruction": draw.choice(["", "Give the opposite of the word."]),
        "heads": draw.choice([None, [], heads, heads]),
        "random": draw.random() < 0.5,
        "seed": draw.randrange(1000),
        "positions": draw.choice(["prompt", "every", "all"]),
        "max_new_tokens": draw.randrange(1, 6),
        "begins": draw.choice(["", "", "the {word}"]),
        "demos": draw.choice([None, None, [["up", "down"], ["a {b}", "c"]]]),
        "demo_seed": draw.choice([None, 4]),
        "system": draw.choice(["", "Be brief."]),
        "view": "code",
        **draw.choice([{"layer": None}, place]),
    }


@pytest.mark.parametrize("number", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 9))])
def test_copied_code_gives_the_texts_of_any_state(engine, number, tmp_path, monkeypatch):
    draw = Random(number)
    monkeypatch.setattr(ivlens, "load_model", lambda name: engine.model)
    monkeypatch.chdir(tmp_path)
    session, screen = opened([engine])
    if number % 3 == 0:
        recipe = PromptRecipe(draw.choice(["qa", OWN]), n_shots=draw.choice([0, 2]), seed=draw.randrange(3))
        measured = ivlens.head_effects(engine.model, engine.tasks["antonym"], recipe=recipe, n_prompts=4)
        InstructionVector.from_effects(measured, 4).save(tmp_path / "a vector.safetensors")
    values = random_state(draw)
    if number % 3 == 0:
        values["heads"] = None  # naming heads would turn away from the file
        session.change(**values)
        session.load("a vector.safetensors")
        assert session.state.source == "file" and session.state.template == recipe.template
        session.change(template=values["template"])
    else:
        session.change(**values)
    assert session.wait()
    assert not screen["status"]["error"], screen["status"]
    assert_code_prints_what_is_shown(screen)
    session.close()


def test_code_spells_how_given_effects_were_measured(pocket, monkeypatch):
    task, other = ivlens.load_task("antonym"), ivlens.load_model("pocket")
    with torch.no_grad():
        other.unembed.W_U.mul_(0.9)
    models = {"pocket": pocket, "other": other}
    monkeypatch.setattr(ivlens, "load_model", lambda name: models[name])
    recipe = PromptRecipe("after", instruction="Give the opposite of the word.", n_shots=2, seed=3)
    options = EffectOptions(mode="add", n_mean_prompts=9, correct_only=True)
    effects = ivlens.head_effects(
        pocket, task, recipe=recipe, corruption="drop", score="logprob", n_prompts=5, options=options
    )
    given = Engine(pocket, {"antonym": task}, EngineOptions(n_prompts=4, n_search=4), [effects])
    session, screen = opened([given], Opened((given,)).state(text="big"))
    assert given.effects(session.state) is effects
    state = session.state
    assert (state.template, state.n_shots, state.instruction) == ("after", 2, "Give the opposite of the word.")
    told = "instruction='Give the opposite of the word.'"
    assert f"recipe = ivlens.PromptRecipe(template='after', {told}, n_shots=2, seed=3)" in screen["code"]
    assert "corruption='drop', n_prompts=5, score='logprob'" in screen["code"]
    assert "options=ivlens.EffectOptions(mode='add', n_mean_prompts=9, correct_only=True)" in screen["code"]
    assert_code_prints_what_is_shown(screen)
    prompt = screen["result"]["models"][0]["prompt"]
    clean = ivlens.build_prompts(pocket.tokenizer, task, [task.find("big")], recipe)
    assert prompt == clean.texts[0], "shown as the measured prompts were made, demonstrations and all"
    second = Engine(other, given.tasks, given.options)
    second.identity = replace(second.identity, name="other")
    for donor in ("own", "first"):
        session, screen = opened([given, second], replace(state, donor=donor, random=True))
        assert ("iv = iv.for_model(model)" in screen["code"]) == (donor == "first")
        assert_code_prints_what_is_shown(screen)


def test_a_loaded_vector_brings_its_recipe_and_is_what_is_searched_for(engine, opened_lab, tmp_path):
    session, screen = opened_lab
    recipe = PromptRecipe("qa", instruction=None, n_shots=4, seed=1)
    measured = ivlens.head_effects(engine.model, engine.tasks["antonym"], recipe=recipe, n_prompts=4)
    vector = -1 * InstructionVector.from_effects(measured, 3)
    session.change(instruction="Give the opposite of the word.")
    session.load(vector.save(tmp_path / "v.safetensors"))
    assert session.wait()
    state = session.state
    assert (state.template, state.n_shots, state.told, state.instruction) == ("qa", 4, "none", "")
    prompt = screen["result"]["models"][0]["prompt"]
    assert prompt.count("\nA:") == 5 and "Instruction" not in prompt
    task = engine.tasks["antonym"]
    assert prompt == ivlens.build_prompts(engine.model.tokenizer, task, [task.find("big")], recipe).texts[0]
    session.change(bare=True)
    assert session.wait() and screen["result"]["models"][0]["prompt"] == "Q: big\nA:"
    session.search()
    assert session.wait()
    grid = ivlens.sweep_settings(engine.model, task, vector, grid=replace(SEARCH, n_finalists=0), n_prompts=12, seed=1)
    best = grid[grid["accuracy"] == grid["accuracy"].max()]
    found = (session.state.layer, session.state.alpha, session.state.site)
    assert found in set(best[["layer", "alpha", "site"]].itertuples(index=False, name=None))


def test_hand_picked_heads_are_what_is_searched_for(engine, opened_lab, monkeypatch):
    """Not the strongest heads of the map."""
    session, _ = opened_lab
    searched, search = [], ivlens.show.lab.measures.best_settings
    monkeypatch.setattr(
        ivlens.show.lab.measures, "best_settings", lambda *given: (searched.append(given[1]), search(*given))[1]
    )
    session.change(heads=tuple(engine.effects(STATE).top_heads(30)[-2:]))
    session.search()
    assert session.wait()
    (theta,) = searched
    assert torch.equal(theta[0], session.vectors()[0].theta)
    state = session.state
    assert (state.layer, state.alpha, state.site) == engine.setting(state)


def test_saved_vector_comes_back(opened_lab, tmp_path):
    session, screen = opened_lab
    name, content = session.saved()
    assert name == "antonym.safetensors"
    before = screen.texts()
    session.change(heads=[])
    session.load_bytes(name, content)
    assert session.wait()
    assert screen.texts() == before and screen["state"]["source"] == "file"
    assert "InstructionVector.load('antonym.safetensors')" in screen["code"]
    assert InstructionVector.load(_written(tmp_path / name, content)).heads == session.vectors()[0].heads
    session.toggle([5, 5])
    assert session.state.source == "heads"
    with pytest.raises(ValueError, match="notes.txt"):
        session.load_bytes("notes.txt", b"no vector")


def _written(path, content):
    path.write_bytes(content)
    return path


def test_errors_are_shown_and_do_not_stay(opened_lab):
    session, screen = opened_lab
    session.change(text=" ")
    assert session.wait()
    assert "the input is empty, expected some text" in screen["status"]["error"]
    session.change(text="big")
    assert session.wait()
    assert not screen["status"]["error"]


def test_three_sessions_at_once_give_right_texts(engine):
    states = [replace(STATE, task=task) for task in ("antonym", "english_french", "synonym")]
    alone = []
    for state in states:
        session, screen = opened([engine], state)
        alone.append(screen.texts())
        session.close()
    assert len({one["patched"] for one in alone}) == 3
    screens = [Screen() for _ in states]
    sessions = [Session([engine], state, screen) for state, screen in zip(states, screens, strict=True)]
    for alpha in (1.0, -4.0, 8.0, 4.0):
        for session in sessions:
            session.change(alpha=alpha)
        time.sleep(0.02)
    for session in sessions:
        assert session.wait()
    assert [screen.texts() for screen in screens] == alone
    for session in sessions:
        session.close()


def test_new_event_preempts_a_running_generation(engine):
    screen = Screen()
    session = Session([engine], replace(STATE, max_new_tokens=200), screen)
    engine.effects(STATE)
    writing = threading.Event()

    def show(channel, value):
        screen(channel, value)
        if channel == "result":
            writing.set()

    session._show = session._work.show = show
    session.refresh()
    assert writing.wait(20)
    session.change(task="english_french", max_new_tokens=3)
    assert session.wait()
    after = [value for channel, value in screen.history if channel == "result"]
    assert screen.texts()["patched"].split()[:1] == ["grand"]
    assert max(len(value["models"][0]["columns"][0]["text"].split()) for value in after) < 190
    session.close()


def test_whether_the_model_can_do_the_task_is_shown_before_its_heads_are_measured(pocket, monkeypatch):
    def slow(*given, **options):
        time.sleep(1)
        return ivlens.head_effects(*given, **options)

    monkeypatch.setattr("ivlens.show.lab.measures.head_effects", slow)
    tasks = {name: ivlens.load_task(name) for name in ("antonym", "synonym")}
    fresh = Engine(pocket, tasks, EngineOptions(n_prompts=2, n_search=0))
    session, screen = opened([fresh], replace(STATE, alpha=1.0, layer=2, site="resid_post"))
    (said,) = screen["ability"]
    assert said["text"].startswith("clean accuracy 1.00") and "bare accuracy" in said["text"] and said["warning"] == ""
    channels = [channel for channel, value in screen.history if channel != "task" or value["maps"]]
    assert channels.index("ability") < channels.index("task")
    assert "clean minus corrupted score" in screen["task"]["maps"][0]["taken"]
    at = screen.history.index(("ability", screen["ability"]))
    assert any(channel == "result" for channel, _ in screen.history[:at]), "the plain completion comes before it"
    first, whole = (float(number) for number in screen["status"]["done"].split() if number[0].isdigit())
    assert whole - first > 1, "the first tokens are those of the plain completion"
    direct = ivlens.head_effects(pocket, tasks["antonym"], n_prompts=2)
    assert fresh.effects(session.state).ability == direct.ability == fresh.ability(session.state)
    session.change(told="Qqq.")
    assert session.wait() and "no vector can carry" in screen["ability"][0]["warning"]
    assert "ivlens prompts --model pocket --task antonym" in screen["ability"][0]["warning"]
    session.close()


def test_a_known_task_does_not_wait_for_another_page_that_measures(pocket, monkeypatch):
    tasks = {name: ivlens.load_task(name) for name in ("antonym", "synonym")}
    shared, begun = Engine(pocket, tasks, EngineOptions(n_prompts=2, n_search=0)), threading.Event()
    first, screen = opened([shared])
    stuck = threading.Event()

    def slow(model, task, *, progress, **options):
        begun.set()
        while not stuck.wait(0.01):
            progress(1, 2)

    monkeypatch.setattr("ivlens.show.lab.measures.head_effects", slow)
    others = [Session([shared], replace(STATE, task="synonym"), Screen()) for _ in range(2)]
    others[0].refresh()
    assert begun.wait(20)
    others[1].change(told="Say it.")  # needs effects of its own, and waits for its turn
    before = screen["result"]
    first.change(alpha=2.0, text="hot")
    assert first.wait(30) and screen["result"] is not before and not screen["status"]["error"]
    at_work = {one["page"]: one["what"] for one in screen["running"]["at_work"]}
    assert screen["running"]["page"] == first.number and at_work[others[0].number].startswith(
        "Measuring 48 heads of pocket on synonym"
    )
    assert at_work[others[1].number].startswith("Waiting to measure synonym") and first.number not in at_work
    with pytest.raises(ValueError, match="still being measured, expected a vector to save; wait"):
        others[0].saved()
    for each in reversed(others):  # the one that waits is let go as well
        each.close()
        assert each.wait(10)
    assert screen["running"]["at_work"] == []
    first.close()


def hooks_of(model) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("end", ["close", "change"])
def test_a_pass_ends_between_two_blocks_once_nobody_waits_for_it(engine, end):
    model, before, ran, reading = engine.model, hooks_of(engine.model), [], threading.Event()
    engine.effects(STATE)

    def slow(block, given, out):
        if given[0].shape[1] > 100:
            ran.append(time.monotonic())
            reading.set()
            time.sleep(0.3)

    handles = [block.register_forward_hook(slow) for block in model.blocks]
    screen = Screen()
    session = Session([engine], STATE, screen)
    session.change(template="raw", text="big small " * 60)
    assert reading.wait(20), screen["status"]
    session.close() if end == "close" else session.change(text="big", template="plain")
    assert session.wait(20) and len(ran) <= 2
    for handle in handles:
        handle.remove()
    assert hooks_of(model) == before
    if end == "change":
        assert screen.texts()["patched"].split()[:1] == ["small"] and not screen["status"]["error"]
    session.close()


@pytest.mark.parametrize("positions", ["prompt", "every"])
@pytest.mark.parametrize("site", ["resid_post", "attn_out"])
def test_a_long_prompt_is_read_in_portions_and_completed_alike(pocket, site, positions, monkeypatch):
    deltas = torch.stack([torch.zeros(128), 20 * torch.randn(128, generator=torch.Generator().manual_seed(3))])
    prompt, what = "Input: happy\nOutput: sad\n" * 4 + "Input: big\nOutput:", Addition(deltas, 1, site, positions)
    *_, whole = stream_completions(pocket, prompt, what, max_new_tokens=6)
    passes = []
    handle = pocket.blocks[0].register_forward_hook(lambda block, given, out: passes.append(tuple(given[0].shape[:2])))
    monkeypatch.setattr("ivlens.show.lab.streams.PORTION", 8)
    *_, parts = stream_completions(pocket, prompt, what, max_new_tokens=6)
    handle.remove()
    assert [row.text for row in parts] == [row.text for row in whole] and len({row.text for row in whole}) == 2
    for one, other in zip(parts, whole, strict=True):
        assert [p for _, p in one.top] == pytest.approx([p for _, p in other.top], abs=1e-4)
    read = [shape for shape in passes if shape[0] == 1]
    n_tokens = len(pocket.tokenizer(prompt)["input_ids"])
    assert len(read) > 2 and max(length for _, length in read) == 8 and (2, n_tokens) not in passes


def test_prompts_have_a_limit(pocket, monkeypatch):
    monkeypatch.setattr("ivlens.show.lab.streams.MAX_TOKENS", 10)
    with pytest.raises(ValueError, match="the prompt has .* tokens, expected at most 10 in the lab; shorten it"):
        next(stream_completions(pocket, "big " * 20, Addition(torch.zeros(1, 128), 0)))


def test_turns_are_taken_in_order_and_given_up():
    turns, order, inside, go_on = Turns(), [], threading.Event(), threading.Event()

    def first():
        with turns.taken(lambda: False):
            inside.set()
            go_on.wait(10)

    def later(name, unwanted=lambda: False):
        try:
            with turns.taken(unwanted, lambda: order.append(f"{name} waits")):
                order.append(name)
        except Unwanted:
            order.append(f"{name} gone")

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert inside.wait(10)
    for name, unwanted in (("a", lambda: False), ("b", lambda: True), ("c", lambda: False)):
        threads.append(threading.Thread(target=later, args=(name, unwanted)))
        threads[-1].start()
        time.sleep(0.05)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert order == ["a waits", "b waits", "b gone", "c waits", "a", "c"]


def test_another_task_ends_a_measurement_and_another_strength_does_not(pocket, monkeypatch):
    tasks = {name: ivlens.load_task(name) for name in ("antonym", "synonym")}
    fresh, begun, go_on, ends = Engine(pocket, tasks, EngineOptions(n_prompts=2, n_search=0)), [], threading.Event(), []

    def slow(model, task, *, progress, **options):
        begun.append(task.name)
        if task.name == "antonym":
            assert go_on.wait(20)
            try:
                progress(1, 2)
            except Unwanted:
                ends.append(task.name)
                raise
        return ivlens.head_effects(model, task, progress=progress, **options)

    monkeypatch.setattr("ivlens.show.lab.measures.head_effects", slow)
    for changes, ended, told in (({"alpha": 2.0}, [], ["antonym"]), ({"task": "synonym"}, ["antonym"], ["synonym"])):
        fresh._effects.clear(), begun.clear(), ends.clear(), go_on.clear()
        screen = Screen()
        session = Session([fresh], STATE, screen)
        session.refresh()
        while not begun:
            time.sleep(0.01)
        session.change(**changes)
        go_on.set()
        assert session.wait()
        assert ends == ended and begun[-1:] == told and screen["status"]["error"] == ""
        assert {task for task, _ in fresh._effects} == set(told)
        session.close()


def test_worker_runs_the_newest_job_only():
    ran, errors = [], []
    worker, go, began = Worker(errors.append), threading.Event(), threading.Event()

    def slow(cancelled):
        began.set()
        go.wait(10)
        ran.append(("slow", cancelled()))

    worker.submit(slow)
    assert began.wait(10)
    worker.submit(lambda cancelled: ran.append(("dropped", cancelled())))
    worker.submit(lambda cancelled: ran.append(("newest", cancelled())))
    go.set()
    assert worker.wait(10)
    assert ran == [("slow", True), ("newest", False)]

    def fails(cancelled):
        raise KeyError("lost")

    worker.submit(fails)
    assert worker.wait(10) and isinstance(errors[0], KeyError)
    worker.close()
    worker.submit(slow)
    assert len(ran) == 2


def test_the_card_of_a_head_says_what_the_library_says(engine, opened_lab):
    session, screen = opened_lab
    effects = engine.effects(session.state)
    session.change(head=[3, 4])
    assert session.wait() and screen["view"]["done"] and screen["view"]["head"] == [3, 4]
    (card,) = screen["view"]["cards"]
    aie, low, high = (float(each[3, 4]) for each in (effects.aie, *effects.interval(simultaneous=True)))
    assert card["effect"] == pytest.approx([aie, low, high], abs=1e-5)
    strongest = effects.top_heads(48)
    assert card["rank"] == strongest.index((3, 4)) + 1
    alone = InstructionVector.from_effects(effects, heads=[(3, 4)])
    assert [token for token, _ in card["tokens"]] == [token for token, _ in alone.decode(k=10)]
    assert card["cosine"] == pytest.approx(alone.cosine(session.vectors()[0]), abs=1e-5)
    column = effects.cie[:, 3, 4]
    assert card["most"][0][0] == effects.inputs[int(column.argmax())]
    assert card["least"][0][1] == pytest.approx(float(column.min()), abs=1e-6)
    shown, measured = card["attention"]
    assert [token for token, _, _ in shown["tokens"]][-2:] == ["Output", ":"] or shown["tokens"][-1][
        0
    ].strip() == "Output:"
    for each in (shown, measured):
        assert sum(share for _, share in each["shares"]) == pytest.approx(1, abs=2e-3)
        assert sum(weight for _, weight, _ in each["tokens"]) == pytest.approx(1, abs=1e-2)
    assert "instruction" in dict(measured["shares"]) and "instruction" not in dict(shown["shares"])


def test_the_effect_on_an_input_is_that_of_the_map(engine, opened_lab):
    session, screen = opened_lab
    effects, task = engine.effects(session.state), engine.tasks["antonym"]
    for text, among in ((effects.inputs[3], True), (task.split("test")[0].input, False)):
        session.change(text=text, head=[0, 7])
        assert session.wait() and screen["view"]["cards"][0]["here"]["among"] is among
    example = task.split("test")[0]
    plan = Plan.of(task, effects.recipe, effects.settings["corruption"], None)
    batch = plan.pairs(engine.model, [example], "prob").corrupted
    every = ivlens.causal_indirect_effect(
        engine.model, batch.tokens, batch.attention_mask, batch.answer_tokens, effects.mean_z, method="reference"
    )
    assert screen["view"]["cards"][0]["here"]["value"] == pytest.approx(float(every[0, 0, 7]), abs=1e-5)
    session.change(text="no such word")
    assert session.wait() and "does not list this input" in screen["view"]["cards"][0]["here"]["why"]


def test_another_view_leaves_the_completions_as_they_are(opened_lab):
    session, screen = opened_lab
    screen.history.clear()
    session.change(head=[1, 1])
    session.change(view="code")
    assert session.wait() and "result" not in dict(screen.history)
    session.change(alpha=1.0)
    assert session.wait() and "result" in dict(screen.history)


def test_two_checkpoints_side_by_side(pocket, engine):
    other = ivlens.load_model("pocket")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    tuned = Engine(other, engine.tasks, engine.options)
    session, screen = opened([engine, tuned])
    own, of_second = session.vectors()
    assert own.heads == of_second.heads and not torch.equal(own.theta, of_second.theta)
    for index, (each, vector) in enumerate([(engine, own), (tuned, of_second)]):
        with steer(each.model, vector, layer=2, alpha=4.0):
            alone = complete(each.model, [each.prompt(session.state)], max_new_tokens=12)
        assert [screen.texts(index)["patched"]] == alone
    session.change(donor="first")
    assert session.wait()
    first, second = session.vectors()
    assert second is first
    with steer(other, own.for_model(other), layer=2, alpha=4.0):
        assert [screen.texts(1)["patched"]] == complete(other, [engine.prompt(session.state)], max_new_tokens=12)
    session.close()


def test_answers_and_prompts(engine):
    assert begins_right(" small\n", ("small", "little")) is True
    assert begins_right(" size", ("small",)) is False
    assert begins_right(" smaller", ("small",)) is False and begins_right(" small.", ("small",)) is True
    assert begins_right("12", ("1",)) is False and begins_right("12", ("1", "12")) is True
    assert begins_right("anything", ()) is None
    assert engine.answers(replace(STATE, text="no such word")) == ()
    assert engine.prompt(replace(STATE, template="raw", text="big is")) == "big is"
    asked = engine.prompt(replace(STATE, instruction="Say the opposite."))
    assert asked == "Instruction: Say the opposite.\nInput: big\nOutput:"
    assert set(asdict(STATE)) == set(Limits(("antonym",), 6, 8)._checks())


def test_lab_from_python(pocket):
    pytest.importorskip("panel")
    lab = ivlens.lab(pocket, tasks=["antonym", "english_french"], text="big", n_prompts=8, n_search=8)
    assert lab.wait() and lab.texts[0]["patched"].split()[:1] == ["small"]
    assert lab.iv is not None and list(lab.iv.heads) == lab.effects.top_heads(10)
    lab.set(task="english_french", random=True)
    assert set(lab.texts[0]) == {"plain", "patched", "random"} and lab.state.text == "big"
    assert lab.texts[0]["patched"].split()[:1] == ["grand"] and "load_task('english_french')" in lab.code()
    with pytest.raises(ValueError, match="alpha is 1000.0, expected a strength"):
        lab.set(alpha=1000.0)
    # effects that are there are not measured again, and those of another task are refused
    effects = lab.effects
    assert ivlens.lab(pocket, tasks=["english_french"], effects=[effects]).effects is effects
    with pytest.raises(ValueError, match="'english_french' .* belong to none of the lab's tasks"):
        ivlens.lab(pocket, tasks=["antonym"], effects=[effects])


def test_lab_begins_with_the_recipe_it_is_given(pocket, tmp_path):
    pytest.importorskip("panel")
    path = tmp_path / "own.json"
    path.write_text(json.dumps({name: value for name, value in vars(OWN).items() if name != "chat"}))
    few = {"n_prompts": 4, "n_search": 0, "layer": 1, "alpha": 2, "site": "resid_post", "text": "big"}
    recipe = PromptRecipe(str(path), instruction=("Say the opposite.", "Give the contrary."), n_shots=2, seed=5)
    lab = ivlens.lab(pocket, ["antonym", "synonym"], recipe=recipe, **few)
    assert lab.effects.recipe == recipe and lab.state.instruction == "Say the opposite."
    assert lab.wait() and lab._last["state"]["template"] == "own"
    prompt = lab._last["result"]["models"][0]["prompt"]
    assert prompt.count(" -> ") == 2 and prompt.endswith("Say the opposite.\nbig ->")
    lab.set(template="plain")
    lab.session.change(template="own")  # as the page sends it
    assert lab.state.template == OWN
    lab.set(task="synonym")  # has other instructions, and is asked in the same form
    assert (lab.state.told, lab.state.instruction, lab.state.n_shots, lab.state.template) == ("task", "", 2, OWN)
    lab.set(template=str(path))
    with pytest.raises(ValueError, match="template is '.*, expected plain, after"):
        lab.session.change(template=str(path))  # a page names no files
    effects = [
        ivlens.head_effects(pocket, ivlens.load_task(task), recipe=PromptRecipe(form, n_shots=n), n_prompts=2)
        for task, form, n in (("antonym", "after", 0), ("synonym", "qa", 2))
    ]
    lab = ivlens.lab(pocket, ["antonym", "synonym"], effects=effects, **few)
    assert (lab.state.template, lab.state.n_shots) == ("after", None) and lab.effects is effects[0]
    lab.set(task="synonym")
    assert (lab.state.template, lab.state.n_shots) == ("qa", 2) and lab.effects is effects[1]
    assert ivlens.lab(pocket, ["antonym"], effects=effects[:1], recipe=PromptRecipe("qa"), **few).state.template == "qa"


def test_a_task_without_instructions_is_shown_bare_and_measured_with_demonstrations(pocket):
    task = replace(ivlens.load_task("antonym"), name="opposites", instructions=())
    mute = Engine(pocket, {"opposites": task}, EngineOptions(n_prompts=8, n_search=8))
    session, screen = opened([mute], LabState("opposites", text="big"))
    assert mute.effects(session.state).recipe == PromptRecipe(n_shots=5)
    assert screen["result"]["models"][0]["prompt"] == "Input: big\nOutput:" and not screen["status"]["error"]
    session.change(n_shots=0)
    assert session.wait() and "expected 2 or more demonstrations" in screen["status"]["error"]
    session.change(n_shots=20, told="none")
    assert session.wait() and not screen["status"]["error"]
    session.close()


def test_lab_refuses_what_does_not_fit(pocket, new_model, byte_level):
    pytest.importorskip("panel")
    with pytest.raises(ValueError, match="lab got 'strength', expected its own arguments or one of task, text"):
        ivlens.lab(pocket, tasks=["antonym"], strength=2)
    with pytest.raises(ValueError, match="every name once"):
        ivlens.lab(pocket, tasks=["antonym", "antonym"])
    with pytest.raises(ValueError, match="layer is 6, expected a whole number from 0 to 5"):
        ivlens.lab(pocket, tasks=["antonym"], layer=6)
    with pytest.raises(ValueError, match="compare two checkpoints of one architecture"):
        ivlens.lab(pocket, tasks=["antonym"], compare=new_model("llama", byte_level))


def test_lab_on_the_command_line_says_what_is_wrong(monkeypatch, capsys):
    pytest.importorskip("panel")
    assert cli.main(["lab", "--task", "antonym", "--layer", "6", "--no-browser"]) == 2
    assert "layer is 6, expected a whole number from 0 to 5" in capsys.readouterr().err
    assert cli.main(["lab", "--task", "antonym", "--n-prompts", "0", "--no-browser"]) == 2
    assert "n_prompts is 0, expected a whole number, 1 or more" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["lab", "--task", "antonym", "--port", port, "--no-browser"]) == 2
    assert f"port {port} cannot be used" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "panel", None)
    assert cli.main(["lab", "--no-browser"]) == 2
    assert "the lab needs panel, which is not installed; pip install 'ivlens[lab]'" in capsys.readouterr().err


def test_options_of_the_command_make_the_recipe(monkeypatch, capsys):
    pytest.importorskip("panel")

    def told(engines, state, *, port):
        raise ValueError(f"{state.template} {state.n_shots} {state.told} {state.instruction} {engines[0].options.seed}")

    monkeypatch.setattr("ivlens.show.lab.server.open_server", told)
    words = [
        "lab",
        "--task",
        "antonym",
        "--template",
        "qa",
        "--n-shots",
        "2",
        "--instruction",
        "Say it.",
        "--seed",
        "3",
    ]
    assert cli.main(words) == 2
    assert "qa 2 ('Say it.',) Say it. 3" in capsys.readouterr().err
    assert cli.main(words[:7]) == 2
    assert "qa 2 task 0" in capsys.readouterr().err


def test_page_survives_any_event(pocket):
    pytest.importorskip("panel")
    lab = ivlens.lab(pocket, tasks=["antonym"], n_prompts=8, n_search=0)
    assert lab.wait()
    before = lab.state
    events = [None, "{", "[]", "3", '{"kind": "set"}', '{"kind": "set", "page": "a", "seq": 1}']
    events += [json.dumps({"kind": kind, "page": "a", "seq": 2}) for kind in ("set", "toggle", "load", "run", "save")]
    events += [json.dumps({"kind": "set", "page": "a", "seq": 3, "values": bad}) for bad in ([], 3, {"layer": [1]})]
    events += [json.dumps({"kind": "toggle", "page": "a", "seq": 4, "head": head}) for head in (None, [9, 9], "L0H1")]
    events += [json.dumps({"kind": "load", "page": "a", "seq": 5, "name": "x", "content": "!"})]
    odd = ["[" * 100_000, *(f'{{"kind": "set", "page": "a", "seq": {seq}}}' for seq in ("Infinity", "1e400", "-1"))]
    odd += [json.dumps({"kind": [], "page": {}, "seq": "9" * 5000}), '{"kind": "here", "page": "a", "seq": 0}']
    odd += [json.dumps({"kind": "set", "page": str(n) * 100_000, "seq": 10**30, "values": {}}) for n in range(99)]
    odd += [json.dumps({"kind": "load", "page": "a", "seq": 6, "name": "x" * 100_000, "content": "AAAA"})]
    for event in odd:
        lab._hear(event)
    assert lab.wait()
    for event in events:
        lab._hear(event)
    assert lab.wait() and lab.state == before
    assert len(json.dumps(lab._seen)) < 50_000 and len(lab._view.status) < 2_000
    assert json.loads(lab._view.status)["value"]["error"]
