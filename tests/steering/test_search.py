"""A grid gives the scores of single steered passes, whatever is shared between them."""

import json
from dataclasses import asdict, replace
from itertools import product

import pytest
import torch
from conftest import WORDS, chained, random_prompts

from ivlens.forward.hooks import SITES
from ivlens.forward.prefix import SharedPrefix
from ivlens.forward.scoring import answer_logits, first_token_prob, greedy_accuracy, sequence_logprob
from ivlens.models import load_model, model_identity
from ivlens.prompts import PromptBatch, PromptRecipe, build_prompts
from ivlens.steering.prompt_sets import PromptSets
from ivlens.steering.search import Grid, best_settings, sweep_settings, tried_layers
from ivlens.steering.steer import steer
from ivlens.steering.summary import Judged, Scores, Setting, summary
from ivlens.steering.trials import Trials
from ivlens.tasks import Task, TaskExample
from ivlens.vectors import InstructionVector

# families whose blocks put out tuples, use ALiBi, local or sliding windows
MORE_FAMILIES = ("gptj", "gptneo", "bloom", "mpt", "gemma3", "olmo2")


def other_family(name):
    import transformers as hf

    small = {"vocab_size": 400, "bos_token_id": 1, "eos_token_id": 2}
    shape = {**small, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "pad_token_id": 0}
    grouped = {**shape, "num_key_value_heads": 2, "intermediate_size": 48}
    local = {"attention_types": [[["global", "local", "global"], 1]], "window_size": 4}
    config = {
        "gptj": lambda: hf.GPTJConfig(n_embd=32, n_layer=3, n_head=4, rotary_dim=4, n_positions=64, **small),
        "gptneo": lambda: hf.GPTNeoConfig(hidden_size=32, num_layers=3, num_heads=4, **local, **small),
        "bloom": lambda: hf.BloomConfig(hidden_size=32, n_layer=3, n_head=4, **small),
        "mpt": lambda: hf.MptConfig(d_model=32, n_layers=3, n_heads=4, max_seq_len=64, **small),
        "olmo2": lambda: hf.Olmo2Config(**grouped),
        "gemma3": lambda: hf.Gemma3TextConfig(head_dim=12, sliding_window=4, **grouped),
    }[name]()
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return load_model(hf_model=model)


def batch_of(answers, side="left"):
    """Random prompts with the given lists of answers, each answer a tuple of tokens."""
    tokens, mask = random_prompts((7, 4, 9, 5)[: len(answers)], side)
    first = torch.full((len(answers), max(len(row[0]) for row in answers)), -100)
    for at, row in enumerate(answers):
        first[at, : len(row[0])] = torch.tensor(row[0])
    examples = tuple(TaskExample(f"input {at}", ("answer",)) for at in range(len(answers)))
    none = (None,) * len(answers)
    return PromptBatch(
        tokens=tokens,
        attention_mask=mask,
        answer_tokens=first,
        foil_tokens=None,
        alternatives=tuple(answers),
        texts=("",) * len(answers),
        examples=examples,
        corruptions=("drop",) * len(answers),
        instructions=none,
        counterfactuals=none,
    )


ANSWERS = [((17, 30, 5),), ((8,), (9,)), ((17, 30), (40,), (17, 31)), ((12, 13), (12, 14))]


def prob_of(model, batch):
    """Whole passes, whatever the model is steered with."""
    with torch.no_grad():
        logits = model(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
    return first_token_prob(logits[:, -1], batch.answer_tokens[:, 0])


def logprob_of(model, batch):
    return sequence_logprob(answer_logits(model, batch), batch.answer_tokens)


def vector_for(model, seed=0, task="antonym", size=3.0):
    theta = size * torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(seed))
    return InstructionVector(theta, (), torch.zeros(0, model.cfg.d_head), task, model_identity(model), {})


def test_stacked_rows_are_single_steered_passes(model):
    check_rows(model)


@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_the_same_for_families_with_other_blocks_and_masks(family):
    check_rows(other_family(family))


def check_rows(bridge):
    batch = batch_of([((17,),), ((8,), (9,)), ((40,),), ((12,),)])
    trials = Trials(bridge, batch, rows_per_pass=5)
    portion = trials._portion(0)
    # blocks can be left out in all these families
    assert portion._streams(portion._answers.by_length[0], 0) is not None
    vectors = [vector_for(bridge, seed, size=0.5) for seed in range(2)]
    settings = [Setting(*place) for place in product(range(3), (0.0, -2.0), SITES)]
    for vector in vectors:
        scores = trials.at(settings, vector.theta.repeat(len(settings), 1))
        for row, setting in enumerate(settings):
            with steer(bridge, vector, **setting._asdict()):
                prob = prob_of(bridge, batch)
            torch.testing.assert_close(scores.prob[row], prob, atol=1e-4, rtol=1e-2)
    torch.testing.assert_close(trials.unsteered().prob[0], prob_of(bridge, batch), atol=1e-4, rtol=1e-2)


