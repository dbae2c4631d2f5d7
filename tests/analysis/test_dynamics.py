"""Identities of the dynamics: nothing changed, one head silenced, an overlay planted, the writing damaged."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ivlens import load_model, load_task
from ivlens.analysis.dynamics import (
    CausalOptions,
    Recorder,
    TrackOptions,
    causal_tests,
    compare,
    leads,
    measure_stage,
    predictors,
    recording,
    similarity,
    track,
)
from ivlens.analysis.dynamics.stages import Stage
from ivlens.common.store import Store, verify
from ivlens.models import pocket_path
from ivlens.models.checkpoints import checkpoint_series
from ivlens.prompts import PromptRecipe
from ivlens.steering import prompt_sets
from ivlens.steering.prompt_sets import PromptSets
from ivlens.steering.search import Grid
from ivlens.tuning import Along, TuneOptions, finetune
from ivlens.vectors.vector import check_belongs

TASKS = [load_task(name) for name in ("antonym", "english_french", "capitalize")]
OPTIONS = TrackOptions(n_prompts=8, k=5, n_judge_prompts=24)
SHAPE = (6, 8)


def plain_pocket():
    return AutoModelForCausalLM.from_pretrained(pocket_path(), attn_implementation="eager").eval()


def bridge(plain):
    return load_model("changed", hf_model=plain, tokenizer=AutoTokenizer.from_pretrained(pocket_path()))


def without_heads(heads):
    """The built-in model in which these heads write nothing."""
    plain = plain_pocket()
    d_head = plain.config.hidden_size // plain.config.num_attention_heads
    for layer, head in heads:
        weight = plain.model.layers[layer].self_attn.o_proj.weight
        weight.data[:, head * d_head : (head + 1) * d_head] = 0
    return bridge(plain)


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


@pytest.fixture(scope="module")
def first(pocket):
    return measure_stage(pocket, TASKS, OPTIONS, name="first", step=0)


# ---- a model and itself


def test_a_model_compared_with_itself(pocket, first):
    again = measure_stage(pocket, TASKS, OPTIONS, name="again", step=1, first=pocket)
    found = compare([first, again])
    rows = found.tasks[found.tasks["checkpoint"] == "again"]
    for column in ("iv_cosine_fixed", "iv_cosine_rechosen", "z_cosine", "head_overlap", "aie_rank_correlation"):
        assert rows[column].to_list() == pytest.approx([1.0] * len(TASKS), abs=1e-6), column
    assert (rows["distance"] == 0).all() and (rows["norm_ratio"] == 1).all()
    assert (found.heads["drift"] == 0).all() and float(found.drift_map().abs().max()) == 0
    assert len(found.heads) == 2 * len(TASKS) * SHAPE[0] * SHAPE[1]


def test_what_cosines_are_read_beside(first):
    found = compare([first, first]).tasks.iloc[:3]
    assert (found["split_half"] > 0.9).all()
    assert (found["between_max"] >= found["between_mean"]).all() and (found["between_max"] < 0.9).all()
    assert (found["accuracy"] > 0.9).all()


def test_hidden_state_cosines_are_those_of_the_model(pocket, first):
    from ivlens.forward.hooks import captured_residual

    batch = PromptSets(pocket, TASKS[0], n_prompts=24).batch("select", corrupted=False)
    with torch.no_grad(), captured_residual(pocket, [3]) as kept:
        pocket(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
    theta = first.vector("antonym").theta
    want = torch.cosine_similarity(kept[3][:, -1], theta[None], dim=-1).mean()
    layers = compare([first, first]).layers
    got = layers[(layers["task"] == "antonym") & (layers["layer"] == 3)]["cosine"].iloc[0]
    assert got == pytest.approx(float(want), abs=1e-5)


def test_vectors_are_those_of_the_effects(pocket, first):
    from ivlens import InstructionVector, head_effects

    vector = InstructionVector.from_effects(head_effects(pocket, TASKS[1], n_prompts=8), k=5)
    mine = first.vector("english_french")
    assert mine.heads == vector.heads
    torch.testing.assert_close(mine.theta, vector.theta)
    torch.testing.assert_close(mine.head_means, vector.head_means)


# ---- one head silenced


def test_a_silenced_head_is_found_by_the_drift_map(pocket, first):
    changed = without_heads([(2, 3)])
    found = compare([first, measure_stage(changed, TASKS, OPTIONS, name="zeroed", first=pocket)])
    drift = found.drift_map("zeroed")
    assert divmod(int(drift.argmax()), SHAPE[1]) == (2, 3)
    assert float(drift[2, 3]) == pytest.approx(1.0)
    others = torch.ones(SHAPE, dtype=torch.bool)
    others[2, 3] = False
    assert float(drift[:3][others[:3]].max()) < 1e-4, "heads before it and beside it did not change"
    assert 0 < float(drift[3:].max()) < 1.0, "heads after it read something else"
    assert found.tasks["distance"].iloc[-1] > 0
    with pytest.raises(KeyError, match="no checkpoint 'other', expected one of first, zeroed"):
        found.drift_map("other")


# ---- a planted overlay


def overlaid(theta, layer):
    """The built-in model with `-theta` added after a layer wherever the cue stands: at the last prompt token only."""
    plain = plain_pocket()
    cue = AutoTokenizer.from_pretrained(pocket_path()).convert_tokens_to_ids("Output:")
    where = {}

    def remember(module, inputs, output):
        where["cue"] = inputs[0] == cue

    def subtract(module, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        changed = hidden - where["cue"][..., None].to(hidden) * theta
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    plain.model.embed_tokens.register_forward_hook(remember)
    plain.model.layers[layer].register_forward_hook(subtract)
    return bridge(plain)


@pytest.mark.parametrize("layer", [1, 3])
def test_an_overlay_is_undone_exactly_by_reinjection_there(pocket, first, layer):
    task = TASKS[1]
    tuned = overlaid(4 * first.vector(task.name).theta, layer)
    last = measure_stage(tuned, TASKS, OPTIONS, name="overlaid", first=pocket)
    grid = Grid(layers=(layer,), alphas=(4.0,), sites=("resid_post",))
    options = CausalOptions(grid=grid, n_prompts=24, n_draws=3)
    (test,) = causal_tests(pocket, tuned, (first, last), [task], tests=["reinjection"], options=options)
    assert test.accuracy("baseline").mean() < 0.9, "the overlay does nothing"

    want = PromptSets(pocket, task, corruption=None, n_prompts=24).trials("test").unsteered()
    got = test.conditions["iv"].scores
    torch.testing.assert_close(got.logprob, want.logprob, atol=2e-4, rtol=1e-4)
    assert bool((got.accuracy == want.accuracy).all())
    assert (test.conditions["random"].scores.logprob - want.logprob).abs().max() > 0.1


# ---- only the writing damaged


def test_damaged_writing_fails_the_write_test_and_passes_the_read_test(pocket, first):
    task = TASKS[1]
    tuned = without_heads(first.tasks[task.name].top_heads(5))
    last = measure_stage(tuned, TASKS, OPTIONS, name="mute", first=pocket)
    grid = Grid(layers=(0, 1, 2, 3), alphas=(1.0, 2.0, 4.0), sites=("resid_post",))
    options = CausalOptions(grid=grid, n_prompts=24, n_draws=3)
    found = causal_tests(pocket, tuned, (first, last), [task], tests=["write", "read"], options=options)
    tests = {test.test: test for test in found}
    write, read = (tests[name].accuracy("iv").mean() - tests[name].accuracy("baseline").mean() for name in tests)
    assert write == 0.0, "nothing is written, so nothing is added"
    assert read > 0.5
    assert compare([first, last]).tasks["norm_ratio"].iloc[-2] == 0.0


def test_tables_of_causal_tests(pocket, first):
    new = first.vector("capitalize")
    grid = Grid(layers=(1, 2), alphas=(2.0,), sites=("resid_post",))
    options = CausalOptions(grid=grid, n_prompts=12, n_draws=2)
    found = causal_tests(pocket, pocket, (first, first), TASKS[:2], new=new, options=options)
    assert [(test.test, test.task) for test in found[:4]] == [
        (name, "antonym") for name in ("write", "read", "reinjection", "subtraction")
    ]
    by_name = {test.test: test for test in found if test.task == "antonym"}
    # one model: what is written and what is read are the same vector in the same model
    assert (by_name["write"].accuracy("iv") == by_name["read"].accuracy("iv")).all()
    assert (by_name["reinjection"].accuracy("own") == by_name["reinjection"].accuracy("iv")).all()
    table = by_name["read"].frame().set_index("condition")
    assert list(table.index) == ["clean", "baseline", "iv", "random", "random_heads", "other_tasks", "constant"]
    assert table["n_vectors"].to_list() == [0, 0, 1, 2, 2, 2, 0]
    assert list(table.index[table["strongest"]]) == [by_name["read"].strongest]
    kind, row = by_name["read"].best_draw
    assert (
        by_name["read"].accuracy("best_draw") == by_name["read"].conditions[kind].scores.accuracy[row].numpy()
    ).all()
    summed = leads(found)
    assert set(summed) == {"write", "read", "reinjection", "subtraction"}
    mean, low, high = summed["read"]["lead"]
    assert low <= mean <= high
    # the subtracted vector is the same for all tasks, and its other-task controls are not the judged task's
    assert by_name["subtraction"].conditions["iv"].names == ("-1 * capitalize",)
    assert by_name["subtraction"].conditions["other_tasks"].names == ("-1 * english_french",)
    with pytest.raises(ValueError, match="tests has erase, expected some of write"):
        causal_tests(pocket, pocket, (first, first), TASKS[:1], tests=["erase"])
    with pytest.raises(ValueError, match="lacks synonym, expected all tasks"):
        causal_tests(pocket, pocket, (first, first), [load_task("synonym")])


def test_causal_tests_run_each_prompt_once_in_a_model(pocket, first, monkeypatch):
    """The tests of a task share its prompts' caches; and each test alone gives the same scores."""
    made = []

    class Watched(prompt_sets.Trials):
        def __init__(self, model, batch, **more):
            made.append((id(model), batch.texts))
            super().__init__(model, batch, **more)

    monkeypatch.setattr(prompt_sets, "Trials", Watched)
    grid = Grid(layers=(1, 2), alphas=(2.0,), sites=("resid_post",))
    options = CausalOptions(grid=grid, n_prompts=12, n_draws=2)
    tuned, new = without_heads([(2, 3)]), first.vector("capitalize")
    found = causal_tests(pocket, tuned, (first, first), TASKS[:1], new=new, options=options)
    # bare prompts of two splits in each model; clean ones of one split in the first, and of two in the tuned one
    assert len(made) == 7 == len(set(made))
    monkeypatch.undo()
    for test in found:
        (alone,) = causal_tests(pocket, tuned, (first, first), TASKS[:1], new=new, tests=[test.test], options=options)
        pd.testing.assert_frame_equal(test.frame(), alone.frame())
        assert (alone.strongest, alone.best_draw) == (test.strongest, test.best_draw)


