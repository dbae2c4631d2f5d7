"""Steering does the same however the model is run, leaves nothing behind, and is judged beside what it has to beat."""

import json
import logging
import threading
from dataclasses import replace

import pytest
import torch
from conftest import WORDS, chained, random_prompts

from ivlens.effects import EffectOptions, head_effects
from ivlens.forward.hooks import added, captured_heads, captured_residual, model_lock, patched_heads
from ivlens.models import model_identity
from ivlens.prompts import PromptRecipe
from ivlens.steering.evaluate import JudgeOptions, evaluate_intervention
from ivlens.steering.prompt_sets import PromptSets
from ivlens.steering.search import Grid
from ivlens.steering.steer import steer
from ivlens.steering.summary import Setting
from ivlens.tasks import Task, TaskExample
from ivlens.vectors import InstructionVector

HEADS = ((0, 1), (1, 0), (1, 3))
N_NEW = 5


def vector_for(model, *, seed=0, size=3.0, heads=HEADS, task="antonym"):
    draw = torch.Generator().manual_seed(seed)
    theta = size * torch.randn(model.cfg.d_model, generator=draw)
    means = torch.randn(len(heads), model.cfg.d_head, generator=draw)
    return InstructionVector(theta, heads, means, task, model_identity(model), {})


def run(model, tokens, mask=None, **more):
    with torch.no_grad():
        return model(tokens, attention_mask=mask, **more)


def write(model, tokens, mask=None, *, cache=True, n=N_NEW):
    return model.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=n,
        do_sample=False,
        stop_at_eos=False,
        use_past_kv_cache=cache,
        verbose=False,
    )


def loop(model, tokens, iv, layer, positions, alpha=1.0, n=N_NEW):
    """Greedy decoding of one unpadded prompt, spelled out: the vector stays where it was added."""
    n_prompt = tokens.shape[1]

    def edit(resid):
        resid = resid.clone()
        begin = 0 if positions == "all" else n_prompt - 1
        resid[:, begin : n_prompt if positions == "prompt" else None] += alpha * iv.theta
        return resid

    for _ in range(n):
        with added(model, layer, "resid_post", edit):
            logits = run(model, tokens, use_cache=False)
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
    return tokens


@pytest.mark.parametrize("mode", ["vector", "heads"])
def test_alpha_0_changes_no_bit(model, mode):
    tokens, mask = random_prompts()
    before = run(model, tokens, mask)
    with steer(model, vector_for(model), layer=1 if mode == "vector" else None, alpha=0, mode=mode):
        assert torch.equal(run(model, tokens, mask), before)
    assert torch.equal(run(model, tokens, mask), before)


@pytest.mark.parametrize("site", ["resid_post", "attn_out"])
def test_only_the_last_prompt_token_is_moved_and_by_alpha_theta(model, site):
    tokens, mask = random_prompts()
    iv = vector_for(model)
    with captured_residual(model, 1, site) as plain:
        run(model, tokens, mask)
    with steer(model, iv, layer=1, alpha=-2, site=site), captured_residual(model, 1, site) as steered:
        run(model, tokens, mask)
    moved = steered[1] - plain[1]
    torch.testing.assert_close(moved[:, -1], (-2 * iv.theta).expand(len(tokens), -1), atol=1e-4, rtol=1e-4)
    assert torch.equal(steered[1][:, :-1], plain[1][:, :-1])


@pytest.mark.parametrize("mode", ["vector", "heads"])
@pytest.mark.parametrize("positions", ["prompt", "every", "all"])
def test_padding_on_either_side_gives_the_same(model, positions, mode):
    iv = vector_for(model)
    options = {"positions": positions, "mode": mode, "layer": 1 if mode == "vector" else None}
    last = {}
    for side in ("left", "right"):
        tokens, mask = random_prompts(side=side)
        with steer(model, iv, **options):
            logits = run(model, tokens, mask)
        ends = mask.shape[1] - 1 if side == "left" else mask.sum(1) - 1
        last[side] = logits[torch.arange(len(tokens)), ends]
    torch.testing.assert_close(last["left"], last["right"], atol=1e-3, rtol=1e-3)
    alone, _ = random_prompts((7,))
    with steer(model, iv, **options):
        torch.testing.assert_close(run(model, alone)[0, -1], last["left"][0], atol=1e-3, rtol=1e-3)