def test_answers_of_several_tokens_and_several_answers(model):
    batch = batch_of(ANSWERS)
    scores = Trials(model, batch, rows_per_pass=3).unsteered()
    torch.testing.assert_close(scores.logprob[0], logprob_of(model, batch), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(scores.prob[0], prob_of(model, batch), atol=1e-4, rtol=1e-2)
    assert torch.equal(scores.accuracy[0].bool(), greedy_accuracy(model, batch))


def test_brief_scores_are_the_same_without_logprob(model):
    theta = vector_for(model).theta
    written = Trials(model, batch_of(ANSWERS))
    deltas, thrice = theta[None] * torch.tensor([[0.0], [1.0], [4.0]]), [Setting(1, 1.0, "attn_out")] * 3
    tops = [model(batch_of(ANSWERS).tokens[at : at + 1])[0, -1].argmax() for at in range(4)]
    answers = [*ANSWERS[:2], ((17, 30), (int(tops[2]),), (int(tops[2]), 9)), ((int(tops[3]), 14),)]
    for trials in (written, Trials(model, batch_of(answers))):
        whole, brief = (trials.at(thrice, deltas, part=part) for part in ("all", "no logprob"))
        assert torch.equal(whole.accuracy, brief.accuracy) and bool(brief.logprob.isnan().all())
        torch.testing.assert_close(whole.prob, brief.prob, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("positions", ["prompt", "every", "all"])
@pytest.mark.parametrize("site", ["resid_post", "attn_out"])
def test_what_steered_generation_writes_is_what_counts_as_right(model, positions, site):
    """Teacher forcing with the vector agrees with greedy decoding under `steer`, for right and for wrong answers."""
    batch, iv = batch_of(ANSWERS), vector_for(model)
    with steer(model, iv, layer=1, site=site, positions=positions):
        written = model.generate(
            batch.tokens,
            attention_mask=batch.attention_mask,
            max_new_tokens=3,
            do_sample=False,
            stop_at_eos=False,
            verbose=False,
        )[:, batch.tokens.shape[1] :].tolist()
    right = [tuple(row[: at + 1]) for at, row in enumerate(written[:3])]  # answers of 1, 2 and 3 tokens
    wrong = (*written[3][:2], (written[3][2] + 1) % 400)
    hits = batch_of([((399, 398), right[0]), (right[1],), (right[2], (5,)), (wrong,)])
    scores = Trials(model, hits, positions=positions).added(iv.theta[None], 1, site)
    assert scores.accuracy[0].tolist() == [1, 1, 1, 0]
    assert Trials(model, hits, positions=positions).unsteered().accuracy.sum() < 3


def test_left_out_blocks_and_all_blocks_give_the_same(model, monkeypatch):
    batch, theta = batch_of(ANSWERS), vector_for(model).theta[None]
    quick = [Trials(model, batch, positions="every").added(theta, 1, site) for site in ("resid_post", "attn_out")]
    monkeypatch.setattr(SharedPrefix, "streams", lambda *_: None)
    whole = [Trials(model, batch, positions="every").added(theta, 1, site) for site in ("resid_post", "attn_out")]
    for one, other in zip(quick, whole, strict=True):
        torch.testing.assert_close(one.logprob, other.logprob, atol=1e-3, rtol=1e-3)
        assert torch.equal(one.accuracy, other.accuracy)
    assert "forward" not in model.blocks[0].__dict__


def test_a_family_that_cannot_leave_out_blocks_is_noticed(llama, monkeypatch):
    batch = batch_of(ANSWERS)
    trials = Trials(llama, batch)
    monkeypatch.setattr(
        "ivlens.forward.joining.output_form", lambda out: 2
    )  # a tuple, where the model expects a tensor
    portion = trials._portion(0)
    assert portion._streams(portion._answers.by_length[0], 0) is None
    scores = trials.added(vector_for(llama).theta[None], 1, "resid_post")
    monkeypatch.undo()
    torch.testing.assert_close(
        scores.logprob, Trials(llama, batch).added(vector_for(llama).theta[None], 1, "resid_post").logprob
    )


def test_little_memory_means_portions_and_the_same_scores(llama, monkeypatch):
    """No pass sees more rows than fit, and none makes logits of positions that nobody reads."""
    batch, iv = batch_of(ANSWERS), vector_for(llama)
    settings = [Setting(*place) for place in product(range(3), (1.0, -2.0), SITES)]
    thetas = iv.theta.repeat(len(settings), 1)
    whole = Trials(llama, batch).at(settings, thetas)
    seen = []
    handle = llama.unembed.register_forward_hook(lambda module, given, out: seen.append(tuple(out.shape[:2])))
    try:
        Trials(llama, batch).unsteered()
        assert max(width for _, width in seen) == 3  # the prompt's last token and two of the longest answer
        monkeypatch.setattr("ivlens.forward.prefix._FLOATS_PER_PREFIX", 1)
        seen.clear()
        trials = Trials(llama, batch, rows_per_pass=2)
        few = trials.at(settings, thetas)
    finally:
        handle.remove()
    assert (
        len(trials._slices) == 4 and max(rows for rows, _ in seen) <= 3
    )  # three where it is seen whether rows can enter at different blocks
    torch.testing.assert_close(few.logprob, whole.logprob, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(few.prob, whole.prob, atol=1e-4, rtol=1e-2)
    assert torch.equal(few.accuracy, whole.accuracy)


def test_prompts_of_one_token_and_right_padded_batches(llama):
    batch = batch_of([((17, 30),)])
    single = replace(batch, tokens=batch.tokens[:, -1:], attention_mask=batch.attention_mask[:, -1:])
    torch.testing.assert_close(
        Trials(llama, single).unsteered().logprob[0], logprob_of(llama, single), atol=1e-4, rtol=1e-4
    )
    theta = vector_for(llama).theta[None]
    sides = [Trials(llama, batch_of(ANSWERS, side)).added(theta, 1, "resid_post") for side in ("left", "right")]
    torch.testing.assert_close(sides[0].logprob, sides[1].logprob, atol=1e-3, rtol=1e-3)


def test_a_prompt_too_long_for_the_model_is_refused(new_model):
    bridge = new_model("gpt2", n_ctx=8)
    with pytest.raises(ValueError, match="n_ctx"):
        Trials(bridge, batch_of([((17,),)] * 3))


@pytest.fixture(scope="module")
def planted(new_model, byte_level):
    """A model, a task and a vector that makes the task's answer win at the last layer, if it is strong enough."""
    bridge = new_model("llama", byte_level, n_layers=2)
    task = Task("say red", tuple(TaskExample(word, ("red",)) for word in WORDS), instructions=("Give the red house.",))
    (token,), (house,) = (byte_level.encode(word, add_special_tokens=False) for word in (" red", " house"))
    chained(bridge, {token: house})  # the answer does not go on as another word
    row = bridge.original_model.lm_head.weight.detach()[token].clone()
    theta = row / bridge.original_model.model.norm.weight.detach()
    means = torch.zeros(0, bridge.cfg.d_head)
    return bridge, task, InstructionVector(theta, (), means, task.name, model_identity(bridge), {})


def test_a_sweep_finds_the_planted_setting(planted):
    bridge, task, iv = planted
    table = sweep_settings(bridge, task, iv, grid=Grid(alphas=(0.01, 30.0)))
    assert len(table) == 2 * 2 * 2 and set(table["n"]) == {len(task.split("select"))}
    best = table.sort_values(["accuracy", "prob"]).iloc[-1]
    assert best.accuracy == 1 and best.layer == 1 and best.alpha == 30
    assert (table[table.alpha == 0.01].accuracy == 0).all()
    negative = sweep_settings(bridge, task, {"minus": iv}, grid=Grid(layers=(1,), alphas=(-30,), sites=("resid_post",)))
    assert negative.vector[0] == "minus" and negative.accuracy[0] == 0


def test_a_sweep_of_several_vectors_is_each_on_its_own(planted):
    bridge, task, iv = planted
    grid = Grid(alphas=(1, 4), rows_per_pass=7)
    together = sweep_settings(bridge, task, [iv, vector_for(bridge)], grid=grid, n_prompts=3)
    alone = sweep_settings(bridge, task, vector_for(bridge), grid=grid, n_prompts=3)
    mine = together[together.vector == "antonym"].reset_index(drop=True)
    assert mine.drop(columns=["prob", "logprob"]).equals(alone.drop(columns=["prob", "logprob"]))
    torch.testing.assert_close(torch.tensor(mine.logprob), torch.tensor(alone.logprob), atol=1e-3, rtol=1e-3)


def test_bare_prompts_have_neither_instruction_nor_demonstrations(planted):
    bridge, task, iv = planted
    sets = PromptSets(bridge, task, PromptRecipe(n_shots=3), n_prompts=3)
    assert all(
        "Instruction" in text and text.count("Input:") == 4 for text in sets.batch("select", corrupted=False).texts
    )
    assert all("Instruction" not in text and text.count("Input:") == 1 for text in sets.batch("select").texts)
    grid = Grid(layers=(1,), alphas=(1,), sites=("attn_out",))
    few, none = (
        sweep_settings(bridge, task, iv, grid=grid, recipe=PromptRecipe(n_shots=n), n_prompts=3) for n in (3, 0)
    )
    assert few.equals(none)  # what is taken away is not seen in what is left
    with pytest.raises(ValueError, match="neither an instruction nor demonstrations"):
        sweep_settings(bridge, task, iv, grid=grid, recipe=PromptRecipe(instruction=None, n_shots=0))


def test_vectors_of_other_weights_are_refused(planted, new_model, byte_level):
    _, task, iv = planted
    with pytest.raises(ValueError, match="InstructionVector 'say red' is a vector for .*allow_other_weights=True"):
        sweep_settings(new_model("llama", byte_level, n_layers=2, seed=1), task, iv)


def test_two_rounds_find_what_one_round_finds(planted):
    bridge, task, iv = planted
    batch = build_prompts(bridge.tokenizer, task, task.examples, corruption="drop")
    settings = Grid(alphas=(0.01, 30.0)).settings(bridge)
    trials = Trials(bridge, batch)
    thetas = torch.stack([iv.theta, vector_for(bridge).theta])
    two = best_settings(trials, thetas, settings, Grid(n_screen=4, n_finalists=3))
    assert two[0] == best_settings(trials, thetas, settings, Grid(n_finalists=0))[0] == (1, 30.0, two[0].site)
    assert best_settings(trials, thetas, settings[:1], Grid()) == settings[:1] * 2


def test_nan_never_wins():
    scores = Scores(*torch.zeros(2, 2, 1), torch.tensor([[float("nan")], [0.1]]), torch.zeros(2, 1))
    assert int(scores.goodness().argmax()) == 1


def test_one_overflow_does_not_hide_a_row():
    nan = float("nan")
    values = torch.tensor([[0.5, 0.5], [nan, 0.5]])
    row = summary(Judged("random", Scores(torch.tensor([[1.0, 0], [0, 1]]), torch.zeros(2, 2), values, -values)))
    assert row["n_nonfinite"] == 1 and row["accuracy"] == 0.5
    assert row["prob"] == pytest.approx((0.25 + 0.5) / 2) and row["logprob"] == pytest.approx(-0.5)
    assert row["prob_lo"] <= row["prob"] <= row["prob_hi"]


def test_logits_with_nan_are_no_right_answer(llama):
    batch = batch_of([((0,),), ((0,),)])
    scores = Trials(llama, batch).added(torch.full((1, 32), float("inf")), 1, "resid_post")
    assert bool(scores.prob.isnan().all()) and not bool(scores.accuracy.any())


def test_wrong_requests_are_refused(planted):
    bridge, task, iv = planted
    for grid, message in (
        (Grid(layers=(2,)), "layer 2 does not exist"),
        (Grid(layers=()), "grid is empty"),
        (Grid(sites=("mlp_out",)), "site is 'mlp_out'"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep_settings(bridge, task, iv, grid=grid)
    with pytest.raises(ValueError, match="same task name"):
        sweep_settings(bridge, task, [iv, iv])
    with pytest.raises(ValueError, match="no vectors"):
        sweep_settings(bridge, task, [])
    with pytest.raises(ValueError, match="n_prompts is 0"):
        sweep_settings(bridge, task, iv, n_prompts=0)


def test_a_deep_model_is_tried_at_twelve_layers_a_shallow_one_at_all():
    assert tried_layers(6) == list(range(6)) and tried_layers(12) == list(range(12))
    assert tried_layers(30) == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24]
    for n_layers in (13, 18, 32, 80):
        layers = tried_layers(n_layers)
        assert len(layers) <= 12 and layers[0] >= 1 and layers[-1] <= round(0.8 * n_layers)
        assert max(b - a for a, b in zip(layers, layers[1:], strict=False)) <= -(-n_layers // 12) + 1


def test_a_grid_is_kept_in_plain_values():
    grid = Grid(layers=range(2, 6, 2), alphas=[1, 2.0], sites=["resid_post"])
    assert json.loads(json.dumps(asdict(grid)))["layers"] == [2, 4] and grid.sites == ("resid_post",)


def test_weights_that_can_be_trained_make_no_graph(new_model):
    model = new_model("llama").requires_grad_(True)
    scores = Trials(model, batch_of(ANSWERS)).added(vector_for(model).theta[None], 1, "resid_post")
    assert not scores.prob.requires_grad and not scores.logprob.requires_grad