def test_each_test_asks_by_its_own_vectors_splits(pocket, monkeypatch):
    """The new task's vector was made on the splits of another seed, where some inputs of the others are in *fit*."""
    from ivlens.analysis.dynamics import causal

    stage = measure_stage(pocket, TASKS[:1], replace(OPTIONS, n_prompts=3))
    new = measure_stage(pocket, TASKS[2:], replace(OPTIONS, n_prompts=3, recipe=PromptRecipe(seed=5)))
    asked, made = [], causal.judged_vectors
    monkeypatch.setattr(causal, "judged_vectors", lambda groups, prompts, judge, grid: (
        asked.append({one.input for one in judge.batch.examples}), made(groups, prompts, judge, grid))[1])  # fmt: skip
    options = CausalOptions(grid=Grid(layers=(1,), alphas=(2.0,), sites=("resid_post",)), n_prompts=24, n_draws=1)
    causal_tests(pocket, pocket, (stage, stage), TASKS[:1], new=new.vector("capitalize"), options=options)
    *others, subtracted = asked
    fits = {seed: {one.input for one in TASKS[0].split("fit", seed)} for seed in (0, 5)}
    assert not subtracted & fits[5] and all(not one & fits[0] for one in others)


# ---- series, recorder, files


def test_a_stage_on_disk_is_the_same(first, tmp_path):
    loaded = Stage.load(first.save(tmp_path / "first.safetensors"))
    assert list(loaded.tasks) == list(first.tasks)
    found = compare([first, loaded])
    assert (found.tasks["iv_cosine_fixed"] > 1 - 1e-6).all() and (found.heads["drift"] == 0).all()
    assert loaded.model == first.model
    (tmp_path / "first.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no whole safetensors file"):
        Stage.load(tmp_path / "first.safetensors")