def test_nested_contexts_add_up(model):
    tokens, mask = random_prompts()
    one, two = vector_for(model), vector_for(model, seed=1)
    with steer(model, one, layer=1), steer(model, two, layer=1, alpha=2):
        nested = run(model, tokens, mask)
    with steer(model, one + 2 * two, layer=1):
        torch.testing.assert_close(run(model, tokens, mask), nested, atol=1e-3, rtol=1e-3)
    with steer(model, one, layer=1):
        with steer(model, two, layer=2, positions="every"):
            inner = write(model, tokens, mask, cache=False)
            assert torch.equal(write(model, tokens, mask, cache=True), inner)
        outer = write(model, tokens, mask)
    with steer(model, one, layer=1):
        assert torch.equal(write(model, tokens, mask), outer)


@pytest.mark.parametrize("mode", ["vector", "heads"])
@pytest.mark.parametrize("positions", ["prompt", "every", "all"])
def test_generation_is_the_same_with_and_without_cache(model, positions, mode):
    tokens, mask = random_prompts()
    with steer(model, vector_for(model), layer=1 if mode == "vector" else None, positions=positions, mode=mode):
        with_cache = write(model, tokens, mask)
        assert torch.equal(write(model, tokens, mask, cache=False), with_cache)
        assert torch.equal(write(model, tokens, mask), with_cache)


@pytest.mark.parametrize("positions", ["prompt", "every", "all"])
def test_generation_is_the_loop_spelled_out(model, positions):
    tokens, _ = random_prompts((6,))
    iv = vector_for(model)
    expected = loop(model, tokens, iv, 1, positions)
    with steer(model, iv, layer=1, positions=positions):
        for cache in (True, False):
            assert torch.equal(write(model, tokens, cache=cache), expected)
            direct = model.original_model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=N_NEW,
                min_new_tokens=N_NEW,
                do_sample=False,
                use_cache=cache,
                eos_token_id=None,
                pad_token_id=0,
            )
            assert torch.equal(direct, expected)
    assert not torch.equal(loop(model, tokens, iv, 1, positions, alpha=0), expected)


@pytest.mark.parametrize("positions", ["prompt", "every", "all"])
def test_each_row_of_a_padded_batch_is_written_as_alone(llama, positions):
    tokens, mask = random_prompts()
    iv = vector_for(llama)
    with steer(llama, iv, layer=1, positions=positions):
        together = write(llama, tokens, mask)
        for row, length in enumerate(mask.sum(1).tolist()):
            alone = write(llama, tokens[row : row + 1, -length:])
            assert torch.equal(alone[0], together[row, -length - N_NEW :])


def test_positions_prompt_and_every_differ(llama):
    tokens, _ = random_prompts((6,))
    iv = vector_for(llama)
    texts = []
    for positions in ("prompt", "every"):
        with steer(llama, iv, layer=1, positions=positions):
            texts.append(write(llama, tokens))
    assert not torch.equal(*texts) and torch.equal(texts[0][:, :7], texts[1][:, :7])


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("positions", ["prompt", "every", "all"])
def test_streaming_gives_the_same_text_whatever_runs_between_two_chunks(llama, positions, cache):
    tokens, _ = random_prompts((6,))
    other, mask = random_prompts()
    iv = vector_for(llama)
    options = {"max_new_tokens": N_NEW, "do_sample": False, "stop_at_eos": False, "verbose": False}
    with steer(llama, iv, layer=1, positions=positions):
        whole = write(llama, tokens)
        expected = run(llama, other, mask)
        chunks = []
        stream = llama.generate_stream(tokens, use_past_kv_cache=cache, max_tokens_per_yield=1, **options)
        for chunk in stream:
            chunks.append(chunk)
            if not cache:  # the bridge keeps one cache per model
                assert torch.equal(run(llama, other, mask), expected)
        assert torch.equal(torch.cat(chunks, 1), whole)


def test_a_stream_may_not_outlive_its_context(llama):
    tokens, _ = random_prompts((6,))
    with steer(llama, vector_for(llama), layer=1):
        stream = llama.generate_stream(
            tokens, max_new_tokens=4, stop_at_eos=False, max_tokens_per_yield=1, verbose=False
        )
        next(stream)
    with pytest.raises(RuntimeError, match="outlived"):
        next(stream)


