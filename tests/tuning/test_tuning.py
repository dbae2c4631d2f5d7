"""Fine-tuning: the loss, the places, the loop and its resumption, adapters of every kind of family."""

import dataclasses
from typing import Any

import pytest
import torch
from conftest import WORDS, tiny_task, unchecked
from families import hf_model
from torch.nn.functional import kl_div

from ivlens.forward import hooks
from ivlens.forward.inputs import forced
from ivlens.forward.scoring import answer_logits as bridge_logits
from ivlens.models import load_model
from ivlens.models.plain import plain_model
from ivlens.prompts import PromptRecipe, build_prompts
from ivlens.tasks import load_task
from ivlens.tuning import (
    IVKL,
    Along,
    Guidance,
    GuidanceRecipe,
    HeadConsistency,
    Learner,
    Progressive,
    TuneOptions,
    finetune,
    strength,
)
from ivlens.tuning.terms import Rehearse
from ivlens.tuning.terms.heads import head_distance
from ivlens.tuning.terms.kl import SoftTargets, iv_kl
from ivlens.tuning.training.asking import InTraining
from ivlens.tuning.training.data import answer_logits, as_training_set, last_column, training_set
from ivlens.tuning.training.losses import answer_loss
from ivlens.tuning.training.sites import Sites

TASK = tiny_task()
QUICK = TuneOptions(lr=1e-2, steps=6, batch_size=4, save_every=2)
FUSED = ("gpt2", "neox", "phi3")


@pytest.fixture(scope="module")
def models(byte_level):
    """Bridges by family, calmer than those of other tests: training needs gradients that do not explode."""
    made = {}

    def get(family):
        if family not in made:
            hf = hf_model(family)
            with torch.no_grad():
                for parameter in hf.parameters():
                    parameter.mul_(1 / 3 if parameter.ndim > 1 else 1.0)
            made[family] = load_model(hf_model=hf, tokenizer=byte_level)
        return made[family]

    return get


def data_of(model, n=8):
    return training_set(model, TASK, TASK.examples, n_samples=n, seed=1)


def guidance_of(model, *terms):
    theta = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(5))
    return Guidance(terms, theta, layer=1, alpha=0.5)


HELD = HeadConsistency(((0, 1), (2, 3)), weight=2.0)
ALL_PARTS = (Progressive("linear"), IVKL(weight=0.3), HELD)


def weights_of(learner):
    return {name: weight.detach().clone() for name, weight in learner.trained.named_parameters()}


# ---- the loss


def test_only_the_answer_is_learned(models):
    for family in ("llama", "gpt2"):
        model = models(family)
        data, plain = data_of(model, 3), plain_model(model)
        total, count = 0.0, 0
        for row in range(3):
            prompt = data.tokens[row][data.attention_mask[row] == 1]
            answer = data.answers[row][data.answers[row] >= 0]
            assert int(answer[-1]) == model.tokenizer.eos_token_id
            labels = torch.cat([torch.full_like(prompt, -100), answer])
            with torch.no_grad():
                loss = plain(torch.cat([prompt, answer])[None], labels=labels[None]).loss
            total, count = total + float(loss) * len(answer), count + len(answer)
        with torch.no_grad():
            mine = answer_loss(answer_logits(plain, data), data.answers)
        assert float(mine) == pytest.approx(total / count, rel=1e-5)


def test_logits_of_the_plain_model_are_those_of_the_bridge(models):
    for family in ("llama", "gpt2", "gemma2", "neox"):
        model = models(family)
        batch = build_prompts(model.tokenizer, TASK, TASK.examples[:5])
        data = as_training_set(model, batch)
        with torch.no_grad():
            mine = answer_logits(plain_model(model), data)[:, : batch.answer_tokens.shape[1]]
        real = batch.answer_tokens != -100
        torch.testing.assert_close(mine[real], bridge_logits(model, batch)[real], atol=1e-4, rtol=1e-4)


