"""A trained vector climbs by true gradients, on fit alone, within its norm, and leaves its model as it was."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import tiny_task
from families import hf_model
from steering.test_search import ANSWERS, batch_of

import ivlens
from ivlens import JudgeOptions, Setting, TrainedOptions, evaluate_intervention, load_task, train_vector
from ivlens.forward.hooked import is_hooked
from ivlens.forward.hooks import SITES
from ivlens.forward.inputs import check_answers, check_prompts, forced
from ivlens.forward.scoring import sequence_logprob
from ivlens.forward.writes import added_to_stream
from ivlens.models import load_model
from ivlens.steering.ascent import Ascent
from ivlens.steering.controls import permuted_answers
from ivlens.steering.edits import addition
from ivlens.steering.steer import steer
from ivlens.steering.trials import Trials
from ivlens.tasks import TaskExample
from ivlens.vectors import InstructionVector

# blocks that give tuples, ALiBi, factors on what is written, experts, a cache that cannot be shared
MORE_FAMILIES = ("gptj", "bloom", "mpt", "granite", "mixtral", "falcon_h1")
QUICK = {"steps": 8, "search_steps": 2, "judge_every": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


@pytest.fixture(scope="module")
def llama(new_model, byte_level):
    """Of this file alone: what is found out about a shape of prompts stays with a model."""
    return new_model("llama", byte_level)


@pytest.fixture(scope="module")
def antonym(pocket):
    return train_vector(pocket, load_task("antonym"))


def one_answer():
    """Random prompts of different lengths, each with one answer of one to three tokens."""
    return batch_of([answers[:1] for answers in ANSWERS])


def settings_of(model, site):
    return [Setting(layer, 1.0, site) for layer in range(model.cfg.n_layers)]


def vectors_for(settings, model):
    return torch.randn(len(settings), model.cfg.d_model, generator=torch.Generator().manual_seed(3))


def whole_slopes(model, batch, setting, theta):
    """Log-probabilities and gradient of one whole pass with a hook."""
    tokens, mask = check_prompts(model, batch.tokens, batch.attention_mask)
    answers = check_answers(model, batch.answer_tokens, len(batch))
    inputs = forced(tokens, mask, answers)
    where = torch.zeros(inputs.tokens.shape, dtype=torch.bool)
    where[:, inputs.last] = True
    theta = theta.clone().requires_grad_()
    with added_to_stream(model, setting.layer, setting.site, addition(theta, lambda: where)):
        logits = model(inputs.tokens, attention_mask=inputs.attention_mask, use_cache=False)
    values = sequence_logprob(logits[:, inputs.last : inputs.last + inputs.n_answer], answers)
    return values.detach(), torch.autograd.grad(values.sum(), theta)[0]


def check_slopes(model):
    batch, trials = one_answer(), Trials(model, one_answer())
    for site in SITES:
        settings = settings_of(model, site)
        thetas = vectors_for(settings, model)
        values, slopes = trials.slopes(settings, thetas, torch.arange(4))
        assert float(slopes.abs().max()) > 1e-2
        for row, setting in enumerate(settings):
            want, slope = whole_slopes(model, batch, setting, thetas[row])
            torch.testing.assert_close(values[row], want, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(slopes[row], slope, atol=1e-4 * float(slope.abs().max()), rtol=1e-3)


def test_gradients_are_those_of_whole_passes(model):
    check_slopes(model)


@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_the_same_in_more_families(family, caplog):
    check_slopes(load_model(hf_model=hf_model(family)))


def test_gradients_are_what_small_steps_change(model):
    """Differences of log-probabilities, which `Trials.at` finds without any gradient; at three strengths."""
    trials = Trials(model, one_answer())
    settings = [Setting(layer, alpha, "resid_post") for layer, alpha in enumerate((1.0, 2.0, -0.5))]
    thetas = vectors_for(settings, model)
    _, slopes = trials.slopes(settings, thetas, torch.arange(4))
    along = slopes / slopes.norm(dim=1, keepdim=True)
    size = 1e-2
    above, below = (trials.at(settings, thetas + sign * size * along).logprob.double().sum(1) for sign in (1, -1))
    torch.testing.assert_close(((above - below) / (2 * size)).float(), slopes.norm(dim=1), rtol=2e-2, atol=1e-2)


def test_some_prompts_in_small_passes_and_portions(llama, monkeypatch):
    settings, batch = settings_of(llama, "attn_out"), one_answer()
    thetas = vectors_for(settings, llama)
    trials = Trials(llama, batch)
    (first, own), (_, whole) = (trials.slopes(settings, thetas, torch.tensor(rows)) for rows in ([2, 1], [0, 1, 2, 3]))
    monkeypatch.setattr("ivlens.forward.prefix._FLOATS_PER_PREFIX", 1)
    monkeypatch.setattr("ivlens.steering.slopes.memory_budget", lambda *_: 1)
    few, rows = Trials(llama, batch), []
    assert [few.prompts_of(portion).tolist() for portion in range(few.n_portions)] == [[0], [1], [2], [3]]
    handle = llama.unembed.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    parts = [few.slopes(settings, thetas, torch.tensor([row])) for row in range(4)]
    handle.remove()
    assert rows.count(1) > 4 * len(settings) - 1
    torch.testing.assert_close(first, torch.cat([parts[2][0], parts[1][0]], 1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(own, parts[2][1] + parts[1][1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whole, sum(part[1] for part in parts), atol=1e-4, rtol=1e-4)


def test_a_narrow_context_gives_the_same(new_model, byte_level):
    """Where a long prompt and another one's long answer do not fit together, answers of each length run alone."""
    wide, narrow = new_model("llama", byte_level, n_ctx=64), new_model("llama", byte_level, n_ctx=11)
    found = []
    for model in (wide, narrow):
        settings, trials = settings_of(model, "resid_post"), Trials(model, one_answer())
        assert len(trials._portion(0)._answers.whole) == (1 if model is wide else 3)
        found.append(trials.slopes(settings, vectors_for(settings, model), torch.arange(4)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_it_learns_what_its_controls_do_not(pocket, antonym):
    task = load_task("antonym")
    permuted = train_vector(pocket, task, options=TrainedOptions(permuted=True))
    accuracy = {}
    for name, one in (("trained", antonym), ("permuted", permuted)):
        found = evaluate_intervention(
            pocket, task, one.vector, at=one.setting, n_draws=1, options=JudgeOptions(other_vectors=())
        )
        accuracy |= {name: found.accuracy(), "bare": found.accuracy("bare"), "constant": found.accuracy("constant")}
        assert found.best == one.setting and found.recipe.alike(ivlens.PromptRecipe(), task)
    assert accuracy["trained"] >= 0.9 > 0.6 > accuracy["permuted"]
    assert accuracy["bare"] < 0.2 and accuracy["constant"] < 0.1
    assert antonym.accuracy > 0.9 > permuted.accuracy
    assert antonym.vector.cosine(permuted.vector) < 0.9


def test_the_record(pocket, antonym):
    made_by = antonym.vector.settings["trained"]
    assert made_by["split"] == "fit" and made_by["task_hash"] == load_task("antonym").content_hash()
    assert antonym.vector.recipe == ivlens.PromptRecipe(n_shots=0)
    assert made_by["n_prompts"] == 108 and made_by["n_select_prompts"] == 53 and made_by["kept_answers"] is None
    best = max(antonym.curve[1:].to_dict("records"), key=lambda row: (row["accuracy"], row["logprob"]))
    assert made_by["best"] == best and antonym.setting.layer == best["layer"]
    assert (antonym.accuracy, antonym.logprob) == (best["accuracy"], best["logprob"])
    scores = Trials(pocket, ivlens.build_prompts(
        pocket.tokenizer, load_task("antonym"), load_task("antonym").split("select"), corruption="drop"
    )).at([antonym.setting], antonym.vector.theta[None])  # fmt: skip
    assert float(scores.accuracy.mean()) == pytest.approx(best["accuracy"])
    assert float(scores.logprob.mean()) == pytest.approx(best["logprob"], abs=1e-4)
    assert "antonym" in repr(antonym) and "logprob" in str(antonym) and "<table" in antonym._repr_html_()


def test_it_is_not_judged_on_what_it_was_trained_on(pocket, antonym, tmp_path):
    task = load_task("antonym")
    quick = {"other_vectors": (), "split": "fit"}
    kept = InstructionVector.load(antonym.vector.save(tmp_path / "trained.safetensors"), pocket)
    for vector in (antonym.vector, kept, kept + kept, kept.random_like(0)):
        with pytest.raises(ValueError, match="made on the split 'fit'"):
            evaluate_intervention(pocket, task, vector, at=antonym.setting, options=JudgeOptions(**quick))
    other = ivlens.PromptRecipe(seed=1)  # its test split would hold prompts of this one's fit split
    quick = JudgeOptions(other_vectors=())
    found = evaluate_intervention(
        pocket, task, kept, at=antonym.setting, recipe=other, n_prompts=4, n_draws=0, options=quick
    )
    assert found.recipe.seed == 0


def test_same_seed_same_bytes(pocket, tmp_path):
    task, files = load_task("synonym"), []
    with torch.inference_mode():
        files.append(train_vector(pocket, task, options=TrainedOptions(**QUICK)).vector.save(tmp_path / "1"))
    for number, seed in ((2, 0), (3, 1)):
        made = train_vector(pocket, task, options=TrainedOptions(**QUICK, seed=seed))
        files.append(made.vector.save(tmp_path / str(number)))
    first, again, other = (file.read_bytes() for file in files)
    assert first == again != other


def test_the_model_stays_as_it_was(new_model, byte_level, monkeypatch):
    model, options = new_model("llama", byte_level), TrainedOptions(**QUICK, n_fit=4, n_select=2)
    some = [parameter for number, parameter in enumerate(model.parameters()) if number % 3 == 0]
    for parameter in some:
        parameter.requires_grad_(True)

    def state():
        flags = [parameter.requires_grad for parameter in model.parameters()]
        return [parameter.clone() for parameter in model.parameters()], flags

    (before, flags), seen = state(), []
    step = Ascent.step

    def watched(self, prompts, rate):
        seen.append(any(parameter.requires_grad for parameter in model.parameters()))
        if len(seen) == stop:
            raise KeyboardInterrupt
        return step(self, prompts, rate)

    monkeypatch.setattr(Ascent, "step", watched)
    for stop in (0, 3):
        seen.clear()
        if stop:
            with pytest.raises(KeyboardInterrupt):
                train_vector(model, tiny_task(), options=options)
        else:
            train_vector(model, tiny_task(), options=options)
        after, now = state()
        assert seen and not any(seen) and flags == now and any(flags)
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not is_hooked(model) and not model.training and "forward" not in model.blocks[0].__dict__


@pytest.mark.parametrize("site", SITES)
def test_the_norm_is_never_exceeded(pocket, site):
    task = load_task("antonym")
    options = TrainedOptions(norms=(0.2, 0.05), layers=(3, 1), site=site, rate=0.1, **QUICK)
    found = train_vector(pocket, task, options=options)
    rows = found.curve[1:]
    assert (rows["length"] <= rows["norm"] * (1 + 1e-5)).all() and rows["length"].max() == pytest.approx(0.2, rel=1e-4)
    batch = ivlens.build_prompts(pocket.tokenizer, task, task.split("fit"), corruption="drop")
    unit = Trials(pocket, batch).streams()[found.setting.layer].norm(dim=1).mean()
    assert found.vector.norm / float(unit) == pytest.approx(
        found.vector.settings["trained"]["best"]["length"], rel=1e-4
    )
    assert found.setting.site == site and found.setting.alpha == 1.0


def test_the_norm_holds_where_no_step_follows(pocket):
    """The steps are over when the lengths are tried: a vector that is too long for its ball is brought back."""
    options = TrainedOptions(**QUICK | {"steps": 4}, norms=(0.01, 1.0))
    rows = train_vector(pocket, load_task("antonym"), options=options).curve[1:]
    assert rows["step"].tolist() == [2] * 6 + [4] * 4
    assert rows["length"].iloc[-2] == pytest.approx(0.01, rel=1e-4) and rows["length"].iloc[-1] > 0.01


def test_a_first_step_is_as_long_as_its_rate(pocket):
    options = TrainedOptions(layers=(2,), norms=(1.0,), steps=1, rate=0.03)
    assert train_vector(pocket, load_task("antonym"), options=options).curve["length"].iloc[1] == pytest.approx(
        0.03, rel=1e-3
    )


def test_the_better_layers_go_on_then_the_norms(pocket):
    found = train_vector(pocket, load_task("country_capital"), options=TrainedOptions(**QUICK | {"steps": 12}))
    rounds = [rows for _, rows in found.curve[1:].groupby("step")]
    assert [len(rows) for rows in rounds] == [6, 2, 3, 1, 1, 1]
    assert rounds[0]["layer"].tolist() == list(range(6)) and rounds[2]["norm"].tolist() == [0.5, 1.0, 2.0]
    for rows, following in pairwise(rounds):
        ranked = rows.sort_values(["accuracy", "logprob"], ascending=False)
        best = ranked[: following["layer"].nunique()]
        assert set(best["layer"]) == set(following["layer"])
        if len(following) == 1:
            assert ranked["norm"].iloc[0] == following["norm"].iloc[0]


def test_it_stops_early_and_keeps_the_best_step(pocket, monkeypatch):
    """Accuracy comes first, and among equals log-probability; two judgements without a better one end it."""
    told = iter([(0.0, -9.0), (0.1, -3.0), (0.5, -5.0), (0.5, -4.0), (0.5, -4.5), (0.4, -1.0), (0.9, -1.0)])
    monkeypatch.setattr(
        "ivlens.steering.climb._means", lambda scores: dict(zip(("accuracy", "logprob"), next(told), strict=True))
    )
    kept, step = [], Ascent.step
    monkeypatch.setattr(Ascent, "step", lambda self, *given: (step(self, *given), kept.append(self.thetas[0]))[0])
    options = TrainedOptions(layers=(2,), norms=(1.0,), judge_every=2, patience=2, n_fit=8, n_select=2)
    found = train_vector(pocket, load_task("antonym"), options=options)
    assert found.curve["step"].tolist() == [0, 2, 4, 6, 8, 10]
    assert (found.accuracy, found.logprob) == (0.5, -4.0)
    assert torch.equal(found.vector.theta, kept[5]) and not torch.equal(kept[5], kept[-1])


def test_every_prompt_comes_once_in_a_round(pocket, monkeypatch):
    seen, step = [], Ascent.step
    monkeypatch.setattr(
        Ascent, "step", lambda self, prompts, rate: (seen.append(prompts), step(self, prompts, rate))[1]
    )
    options = TrainedOptions(layers=(2,), norms=(1.0,), steps=6, batch_size=8, n_fit=25, n_select=2)
    train_vector(pocket, load_task("antonym"), options=options)
    assert [len(part) for part in seen] == [9, 8, 8] * 2
    halves = [torch.cat(seen[:3]), torch.cat(seen[3:])]
    assert all(half.sort().values.tolist() == list(range(25)) for half in halves) and not torch.equal(*halves)
    train_vector(pocket, load_task("antonym"), options=replace(options, seed=1))
    assert not torch.equal(torch.cat(seen[6:9]), halves[0])


def test_permuted_answers():
    task = load_task("antonym")
    given = task.split("fit")
    made, kept = permuted_answers(given, "a")
    assert [one.input for one in made] == [one.input for one in given] and kept == 0.0
    assert sorted(one.answers for one in made) == sorted(one.answers for one in given)
    assert made == permuted_answers(given, "a")[0] != permuted_answers(given, "b")[0]
    few = [TaskExample(text, (text[0],)) for text in ("ab", "ac", "ad", "ba")]
    made, kept = permuted_answers(few, "a")
    assert kept == 0.5 == sum(one.answers == two.answers for one, two in zip(made, few, strict=True)) / 4
    with pytest.raises(ValueError, match="all 3 examples accept 'a'"):
        permuted_answers(few[:3], "a")


def test_the_permuted_control_differs_in_its_answers_alone(pocket, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "ivlens.steering.trained.Trials", lambda model, batch: asked.append(batch) or Trials(model, batch)
    )
    for permuted in (False, True):
        found = train_vector(pocket, load_task("synonym"), options=TrainedOptions(permuted=permuted, **QUICK))
    for own, other in zip(asked[:2], asked[2:], strict=True):
        assert own.texts == other.texts and own.alternatives != other.alternatives
        assert torch.equal(own.tokens, other.tokens)
        assert sorted(answers[0] for answers in own.alternatives) == sorted(
            answers[0] for answers in other.alternatives
        )
    assert found.vector.settings["trained"]["permuted"] and found.vector.task == "permuted synonym"
    assert found.vector.settings["trained"]["kept_answers"] < 0.1


def test_prompts_are_those_of_recipe_corruption_and_numbers(pocket, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "ivlens.steering.trained.Trials", lambda model, batch: asked.append(batch) or Trials(model, batch)
    )
    recipe = ivlens.PromptRecipe("qa", instruction=None, n_shots=2, seed=3)
    for corruption in ("drop", None):
        options = TrainedOptions(**QUICK, n_fit=5, n_select=4, corruption=corruption)
        found = train_vector(pocket, load_task("synonym"), recipe=recipe, options=options)
        assert found.vector.recipe == recipe and found.vector.settings["trained"]["corruption"] == corruption
    inputs = [{one.input for one in load_task("synonym").split(split, 3)} for split in ("fit", "select")]
    assert [len(batch) for batch in asked] == [5, 4, 5, 4]
    for number, batch in enumerate(asked):
        assert {one.input for one in batch.examples} <= inputs[number % 2]
        assert all(text.count("Q:") == (1 if number < 2 else 3) for text in batch.texts)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layers": (99,)}, "layer 99 does not exist"),
        ({"layers": ()}, "layers is empty"),
        ({"norms": ()}, "norms is empty"),
        ({"norms": (1.0, -1.0)}, "norms is .*above 0"),
        ({"rate": 0.0}, "rate is .*above 0"),
        ({"steps": 0}, "steps is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"n_fit": 0}, "n_fit is 0"),
        ({"corruption": "shuffle"}, "shuffle"),
    ],
)
def test_wrong_options(pocket, options, message):
    with pytest.raises(ValueError, match=message):
        train_vector(pocket, load_task("antonym"), options=TrainedOptions(**options))


def test_wrong_inputs(pocket, llama, new_model, byte_level):
    task, quick = tiny_task(), TrainedOptions(**QUICK)
    with pytest.raises(ValueError, match="something to take away"):
        train_vector(pocket, load_task("antonym"), recipe=ivlens.PromptRecipe(instruction=None, n_shots=0))
    with pytest.raises(ValueError, match="Split 'select' of task .* is empty"):
        train_vector(llama, replace(task, examples=task.split("fit")), options=quick)
    training = new_model("llama", byte_level)
    training.train()
    with pytest.raises(ValueError, match="train mode"):
        train_vector(training, task, options=quick)
    vector = InstructionVector(torch.ones(32), (), torch.zeros(0, 12), "x", ivlens.models.model_identity(llama), {})
    with steer(llama, vector, layer=0):
        llama(torch.tensor([[5, 6]]))  # a context in which no pass ran would be an error of its own
        with pytest.raises(RuntimeError, match="steer context open"):
            train_vector(llama, task, options=quick)


def test_no_gradients_inside_steer(llama):
    """What another vector does in the context would be taken for a part of the model."""
    trials, settings = Trials(llama, one_answer()), settings_of(llama, "resid_post")
    vector = InstructionVector(torch.ones(32), (), torch.zeros(0, 12), "x", ivlens.models.model_identity(llama), {})
    with steer(llama, vector, layer=0):
        llama(torch.tensor([[5, 6]]))
        with pytest.raises(RuntimeError, match="steer context open"):
            trials.slopes(settings, vectors_for(settings, llama), torch.arange(4))


def test_a_model_that_overflows_is_refused(new_model, byte_level, monkeypatch):
    model = new_model("llama", byte_level)
    with torch.no_grad():
        model.original_model.lm_head.weight.mul_(1e38).mul_(1e3)
    with pytest.raises(ValueError, match="log-probabilities that are not finite"):
        train_vector(model, tiny_task(), options=TrainedOptions(**QUICK))