def test_text_in_text_out(llama):
    prompts = ["Instruction: Give the big", "Input: small house\nOutput:"]
    iv = vector_for(llama, size=8.0)
    options = {"max_new_tokens": 4, "do_sample": False, "stop_at_eos": False, "verbose": False}
    plain = llama.generate(prompts, **options)
    with steer(llama, iv, layer=2):
        both = llama.generate(prompts, **options)
        assert [llama.generate(prompt, **options) for prompt in prompts] == both
        assert llama.generate(prompts, use_past_kv_cache=False, **options) == both
    assert both != plain and llama.generate(prompts, **options) == plain


def test_a_hand_written_loop_with_a_cache(llama):
    tokens, _ = random_prompts((6,))
    iv = vector_for(llama)
    for positions in ("prompt", "every", "all"):
        expected = loop(llama, tokens, iv, 1, positions, n=3)
        with steer(llama, iv, layer=1, positions=positions):
            logits, cache = run(llama, tokens, use_cache=True, return_type="logits_and_cache")
            out = [tokens, logits[:, -1:].argmax(-1)]
            for _ in range(2):
                logits = run(llama, out[-1], past_key_values=cache)
                out.append(logits[:, -1:].argmax(-1))
        assert torch.equal(torch.cat(out, 1), expected)


def test_mode_heads_is_patching_the_heads(model):
    tokens, mask = random_prompts()
    iv = vector_for(model)

    def patch(z, layer):
        z = z.clone()
        for mean, (at, head) in zip(iv.head_means, iv.heads, strict=True):
            if at == layer:
                z[:, -1, head] = mean
        return z

    with patched_heads(model, patch, [0, 1]):
        expected = run(model, tokens, mask)
    with steer(model, iv, mode="heads"):
        assert torch.equal(run(model, tokens, mask), expected)
    with captured_heads(model) as plain:
        run(model, tokens, mask)
    with steer(model, iv, mode="heads", alpha=0.5), captured_heads(model) as half:
        run(model, tokens, mask)
    torch.testing.assert_close(half[0][:, -1, 1], (plain[0][:, -1, 1] + iv.head_means[0]) / 2, atol=1e-4, rtol=1e-4)
    assert torch.equal(half[0][:, :-1], plain[0][:, :-1])


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_on_post_norm_families_adding_theta_is_replacing_all_heads_of_the_layer(new_model, family):
    """From zero: with every head of a layer replaced by its value, attention adds theta instead of nothing."""
    from ivlens.forward.means import mean_head_outputs, mean_write_scale
    from ivlens.vectors.heads import head_writes

    bridge = new_model(family)
    tokens, mask = random_prompts((6,))
    mean_z = mean_head_outputs(bridge, tokens, mask)
    heads = tuple((1, head) for head in range(4))
    theta = head_writes(bridge, mean_z, mean_write_scale(bridge, tokens, mask))[1].sum(0)
    iv = InstructionVector(theta, heads, mean_z[1], "all", model_identity(bridge), {})
    other, _ = random_prompts((9,))
    with steer(bridge, iv, mode="heads"), captured_residual(bridge, 1, "attn_out") as replaced:
        run(bridge, other)
    torch.testing.assert_close(replaced[1][0, -1], theta, atol=1e-4, rtol=1e-3)


def test_exceptions_leave_nothing_behind(llama):
    tokens, mask = random_prompts()
    before = run(llama, tokens, mask)
    methods = llama.generate, llama.original_model.generate, llama.generate_stream
    for mode, layer in (("vector", 1), ("heads", None)):
        with (
            pytest.raises(KeyError),
            steer(llama, vector_for(llama), layer=layer, mode=mode),
            steer(llama, vector_for(llama), layer=2),
        ):
            run(llama, tokens, mask)
            raise KeyError("in the body")
    assert torch.equal(run(llama, tokens, mask), before)
    assert methods == (llama.generate, llama.original_model.generate, llama.generate_stream)
    assert "generate" not in llama.__dict__ and not llama.original_model._forward_pre_hooks
    with steer(llama, vector_for(llama), layer=1):
        expected = run(llama, tokens, mask)
        with pytest.raises(ValueError, match="attention_mask"):
            llama.generate(tokens, attention_mask=mask[:, 1:], verbose=False)
        assert torch.equal(run(llama, tokens, mask), expected)