def test_samples_beyond_the_examples_repeat_them_with_other_instructions(models):
    model = models("llama")
    data = training_set(model, TASK, TASK.examples[:3], n_samples=12, seed=0)
    texts = [model.tokenizer.decode(row[mask == 1]) for row, mask in zip(data.tokens, data.attention_mask, strict=True)]
    assert len(texts) == 12 and len({text.split("Input: ")[1] for text in texts}) == 3 and len(set(texts)) > 3


def test_divergence_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 4, 30, generator=generator)
    answers = torch.tensor([[1, 2, 3, 4], [1, 2, -100, -100], [1, -100, -100, -100], [1, 2, 3, -100], [9, 9, 9, 9]])
    after = answers != -100
    after[:, 0] = False
    for direction, temperature in (("forward", 2.0), ("reverse", 1.5)):
        term = IVKL(direction=direction, temperature=temperature, last=0.7, answers=1.3)
        p, q = ((logits / temperature).log_softmax(-1) for logits in (teacher, student))
        if direction == "forward":
            each = kl_div(q, p, log_target=True, reduction="none").sum(-1) * temperature**2
        else:
            each = kl_div(p, q, log_target=True, reduction="none").sum(-1)
        want = 0.7 * each[:, 0].mean() + 1.3 * each[after].mean()
        torch.testing.assert_close(iv_kl(student, SoftTargets.of(teacher, term), answers, term), want)
        whole = dataclasses.replace(term, top_n=30)
        torch.testing.assert_close(iv_kl(student, SoftTargets.of(teacher, whole), answers, whole), want)
        few = dataclasses.replace(term, top_n=10)
        merged = iv_kl(student, SoftTargets.of(teacher, few), answers, few)
        assert 0 < merged < want, "what is merged into a tail can only come closer"


def test_a_teacher_that_agrees_costs_nothing():
    logits = torch.randn(3, 2, 20)
    answers = torch.tensor([[1, 2], [3, -100], [4, 5]])
    for top_n in (None, 5):
        term = IVKL(top_n=top_n)
        assert iv_kl(logits, SoftTargets.of(logits, term), answers, term).abs() < 1e-6


def test_head_distance_by_hand():
    z, before = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    want = sum(((z[b, h] - before[b, h]) ** 2).sum() / 5 for b in range(3) for h in range(2)) / 3
    torch.testing.assert_close(head_distance(z, before), want)


def test_schedules():
    staircase = [strength("staircase", p / 20) for p in range(21)]
    assert staircase[:6] == [1.0] * 6 and staircase[15:] == [0.0] * 6
    torch.testing.assert_close(torch.tensor(staircase[6:15]), torch.arange(0.9, 0.05, -0.1))
    assert [strength("linear", p) for p in (0.0, 0.25, 1.0)] == [1, 0.75, 0]
    assert (
        strength("cosine", 0.5) == pytest.approx(0.5) and strength("constant", 1.0) == 1 and strength("off", 0.0) == 0
    )
    for schedule in ("staircase", "linear", "cosine"):
        values = [strength(schedule, p / 100) for p in range(101)]
        assert values == sorted(values, reverse=True) and values[0] == 1 and values[-1] == pytest.approx(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: strength("steps", 0.5), "schedule is 'steps', expected one of staircase, linear, cosine"),
        (lambda: Progressive("linear", 2), "sign is 2, expected 1"),
        (lambda: unchecked(IVKL, direction="both"), "direction is 'both', expected 'forward' or 'reverse'"),
        (lambda: IVKL(temperature=0.0), "temperature is 0.0, expected a number above 0"),
        (lambda: HeadConsistency(()), "HeadConsistency got no heads"),
        (lambda: Guidance((IVKL(),)), "Guidance got no theta"),
        (lambda: Guidance(theta=torch.full((4,), torch.nan)), "theta contains NaN"),
        (lambda: TuneOptions(steps=0), "^steps is 0"),
        (lambda: TuneOptions(batch_size=6, accumulate=4), "batch_size 6 is no multiple of accumulate 4"),
        (lambda: TuneOptions(lr=-1.0), "lr is -1.0"),
        (lambda: unchecked(TuneOptions, decay="step"), "decay is 'step', expected one of linear, cosine, constant"),
        (lambda: unchecked(TuneOptions, precision="int8"), "precision is 'int8', expected one of float32, bfloat16"),
    ],
)
def test_options_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_term_is_one_item_and_nothing_else_is_one():
    term = HeadConsistency()
    for given in (term, [term], iter([term])):
        made: Any = unchecked(GuidanceRecipe, terms=given)
        assert made.terms == (term,)
    for make in (Guidance, GuidanceRecipe):
        for wrong in ("iv", (IVKL,), [None], {"kl": IVKL()}, 1):
            with pytest.raises(TypeError, match="expected one Term, or several in a list; terms are such"):
                unchecked(make, terms=wrong)
    with pytest.raises(TypeError, match="theta is ndarray, expected a tensor; take InstructionVector.theta"):
        unchecked(Guidance, theta=torch.ones(4).numpy())
    with pytest.raises(ValueError, match="weight is '1', expected a finite number"):
        unchecked(IVKL, weight="1")