def test_a_series_goes_on_where_it_stopped(pocket, tmp_path, monkeypatch):
    opened = []
    changed = without_heads([(2, 3)])
    series = checkpoint_series({"before": pocket, "after": changed})
    tasks = TASKS[:2]
    found = track(series, tasks, OPTIONS, folder=tmp_path, on_checkpoint=lambda one: opened.append(one.name))
    assert opened == ["before", "after"]
    assert [entry.labels["name"] for entry in Store(tmp_path).entries("stage")] == ["after", "before"]
    assert len(Store(tmp_path).frame("stage")) == 2 * len(tasks)
    monkeypatch.setattr(recording, "measure_stage", None)  # nothing is measured again
    again = track(series, tasks, OPTIONS, folder=tmp_path)
    pd.testing.assert_frame_equal(again.tasks, found.tasks)
    pd.testing.assert_frame_equal(again.heads, found.heads)
    measured = []
    monkeypatch.setattr(recording, "measure_stage", lambda *args, name, **more: measured.append(name) or 1 / 0)
    # other options, another first model (how far the weights moved is counted from it), another order
    others = [{"other": without_heads([(1, 1)]), "after": changed}, {"after": changed, "before": pocket}]
    runs = [(series, TrackOptions(n_prompts=9)), *((checkpoint_series(names), OPTIONS) for names in others)]
    for other, options in runs:
        with pytest.raises(ZeroDivisionError):
            track(other, tasks, options, folder=tmp_path)
    assert measured == ["before", "other", "after"]
    monkeypatch.undo()
    pd.testing.assert_frame_equal(track(series, tasks, OPTIONS, folder=tmp_path).tasks, found.tasks)