def test_a_context_without_a_pass_is_an_error(llama):
    with pytest.raises(RuntimeError, match="no forward pass"), steer(llama, vector_for(llama), layer=1):
        pass


def test_two_threads_get_right_results(llama):
    tokens, mask = random_prompts()
    vectors = [vector_for(llama, seed=seed) for seed in range(4)]
    expected = []
    for iv in vectors:
        with steer(llama, iv, layer=1):
            expected.append(run(llama, tokens, mask))
    wrong = []

    def work(number):
        for _ in range(5):
            with steer(llama, vectors[number], layer=1):
                if not torch.equal(run(llama, tokens, mask), expected[number]):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and not any(thread.is_alive() for thread in threads)


def in_thread(work):
    caught = []

    def guarded():
        try:
            work()
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join(60)
    return caught


def test_a_second_thread_inside_the_context_is_refused(llama):
    tokens, mask = random_prompts()
    with steer(llama, vector_for(llama), layer=1):
        expected = run(llama, tokens, mask)
        (error,) = in_thread(lambda: run(llama, tokens, mask))
        assert isinstance(error, RuntimeError) and "two threads" in str(error)
        assert torch.equal(run(llama, tokens, mask), expected)
    with steer(
        llama, vector_for(llama), layer=1
    ):  # a text streamer generates in a thread of its own: that is one thread
        assert not in_thread(lambda: write(llama, tokens, mask))
    with model_lock(llama):
        assert not torch.equal(run(llama, tokens, mask), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 3}, "layer 3 does not exist.*0 to 2"),
        ({"layer": -1}, "layer -1 does not exist"),
        ({}, "got no layer"),
        ({"layer": 1, "alpha": float("nan")}, "alpha is nan"),
        ({"layer": 1, "mode": "heads"}, "leave layer out"),
    ],
)
def test_wrong_options_are_refused_with_a_remedy(llama, options, message):
    with pytest.raises(ValueError, match=message), steer(llama, vector_for(llama), **options):
        pass


def test_unknown_words_are_refused(llama):
    iv = vector_for(llama)
    with pytest.raises((ValueError, TypeError)), steer(llama, iv, layer=1, positions="everywhere"):
        pass
    with pytest.raises((ValueError, TypeError)), steer(llama, iv, layer=1, mode="tokens"):
        pass
    with pytest.raises((ValueError, TypeError)), steer(llama, iv, layer=1, site="resid_mid"):
        pass


def test_vectors_that_do_not_fit_are_refused(llama, new_model):
    iv = vector_for(llama)
    with pytest.raises(ValueError, match="has d_model 16.*expected 32"):
        with steer(llama, replace(iv, theta=torch.randn(16)), layer=1):
            pass
    with pytest.raises(ValueError, match="has no heads"), steer(llama, iv + iv, mode="heads"):
        pass
    with pytest.raises(ValueError, match="one shape of model only"), steer(new_model("gpt2"), iv, mode="heads"):
        pass
    tuned = new_model("llama", seed=1)
    with pytest.raises(ValueError, match="allow_other_weights=True"), steer(tuned, iv, layer=1):
        pass
    tokens, _ = random_prompts((4,))
    with steer(tuned, iv.for_model(tuned), layer=1):
        run(tuned, tokens)
    with pytest.raises(TypeError, match="load_model"), steer(llama.original_model, iv, layer=1):
        pass


def test_padding_that_cannot_be_told_is_refused(llama):
    iv, (tokens, mask) = vector_for(llama), random_prompts(side="right")
    pad = llama.tokenizer.pad_token_id
    unmasked = tokens if pad is None else tokens.masked_fill(mask == 0, pad)
    if pad is not None:
        with pytest.raises(ValueError, match="pass attention_mask"), steer(llama, iv, layer=1):
            run(llama, unmasked)
    with pytest.raises(ValueError, match=r"expected \[batch, pos\]"), steer(llama, iv, layer=1):
        run(llama, tokens, torch.zeros(4, 1, 9, 9))
    with pytest.raises(ValueError, match="without a single token"), steer(llama, iv, layer=1):
        run(llama, tokens, mask * torch.tensor([[1], [0], [1], [1]]))


# --- evaluation