# ---- places


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "neox", "phi3"])
@pytest.mark.parametrize("site", ["resid_post", "attn_out"])
def test_the_stream_is_moved_where_the_bridge_moves_it(models, family, site):
    model = models(family)
    data, plain, sites = data_of(model, 4), plain_model(model), Sites(model)
    delta = torch.randn(model.cfg.d_model)
    inputs, column = forced(data.tokens, data.attention_mask, data.answers), last_column(data)

    def edit(stream):
        stream = stream.clone()
        stream[:, column] += delta
        return stream

    with hooks.added(model, 1, site, edit):
        want = inputs.logits(model)
    with torch.no_grad(), sites.shifted(plain, 1, site, column, delta):
        got = answer_logits(plain, data)
    real = data.answers != -100
    torch.testing.assert_close(got[real], want[real], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert (answer_logits(plain, data) - got).abs().max() > 0.1, "the shift did nothing, or stayed"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "neox", "phi3"])
def test_heads_are_read_where_the_bridge_reads_them(models, family):
    model = models(family)
    data, plain = data_of(model, 4), plain_model(model)
    inputs = forced(data.tokens, data.attention_mask, data.answers)
    with hooks.captured_heads(model) as want:
        inputs.logits(model)
    with torch.no_grad(), Sites(model).head_outputs(plain, [0, 2], last_column(data)) as got:
        answer_logits(plain, data)
    for layer in (0, 2):
        torch.testing.assert_close(got[layer], want[layer][:, last_column(data)], atol=1e-4, rtol=1e-4)


def test_the_teacher_is_the_model_before_the_task_with_the_vector_in_it(models):
    model = models("llama")
    data, guidance = data_of(model, 5), guidance_of(models("llama"), *ALL_PARTS)
    plain, sites = plain_model(model), Sites(model)
    soft, z = (term.ask(InTraining(plain, sites, TuneOptions(), data, guidance.shift)) for term in ALL_PARTS[1:])
    with torch.no_grad(), sites.shifted(plain, 1, "resid_post", last_column(data), guidance.delta):
        logits = answer_logits(plain, data)
    torch.testing.assert_close(soft.log_probs, (logits / 2).log_softmax(-1), atol=1e-5, rtol=1e-5)
    with torch.no_grad(), sites.head_outputs(plain, [0, 2], last_column(data)) as kept:
        answer_logits(plain, data)
    want = torch.stack([kept[0][:, 1], kept[2][:, 3]], 1)
    torch.testing.assert_close(z.z, want, atol=1e-5, rtol=1e-5)
    assert z.n_bytes == 4 * want.numel() and soft.n_bytes > 4 * logits.numel()