def test_a_damaged_stage_is_measured_again(pocket, tmp_path, caplog):
    series, tasks = checkpoint_series({"before": pocket, "after": without_heads([(2, 3)])}), TASKS[:1]
    found = track(series, tasks, OPTIONS, folder=tmp_path)
    for entry in Store(tmp_path).entries("stage"):
        path = entry.path("stage.safetensors")
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert verify(Store(tmp_path))[0] == 0
    again = track(series, tasks, OPTIONS, folder=tmp_path)
    pd.testing.assert_frame_equal(again.tasks, found.tasks)
    assert caplog.text.count("it is set aside") == 2 and verify(Store(tmp_path))[0] == 2


def test_recording_during_training(pocket, tmp_path, caplog):
    task, options = load_task("middle_of_three"), TuneOptions(lr=2e-3, steps=4, batch_size=8, n_prompts=4)
    recorder = Recorder(pocket, TASKS[:2], OPTIONS, folder=tmp_path)
    watched = finetune(pocket, task, options=options, along=Along(record=recorder, record_every=2))
    plain = finetune(pocket, task, options=options)
    assert watched.log["loss"].to_list() == plain.log["loss"].to_list(), "looking changed the training"
    found = recorder.dynamics()
    assert [stage.step for stage in found.stages] == [0, 2, 4]
    last = found.tasks[found.tasks["step"] == 4]
    assert (last["distance"] > 0).all() and (last["iv_cosine_fixed"] < 1).all()
    end = measure_stage(watched.model, TASKS[:2], OPTIONS, name="end", first=pocket)
    assert compare([found.stages[0], end]).tasks["iv_cosine_fixed"].iloc[-2:].to_list() == pytest.approx(
        last["iv_cosine_fixed"].to_list(), abs=1e-4
    )
    # another process finds what was recorded
    again = Recorder(pocket, TASKS[:2], OPTIONS, folder=tmp_path).dynamics()
    pd.testing.assert_frame_equal(again.tasks, found.tasks)
    with pytest.raises(ValueError, match="record_every is 0"):
        finetune(pocket, task, options=options, along=Along(record=recorder, record_every=0))
    # a record of other tasks is no part of it, and that is said
    other = Recorder(pocket, TASKS[1:3], OPTIONS, folder=tmp_path)
    assert (
        "has 3 records of another model or training, other tasks, options or versions, which are not used"
        in caplog.text
    )
    with pytest.raises(ValueError, match="got 1 stages"):
        other.dynamics()