@pytest.fixture(scope="module")
def planted(new_model, byte_level):
    """A model, a task whose answers begin with one of two tokens, and a vector that makes one of them win."""
    bridge = new_model("llama", byte_level, n_layers=2)
    examples = tuple(TaskExample(f"{a} {b}", ("red",)) for a in WORDS for b in ("hot", "cold", "tree"))
    task = Task("say red", examples, instructions=("Give the red house.",))
    (token,), (house,) = (byte_level.encode(word, add_special_tokens=False) for word in (" red", " house"))
    chained(bridge, {token: house})  # the answer does not go on as another word
    row = bridge.original_model.lm_head.weight.detach()[token].clone()
    theta = row / bridge.original_model.model.norm.weight.detach()
    iv = InstructionVector(theta, HEADS[:2], torch.randn(2, bridge.cfg.d_head), task.name, model_identity(bridge), {})
    return bridge, task, iv


GRID = Grid(alphas=(1.0, 30.0), n_screen=4, n_finalists=2)


def by_condition(frame):
    return frame.set_index("condition").to_dict("index")


def test_a_planted_vector_is_found_and_beats_its_controls(planted):
    bridge, task, iv = planted
    others = [replace(iv.random_like(7), task="other"), iv]
    frame = evaluate_intervention(
        bridge, task, iv, at=GRID, n_draws=3, n_prompts=10, options=JudgeOptions(other_vectors=others)
    ).table
    rows = by_condition(frame)
    assert list(rows) == [
        "clean", "bare", "iv", "random", "random_heads", "other_tasks", "iv_heads", "constant",
    ]  # fmt: skip
    assert rows["iv"]["accuracy"] == 1 and rows["iv"]["layer"] == 1 and rows["iv"]["alpha"] == 30
    assert rows["bare"]["accuracy"] == 0 and rows["random"]["accuracy"] < 0.7
    assert [rows[name]["n_vectors"] for name in rows] == [0, 0, 1, 3, 3, 1, 0, 0]
    assert rows["constant"]["vector"] == "red" and rows["constant"]["accuracy"] == 1
    assert rows["iv"]["n"] == 10 and rows["iv"]["prob"] > 5 * rows["bare"]["prob"]
    for row in rows.values():
        assert row["accuracy_lo"] <= row["accuracy"] <= row["accuracy_hi"]
    assert rows["random"]["prob_lo"] < rows["random"]["prob"] < rows["random"]["prob_hi"]
    assert json.loads(json.dumps(frame.attrs))["split"] == "test"


def test_one_row_for_each_vector(planted):
    bridge, task, iv = planted
    options = {"at": GRID, "n_draws": 3, "n_prompts": 6}
    whole = by_condition(evaluate_intervention(bridge, task, iv, **options).table)
    each = evaluate_intervention(bridge, task, iv, options=JudgeOptions(per_vector=True), **options).table
    random = each[each.condition == "random"]
    assert len(random) == 3 and random.layer.notna().all() and (random.n_vectors == 1).all()
    assert random.accuracy.mean() == pytest.approx(whole["random"]["accuracy"])
    assert random.accuracy.max() == pytest.approx(whole["random"]["accuracy_best"])


def test_the_same_seed_gives_the_same_table(planted):
    bridge, task, iv = planted
    options = {"at": Setting(1, 2, "attn_out"), "n_draws": 2, "n_prompts": 5}
    one, again = (evaluate_intervention(bridge, task, iv, **options).table for _ in range(2))
    assert one.equals(again)
    other = evaluate_intervention(bridge, task, iv, options=JudgeOptions(seed=3), **options).table
    assert not one.equals(other)
    assert set(one[one.n_vectors > 0].alpha) == {2.0} and set(one[one.n_vectors > 0].site) == {"attn_out"}