# ---- the loop


@pytest.mark.parametrize("family", ["llama", *FUSED, "gemma2"])
def test_an_adapter_learns_and_merges_and_is_read_by_plain_peft(models, family, tmp_path):
    """On fused projections as well, where a bridge would ignore it."""
    from peft import PeftModel

    model = models(family)
    learner = Learner(model, "lora")
    data = data_of(model)
    log = learner.learn(data, dataclasses.replace(QUICK, steps=30))
    assert log.lm.iloc[-3:].mean() < log.lm.iloc[:3].mean() - 0.4
    with torch.no_grad():
        want = answer_logits(learner.trained, data)
        assert (want - answer_logits(plain_model(model), data)).abs().max() > 0.1
        again = PeftModel.from_pretrained(plain_model(model), learner.save(tmp_path / "adapter")).eval()
        torch.testing.assert_close(answer_logits(again, data), want, atol=1e-5, rtol=1e-5)
    merged = learner.bridge()
    inputs = forced(data.tokens, data.attention_mask, data.answers)
    real = data.answers != -100
    torch.testing.assert_close(inputs.logits(merged)[real], want[real], atol=2e-3, rtol=1e-3)


def test_the_model_given_stays_as_it_is(models):
    model = models("gpt2")
    data = data_of(model)
    inputs = forced(data.tokens, data.attention_mask, data.answers)
    before = inputs.logits(model)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    for method in ("lora", "full"):
        Learner(model, method).learn(data, QUICK, guidance_of(model, *ALL_PARTS))
    assert torch.equal(torch.rand(1), expected), "the caller's draws were touched"
    assert torch.equal(inputs.logits(model), before)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_same_seed_gives_the_same_weights(models):
    model = models("llama")
    data, guidance = data_of(model), guidance_of(model, *ALL_PARTS)
    runs = []
    for seed in (0, 0, 1):
        runs.append(Learner(model, "lora"))
        runs[-1].learn(data, dataclasses.replace(QUICK, seed=seed), guidance)
    first, same, other = map(weights_of, runs)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_training_that_was_interrupted_ends_with_the_same_weights(models, method, stop, tmp_path):
    model = models("llama")
    data, guidance = data_of(model), guidance_of(model, *ALL_PARTS)
    whole = Learner(model, method)
    log = whole.learn(data, QUICK, guidance)

    def interrupt(row):
        if row["step"] == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Learner(model, method).learn(data, QUICK, guidance, folder=tmp_path, on_step=interrupt)
    steps = []
    resumed = Learner(model, method)
    again = resumed.learn(data, QUICK, guidance, folder=tmp_path, on_step=lambda row: steps.append(row["step"]))
    assert steps[0] == stop - stop % 2 + 1, "it did not go on from the last state"
    want, got = weights_of(whole), weights_of(resumed)
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert again.drop(columns="seconds").equals(log.drop(columns="seconds"))


def test_a_finished_training_is_not_done_again(models, tmp_path):
    model = models("llama")
    first = Learner(model, "lora")
    first.learn(data_of(model), QUICK, folder=tmp_path)
    steps = []
    second = Learner(model, "lora")
    second.learn(data_of(model), QUICK, folder=tmp_path, on_step=steps.append)
    assert not steps
    want, got = weights_of(first), weights_of(second)
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_the_state_of_another_training_is_refused(models, tmp_path):
    model = models("llama")
    Learner(model, "lora").learn(data_of(model), QUICK, folder=tmp_path)
    changes = [
        {"options": dataclasses.replace(QUICK, seed=1)},
        {"options": dataclasses.replace(QUICK, lr=2e-2)},
        {"data": data_of(model, 7)},
        {"guidance": guidance_of(model, IVKL())},
        {"method": "full"},
    ]
    for change in changes:
        given = {"options": QUICK, "data": data_of(model), "guidance": None, "method": "lora"} | change
        learner = Learner(model, given["method"])
        with pytest.raises(ValueError, match="is the state of another training, expected one with the same data"):
            learner.learn(given["data"], given["options"], given["guidance"], folder=tmp_path)
    (tmp_path / "state.safetensors").write_bytes((tmp_path / "state.safetensors").read_bytes()[:-50])
    with pytest.raises(ValueError, match="is no whole training state .*; remove it to begin anew"):
        Learner(model, "lora").learn(data_of(model), QUICK, folder=tmp_path)