@pytest.mark.slow
def test_records_of_another_training_are_not_mixed_in(pocket, tmp_path):
    task, options = load_task("middle_of_three"), TuneOptions(lr=2e-3, steps=2, batch_size=8, n_prompts=4)
    one, other = [Recorder(pocket, TASKS[:2], OPTIONS, folder=tmp_path) for _ in range(2)]
    finetune(pocket, task, options=options, along=Along(record=one, record_every=2))
    finetune(pocket, task, options=replace(options, lr=1e-3), along=Along(record=other, record_every=1))
    assert [stage.step for stage in other.dynamics().stages] == [0, 1, 2]
    with pytest.raises(ValueError, match="has records of several trainings of one model"):
        Recorder(pocket, TASKS[:2], OPTIONS, folder=tmp_path).dynamics()


def test_what_cannot_be_compared(pocket, first, llama):
    with pytest.raises(ValueError, match="got 1 stages"):
        compare([first])
    with pytest.raises(ValueError, match="has the tasks none, .*expected the tasks antonym, english_french"):
        compare([first, Stage("b", 1, first.model, {}, 0.0, first.settings)])
    with pytest.raises(ValueError, match="n_heads 9, .*expected .*n_heads 8, "):
        compare([first, replace(first, model=replace(first.model, n_heads=9))])
    with pytest.raises(ValueError, match="k 4, .*expected .*k 5, .*measure checkpoints of one model alike"):
        compare([first, replace(first, settings={**first.settings, "k": 4})])
    with pytest.raises(ValueError, match="differ in shape"):
        measure_stage(pocket, TASKS[:1], OPTIONS, first=llama)
    with pytest.raises(ValueError, match="expected one or more with distinct names"):
        measure_stage(pocket, [], OPTIONS)


# ---- similarity and prediction


def test_an_unknown_step_is_no_number(pocket, first, tmp_path):
    unknown = measure_stage(pocket, TASKS, OPTIONS, name="unknown", first=pocket)
    found = compare([first, unknown]).tasks.set_index("checkpoint")["step"]
    assert (found["first"] == 0).all() and found["unknown"].isna().all()
    assert [one.step for one in checkpoint_series([pocket, pocket])] == [None, None], "places in a list are no steps"
    assert [one.step for one in checkpoint_series({"before": pocket, "step 20": pocket})] == [None, 20]


def test_similarity_puts_alike_ones_side_by_side(first):
    vectors = {f"{stage} {task}": first.vector(task) for stage in ("a", "b") for task in first.tasks}
    table = similarity(vectors)
    names = [name.split(" ")[1] for name in table.index]
    assert list(table.index) == list(table.columns)
    assert all(names[place] == names[place + 1] for place in (0, 2, 4))
    assert table.to_numpy().diagonal() == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ValueError, match="expected two or more"):
        similarity({"one": first.vector("antonym")})


def test_predictors_are_judged_where_they_were_not_fitted():
    generator = torch.Generator().manual_seed(0)
    good = torch.rand(60, generator=generator)
    table = pd.DataFrame(
        {
            "task": [f"task {n % 6}" for n in range(60)],
            "prob": (0.2 + 0.7 * good).tolist(),
            "iv_cosine_fixed": good.tolist(),
            "step": torch.rand(60, generator=generator).tolist(),
        }
    )
    found = predictors(table, names=("iv_cosine_fixed", "step")).set_index("predictor")
    assert found.loc["iv_cosine_fixed", "r2"] == pytest.approx(1.0)
    assert found["r2_lo"].lt(found["r2"]).iloc[1] and set(found["interval"]) == {"t 95 %"}  # over six tasks
    assert found.loc["step", "r2"] < 0.1 and found.loc["step", "r2"] <= found.loc["step", "r2_in_sample"]
    table["distance"] = float("nan")
    table.loc[:9, "step"] = float("nan")
    found = predictors(table, names=("iv_cosine_fixed", "step", "distance")).set_index("predictor")
    assert found["n"].to_list() == [60, 50, 0], "where nothing is known there are no points"
    assert np.isfinite(found.loc["step", "r2"]) and found.loc["distance"].drop(["n", "interval"]).isna().all()
    with pytest.raises(ValueError, match="one value of 'task'"):
        predictors(table[table["task"] == "task 0"])