def test_scores_are_those_of_steering_and_running_the_model(planted):
    from ivlens.forward.scoring import answer_logits, first_token_prob, greedy_accuracy, sequence_logprob
    from ivlens.prompts import build_prompts

    def prob_of(batch):
        logits = run(bridge, batch.tokens, batch.attention_mask, use_cache=False)
        return first_token_prob(logits[:, -1], batch.answer_tokens[:, 0])

    bridge, task, iv = planted
    at = Setting(0, 2, "attn_out")
    rows = by_condition(evaluate_intervention(bridge, task, iv, n_draws=1, n_prompts=8, at=at).table)
    examples = PromptSets(bridge, task, n_prompts=8).examples("test")
    batch = build_prompts(bridge.tokenizer, task, examples, corruption="drop")
    with steer(bridge, iv, at=at):
        prob = prob_of(batch)
    assert rows["iv"]["prob"] == pytest.approx(float(prob.mean()), rel=1e-3)
    logprob = sequence_logprob(answer_logits(bridge, batch), batch.answer_tokens)
    assert rows["bare"]["logprob"] == pytest.approx(float(logprob.mean()), rel=1e-3)
    clean = build_prompts(bridge.tokenizer, task, examples)
    assert rows["clean"]["accuracy"] == pytest.approx(float(greedy_accuracy(bridge, clean).float().mean()))
    assert rows["clean"]["prob"] == pytest.approx(float(prob_of(clean).mean()), rel=1e-3)
    with steer(bridge, iv, mode="heads"):
        heads = prob_of(batch)
    assert rows["iv_heads"]["prob"] == pytest.approx(float(heads.mean()), rel=1e-3)


def test_the_splits_are_those_the_vector_was_made_on(planted):
    bridge, task, iv = planted
    fixed = {"at": Setting(0, 2, "attn_out"), "n_draws": 1}
    made = replace(iv, settings={"effects": {"seed": 5}})
    found = evaluate_intervention(bridge, task, made, **fixed)
    assert found.recipe.seed == 5 and found.table["n"][0] == len(task.split("test", 5))
    with pytest.raises(ValueError, match=r"seeds \[4, 5\]"):
        other = replace(iv, task="other", settings={"effects": {"seed": 4}})
        evaluate_intervention(bridge, task, made, options=JudgeOptions(other_vectors=[other]), **fixed)
    found = evaluate_intervention(bridge, task, 2 * made - made.random_like(0), **fixed)
    assert found.recipe.seed == 5
    # of another seed would be other splits, on which the vector may have been made
    found = evaluate_intervention(bridge, task, made, recipe=PromptRecipe("qa", seed=7), **fixed)
    assert (found.recipe.template, found.recipe.seed) == ("qa", 5)
    on_test = {"effects": {"split": "test", "seed": 5}}
    chosen_on_test = replace(iv, settings={"effects": {"split": "fit"}, "universal": [{"task": "other", **on_test}]})
    for leaking in (replace(iv, settings=on_test), chosen_on_test, 2 * chosen_on_test, made + chosen_on_test):
        with pytest.raises(ValueError, match="made on the split 'test'"):
            evaluate_intervention(bridge, task, leaking, **fixed)


def test_other_tasks_are_other_than_the_judged_one(planted, caplog):
    bridge, task, iv = planted
    fixed = {"at": Setting(0, 2, "attn_out"), "n_draws": 1, "n_prompts": 4}
    synonym = replace(iv.random_like(3), task="synonym", settings={})
    given = JudgeOptions(other_vectors=[iv, synonym, synonym + iv], per_vector=True)
    for vector in (2 * iv, iv - synonym):
        frame = evaluate_intervention(bridge, task, vector, options=given, **fixed).table
        assert list(frame[frame.condition == "other_tasks"].vector) == ["synonym"]
    frame = evaluate_intervention(bridge, task, synonym, options=given, **fixed).table
    assert by_condition(frame)["other_tasks"]["n_vectors"] == 0 and not caplog.messages
    frame = evaluate_intervention(bridge, task, iv, **fixed).table
    (line,) = caplog.messages
    assert "no built-in task shares the inputs of" in line and by_condition(frame)["other_tasks"]["n_vectors"] == 0


def test_judging_on_the_searched_prompts_is_flagged(planted, caplog):
    bridge, task, iv = planted
    options = {"n_draws": 1, "n_prompts": 4}
    test, select = (JudgeOptions(split=split, other_vectors=()) for split in ("test", "select"))
    found = evaluate_intervention(bridge, task, iv, at=GRID, options=test, **options)
    assert found.settings["searched_on"] == "select" and not caplog.messages
    evaluate_intervention(bridge, task, iv, at=GRID, options=select, **options)
    assert "too high for every vector" in caplog.text
    fixed = evaluate_intervention(bridge, task, iv, at=Setting(0, 1, "attn_out"), options=select, **options)
    assert fixed.settings["searched_on"] is None