def test_accumulated_passes_are_one_step(models):
    model = models("llama")
    data, guidance = data_of(model), guidance_of(model, Progressive(), HELD)
    data = dataclasses.replace(data, answers=data.answers[:, :1])  # answers of one length: a mean of means is the mean
    one, two = Learner(model, "lora"), Learner(model, "lora")
    one.learn(data, QUICK, guidance)
    two.learn(data, dataclasses.replace(QUICK, accumulate=2), guidance)
    want, got = weights_of(one), weights_of(two)
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=2e-4, rtol=1e-2)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradient_checkpointing_changes_no_gradient(models, family):
    model = models(family)
    data, guidance = data_of(model), guidance_of(model, *ALL_PARTS)
    plain, checkpointed = Learner(model, "lora"), Learner(model, "lora")
    options = dataclasses.replace(QUICK, steps=1)
    want = plain.learn(data, options, guidance)
    got = checkpointed.learn(data, dataclasses.replace(options, gradient_checkpointing=True), guidance)
    assert got.grad_norm[0] == pytest.approx(want.grad_norm[0], rel=1e-4)
    assert got.loss[0] == pytest.approx(want.loss[0], rel=1e-5)


def test_bfloat16_keeps_weights_in_full_precision(models):
    model = models("llama")
    learner = Learner(model, "lora")
    log = learner.learn(
        data_of(model), dataclasses.replace(QUICK, precision="bfloat16"), guidance_of(model, *ALL_PARTS)
    )
    assert all(weight.dtype == torch.float32 for weight in weights_of(learner).values())
    assert log.loss.notna().all()


def test_a_loss_that_is_not_finite_ends_the_training(models, tmp_path):
    model = models("llama")
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) in step .*; use a smaller lr"):
        Learner(model, "full").learn(data_of(model), dataclasses.replace(QUICK, lr=1e30, steps=20))


def test_guidance_holds_heads_in_place(models):
    model = models("llama")
    data, options = data_of(model), dataclasses.replace(QUICK, steps=30)
    heads = HeadConsistency(tuple((layer, head) for layer in range(3) for head in range(4)), weight=100.0)
    distances = []
    for guidance in (None, Guidance((heads,))):
        learner = Learner(model, "lora")
        before = heads.ask(InTraining(plain_model(model), learner.sites, QUICK, data)).z
        learner.learn(data, options, guidance)
        after = heads.ask(InTraining(learner.trained, learner.sites, QUICK, data)).z
        distances.append(float(head_distance(after, before)))
    assert distances[1] < 0.5 * distances[0]


def test_the_vector_is_gone_at_the_end_of_the_schedule(models):
    """With `off` nothing is added; with the staircase the last quarter runs without the vector."""
    model = models("llama")
    data = data_of(model)
    logs = {}
    for schedule in ("off", "staircase", "constant"):
        part = guidance_of(model, Progressive(schedule))
        logs[schedule] = Learner(model, "lora").learn(data, dataclasses.replace(QUICK, lr=1e-9, steps=8), part).lm
    plain = Learner(model, "lora").learn(data, dataclasses.replace(QUICK, lr=1e-9, steps=8)).lm
    assert logs["off"].equals(plain)
    assert abs(logs["staircase"][7] - plain[7]) < 1e-5 < abs(logs["staircase"][0] - plain[0])
    assert logs["staircase"][0] == logs["constant"][0] and abs(logs["constant"][7] - plain[7]) > 1e-3