# ---- recipes


SHOWN = replace(TASKS[1], instructions=())  # nothing but demonstrations tells it


@pytest.mark.slow
def test_a_task_told_by_demonstrations_is_tracked_and_tested(pocket):
    """Beside one with an instruction, each by its own default; with a recipe of demonstrations alone, both are."""
    tasks = [TASKS[0], SHOWN]
    options = replace(OPTIONS, n_prompts=6, n_judge_prompts=12)
    stage = measure_stage(pocket, tasks, options, name="first", step=0)
    shots = {name: found["recipe"]["n_shots"] for name, found in stage.settings["effects"].items()}
    assert shots == {"antonym": 0, "english_french": 5}
    assert (compare([stage, stage]).tasks["iv_cosine_fixed"] > 0.999).all()
    few = PromptRecipe(instruction=None, n_shots=3, seed=2)
    shown = measure_stage(pocket, tasks, replace(options, recipe=few), name="shown")
    assert shown.vector("antonym").recipe == few
    grid = Grid(layers=(1, 2), alphas=(2.0,), sites=("resid_post",))
    judged = CausalOptions(grid=grid, n_prompts=6, n_draws=2)
    for one in (stage, shown):
        found = causal_tests(pocket, pocket, (one, one), tasks, tests=["read", "reinjection"], options=judged)
        assert [test.task for test in found] == ["antonym"] * 2 + ["english_french"] * 2
        assert all(test.accuracy("clean").mean() >= test.accuracy("baseline").mean() for test in found)


def test_causal_tests_ask_as_the_stages_did(pocket, first, monkeypatch):
    """Unless they are told otherwise; splits are those of the vectors in any case."""
    from ivlens.analysis.dynamics import causal

    made = []

    def kept(*args, **more):
        made.append(PromptSets(*args, **more))
        return made[-1]

    monkeypatch.setattr(causal, "PromptSets", kept)
    stage = measure_stage(pocket, TASKS[:2], replace(OPTIONS, n_prompts=3, recipe=PromptRecipe("qa", seed=4)))
    grid = Grid(layers=(1,), alphas=(2.0,), sites=("resid_post",))
    for given in (None, PromptRecipe("after", seed=9)):
        options = CausalOptions(grid=grid, n_prompts=3, n_draws=1, recipe=given)
        causal_tests(pocket, pocket, (stage, stage), TASKS[:1], tests=["read"], options=options)
    asked = [(one.recipe.template, one.recipe.seed, one.seed) for one in made]
    assert asked == [("qa", 4, 4), ("after", 4, 9)]


def test_vectors_of_another_checkpoint_are_recorded_as_such(pocket, first):
    changed = without_heads([(2, 3)])
    with pytest.raises(ValueError, match="which has other weights"):
        check_belongs(first.vector("antonym"), changed)
    check_belongs(first.vector("antonym").for_model(changed), changed)


def test_stages_written_before_recipes_can_be_compared(first, tmp_path):
    from ivlens.analysis.dynamics.stages import FILE

    tensors, about = FILE.read(first.save(tmp_path / "first.safetensors"))
    settings = {name: value for name, value in about["settings"].items() if name not in ("recipe", "n_judge_prompts")}
    for made in settings["effects"].values():
        made |= {"template": "plain", "n_shots": 0, "seed": 0}
        del made["recipe"]
    settings |= {"template": "plain", "seed": 0, "n_scored": OPTIONS.n_judge_prompts}
    old = Stage.load(FILE.write(tmp_path / "old.safetensors", tensors, about | {"settings": settings}))
    assert old.vector("antonym").recipe == first.vector("antonym").recipe == PromptRecipe(n_shots=0)
    assert (compare([first, old]).tasks["iv_cosine_fixed"] > 0.999).all()
    other = replace(old, settings={**old.settings, "recipe": PromptRecipe(seed=1).to_dict()})
    with pytest.raises(ValueError, match="measure checkpoints of one model alike"):
        compare([first, other])