def test_an_evaluation_says_where_the_vector_was_best(planted):
    bridge, task, iv = planted
    found = evaluate_intervention(
        bridge, task, iv, at=GRID, n_draws=1, n_prompts=6, options=JudgeOptions(other_vectors=())
    )
    row = by_condition(found.table)["iv"]
    assert found.best == Setting(int(row["layer"]), row["alpha"], row["site"])
    tokens, mask = random_prompts((5,))
    with steer(bridge, iv, at=found.best):
        steered = run(bridge, tokens, mask)
    with steer(bridge, iv, **found.best._asdict()):
        assert torch.equal(run(bridge, tokens, mask), steered)
    with pytest.raises(ValueError, match="leave one out"), steer(bridge, iv, at=found.best, alpha=2):
        pass
    assert found.accuracy() == row["accuracy"] and "constant" in str(found) and "<table" in found._repr_html_()
    assert f"layer {found.best.layer}" in repr(found)
    with pytest.raises(KeyError, match="expected one of clean, bare, iv"):
        found.accuracy("baseline")
    again = evaluate_intervention(bridge, task, iv, at=found.best, n_draws=1, n_prompts=6)
    assert again.best == found.best and by_condition(again.table)["iv"]["accuracy"] == row["accuracy"]


def test_the_vectors_own_recipe_is_followed(planted, caplog):
    bridge, task, iv = planted
    examples = tuple(replace(at, answers=(WORDS[n % 7],)) for n, at in enumerate(task.examples))
    task = replace(task, examples=examples)
    fixed = {"at": Setting(0, 2, "attn_out"), "n_draws": 1, "n_prompts": 4}
    own = PromptRecipe("qa", instruction=None, n_shots=3)
    vector = replace(iv, settings={"effects": {"recipe": own.to_dict()}})
    assert vector.recipe == own
    with caplog.at_level(logging.INFO, logger="ivlens"):
        assert evaluate_intervention(bridge, task, vector, **fixed).recipe == own
        assert not [line for line in caplog.messages if "prompts are made as given" in line]
        assert evaluate_intervention(bridge, task, vector, recipe=PromptRecipe(), **fixed).recipe.template == "plain"
        assert len([line for line in caplog.messages if "prompts are made as given" in line]) == 1
    clean = PromptSets(bridge, task, own, n_prompts=4).batch("test", corrupted=False)
    bare = PromptSets(bridge, task, own, n_prompts=4).batch("test")
    assert all(text.count("Q:") == 4 and "house" not in text for text in clean.texts)
    assert all(text == f"Q: {one.input}\nA:" for text, one in zip(bare.texts, bare.examples, strict=True))


def test_another_tasks_vector_lends_its_form_but_not_its_instruction(planted):
    bridge, task, iv = planted
    fixed = {"at": Setting(0, 2, "attn_out"), "n_draws": 1, "n_prompts": 4}
    told = PromptRecipe("qa", instruction="Give the opposite.", n_shots=0)
    other = replace(iv, task="antonym", settings={"effects": {"recipe": told.to_dict()}})
    found = evaluate_intervention(bridge, task, other, **fixed)
    assert found.recipe == PromptRecipe("qa", n_shots=0)  # this task has an instruction
    bare = replace(task, instructions=())
    assert evaluate_intervention(bridge, bare, other, **fixed).recipe == PromptRecipe("qa", n_shots=5)
    assert evaluate_intervention(bridge, task, replace(other, task=task.name), **fixed).recipe == told


def test_a_vector_is_not_searched_where_it_was_made(planted):
    bridge, task, iv = planted
    made = replace(iv, settings={"effects": {"split": "select", "seed": 0}})
    with pytest.raises(ValueError, match="made on the split 'select'"):
        evaluate_intervention(bridge, task, made, at=GRID, n_draws=1, n_prompts=4)
    evaluate_intervention(bridge, task, made, at=Setting(0, 2, "attn_out"), n_draws=1, n_prompts=4)