def test_guidance_that_does_not_fit_the_model(models):
    model = models("llama")
    learner = Learner(model)
    with pytest.raises(ValueError, match="theta has 5 entries, expected 32, the model's d_model"):
        learner.learn(data_of(model), QUICK, Guidance((IVKL(),), torch.zeros(5)))
    with pytest.raises(ValueError, match="layer 9 does not exist"):
        learner.learn(data_of(model), QUICK, Guidance((IVKL(),), torch.zeros(32), layer=9))
    with pytest.raises(ValueError, match="heads L1H7 do not exist: the model has 4 in a layer"):
        learner.learn(data_of(model), QUICK, Guidance((HeadConsistency(((1, 7),)),)))


def test_a_task_is_learned_from_its_fit_inputs_alone(models):
    model = models("llama")
    result = finetune(model, TASK, options=QUICK)
    assert len(result.log) == 6 and result.model is not model
    fit = {example.input for example in TASK.split("fit", 0)}
    assert fit < set(WORDS)


def test_pocket_learns_a_task_it_was_not_trained_on():
    """The score is on inputs that the training did not use."""
    from ivlens.forward.scoring import greedy_accuracy

    torch.set_num_threads(1)
    model, task = load_model("pocket"), load_task("first_and_last_letter")
    batch = build_prompts(model.tokenizer, task, task.split("select", 0), PromptRecipe(seed=1))
    assert greedy_accuracy(model, batch).float().mean() < 0.1
    options = TuneOptions(lr=2e-3, steps=80, batch_size=32, n_samples=400)
    tuned = finetune(model, task, options=options).model
    assert greedy_accuracy(tuned, batch).float().mean() > 0.5


@pytest.mark.parametrize("method", ["full", "lora", "inclora"])
def test_an_interrupted_call_can_be_repeated(llama, tmp_path, method):
    """In a notebook: the same learner, the same call; with a folder it goes on, without one it begins anew."""
    data = training_set(llama, tiny_task(), list(tiny_task().examples)[:8])
    options = TuneOptions(lr=1e-2, steps=8, batch_size=4, save_every=2)
    want = Learner(llama, method)
    want.learn(data, options)

    def interrupt(row):
        if row["step"] == 5:
            raise KeyboardInterrupt

    for folder in (None, tmp_path / method):
        learner = Learner(llama, method)
        with pytest.raises(KeyboardInterrupt):
            learner.learn(data, options, folder=folder, on_step=interrupt)
        log = learner.learn(data, options, folder=folder)
        assert len(log) == 8 and learner.n_tasks == 1
        for (name, got), weight in zip(
            learner.trained.state_dict().items(), want.trained.state_dict().values(), strict=True
        ):
            assert torch.equal(got, weight), name


def test_a_state_of_another_method_is_refused(llama, tmp_path):
    from ivlens.tuning import new_method

    data = training_set(llama, tiny_task(), list(tiny_task().examples)[:8])
    options = TuneOptions(lr=1e-2, steps=4, batch_size=4)
    Learner(llama, new_method("ewc", weight=1.0)).learn(data, options, folder=tmp_path)
    with pytest.raises(ValueError, match="is the state of another training"):
        Learner(llama, new_method("ewc", weight=2.0)).learn(data, options, folder=tmp_path)


def test_a_folder_that_cannot_be_written_is_said_before_training(llama, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="is no folder that can be written to"):
        finetune(llama, tiny_task(), along=Along(tmp_path / "file"))


def test_finetune_says_what_was_learned_and_what_forgotten(llama, tmp_path):
    old = tiny_task("synonym", "Give a synonym.", 2)
    options = TuneOptions(lr=1e-2, steps=4, batch_size=4, judge_every=2)
    result = finetune(llama, tiny_task(), watch=[old], options=options, along=Along(tmp_path, checkpoint_every=2))
    assert result.scores[["task", "role"]].values.tolist() == [["antonym", "new"], ["synonym", "watched"]]
    assert result.log.new.notna().tolist() == [False, True, False, True]
    assert sorted(result.checkpoints) == [2, 4] and all(path.is_dir() for path in result.checkpoints.values())