def test_random_heads_of_a_contrast_are_measured_as_contrasts(planted, monkeypatch):
    from ivlens.steering import evaluate

    bridge, task, iv = planted
    kept = []
    made = evaluate.random_head_vectors
    monkeypatch.setattr(
        evaluate,
        "random_head_vectors",
        lambda model, iv, means, *rest: kept.append(means) or made(model, iv, means, *rest),
    )
    contrast = replace(iv, settings={"contrast": True, "effects": {"template": "after", "corruption": "drop"}})
    fixed = {"at": Setting(0, 2, "attn_out"), "n_draws": 1, "n_prompts": 4}
    for vector in (iv, contrast):
        rows = by_condition(evaluate_intervention(bridge, task, vector, **fixed).table)
        assert rows["random_heads"]["n_vectors"] == 1
    assert kept[0].mean_z_corrupted is None and kept[1].mean_z_corrupted is not None
    assert not torch.allclose(kept[0].mean_z, kept[1].mean_z)  # the template is the vector's


def test_shuffled_prompts_carry_no_instruction(planted):
    bridge, task, iv = planted
    examples = tuple(replace(at, answers=(WORDS[n % 7],)) for n, at in enumerate(task.examples))
    task = replace(task, examples=examples)
    fixed = {"at": Setting(0, 2, "attn_out"), "n_draws": 1, "n_prompts": 4}
    shuffled = JudgeOptions(corruption="shuffle")
    found = evaluate_intervention(bridge, task, iv, recipe=PromptRecipe(n_shots=5), options=shuffled, **fixed)
    assert found.recipe.n_shots == 5 and found.settings["corruption"] == "shuffle"
    batch = PromptSets(bridge, task, PromptRecipe(n_shots=5), "shuffle", n_prompts=4).batch("test")
    assert not any("house" in text for text in batch.texts) and set(batch.instructions) == {None}
    with pytest.raises(ValueError, match="'shuffle' got n_shots = 0"):
        evaluate_intervention(bridge, task, iv, options=shuffled, **fixed)


def test_a_scaled_vector_has_all_controls(planted):
    bridge, task, iv = planted
    fixed = {"at": Setting(0, 2, "attn_out"), "n_draws": 2, "n_prompts": 4}
    rows = by_condition(evaluate_intervention(bridge, task, -iv, **fixed).table)
    assert rows["random_heads"]["n_vectors"] == 2 and "iv_heads" in rows


def test_tasks_without_instructions_and_vectors_without_heads(planted):
    bridge, task, iv = planted
    bare = replace(task, instructions=())
    at = Setting(1, 1, "resid_post")
    found = evaluate_intervention(bridge, bare, iv + iv, at=at, n_draws=2, n_prompts=4)
    rows = by_condition(found.table)
    assert found.settings["corruption"] == "drop" and found.recipe.n_shots == 5
    assert "iv_heads" not in rows and rows["random_heads"]["n_vectors"] == 0
    assert rows["random_heads"]["accuracy"] != rows["random_heads"]["accuracy"]


def test_wrong_requests_are_refused(planted):
    bridge, task, iv = planted
    wide = replace(iv, task="wide", theta=torch.randn(16))
    for options, message in (
        ({"at": Grid(layers=(9,))}, "layer 9 does not exist"),
        ({"at": Setting(9, 1, "resid_post")}, "layer 9 does not exist"),
        ({"at": Grid(sites=("mlp",))}, "site is 'mlp'"),
        ({"n_prompts": 0}, "n_prompts is 0"),
        ({"at": Grid(alphas=())}, "grid is empty"),
        ({"options": JudgeOptions(other_vectors=[wide])}, "has d_model 16"),
        ({"recipe": PromptRecipe(instruction=None, n_shots=0)}, "neither an instruction nor demonstrations"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_intervention(bridge, task, iv, n_draws=1, **options)
    with pytest.raises(RuntimeError, match="steer context open"), steer(bridge, iv, layer=0):
        evaluate_intervention(bridge, task, iv, at=Grid(layers=(0,)), n_draws=1)
    few = EffectOptions(layers=[0], heads=[0], n_check_prompts=0)
    effects = head_effects(bridge, task, corruption="drop", n_prompts=2, options=few)
    old = replace(effects, model=replace(effects.model, config_hash="another"))
    with pytest.raises(ValueError, match="means are effects measured on .*this model has another configuration"):
        evaluate_intervention(bridge, task, iv, options=JudgeOptions(means=old, other_vectors=()))