@pytest.mark.parametrize("guidance", [None, "kl and heads"])
def test_passes_of_a_step_weigh_tokens_not_passes(llama, guidance):
    """Answers of uneven lengths: a step in four passes is the step in one."""
    data = training_set(llama, tiny_task(), list(tiny_task().examples)[:8])
    answers = torch.full((8, 11), -100)
    for row in range(8):
        answers[row, : 2 + row] = torch.arange(10, 12 + row)
    data = dataclasses.replace(data, answers=answers)
    guide = Guidance((IVKL(), HeadConsistency(((0, 1),))), torch.ones(llama.cfg.d_model))
    logs = []
    for accumulate in (1, 4):
        options = TuneOptions(lr=1e-2, steps=2, batch_size=8, accumulate=accumulate)
        logs.append(Learner(llama, "full").learn(data, options, None if guidance is None else guide))
    for name in ("loss", "grad_norm", *(() if guidance is None else ("kl", "heads"))):
        assert logs[0][name].tolist() == pytest.approx(logs[1][name].tolist(), rel=1e-3, abs=1e-6), name


def test_a_training_with_another_rehearsal_does_not_go_on_from_this_one(llama, tmp_path):
    from ivlens.tuning import control, iv_guidance

    data = training_set(llama, tiny_task(), list(tiny_task().examples)[:8])
    options = TuneOptions(lr=1e-2, steps=2, batch_size=4)
    old = tiny_task("synonym", "Give a synonym.", 2)
    made = iv_guidance(llama, tiny_task(), GuidanceRecipe((Rehearse("vectors"),), k=2, n_prompts=4), earlier=[old])
    Learner(llama, "full").learn(data, options, made, folder=tmp_path)
    with pytest.raises(ValueError, match="is the state of another training"):
        Learner(llama, "full").learn(data, options, control(made, "zero_vector", llama), folder=tmp_path)


def test_rehearsal_is_the_same_with_gradient_checkpointing(llama):
    from ivlens.tuning.terms.rehearsal_prompts import RehearsalOptions, vector_rehearsal

    data = training_set(llama, tiny_task(), list(tiny_task().examples)[:8])
    deltas = 3 * torch.randn(2, llama.cfg.d_model, generator=torch.Generator().manual_seed(0))
    place = RehearsalOptions(n=20, layer=1, site="attn_out")
    part = vector_rehearsal(llama, tiny_task(), tiny_task().examples, deltas, options=place)
    norms = []
    for checkpointing in (False, True):
        options = TuneOptions(lr=1e-2, steps=3, batch_size=4, gradient_checkpointing=checkpointing)
        log = Learner(llama, "full").learn(data, options, Guidance((part,)))
        norms.append(log.grad_norm.tolist())
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_in_bfloat16_an_unmoved_student_is_at_its_teacher(llama):
    data = training_set(llama, tiny_task(), list(tiny_task().examples)[:8])
    guide = Guidance((IVKL(), HeadConsistency(((0, 1),))), torch.zeros(llama.cfg.d_model))
    options = TuneOptions(lr=1e-2, steps=1, batch_size=8, precision="bfloat16")
    log = Learner(llama, "full").learn(data, options, guide)
    assert log.kl[0] < 1e-4 and log.heads[0] < 1e-4


def test_answers_that_cannot_be_spelled_are_left_out_once(words):
    model = load_model(hf_model=hf_model("llama"), tokenizer=words)
    task = tiny_task()
    first = dataclasses.replace(task.examples[0], answers=("xylophone",))
    examples = [first, *task.examples[1:4]]
    assert len(training_set(model, task, examples)) == 3
    assert len(training_set(model, task, examples, n_samples=7)) == 7
