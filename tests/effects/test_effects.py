"""Head effects: identities, a head built to matter, every family, and the whole way from a task to a table."""

import dataclasses
import gc
import json

import numpy as np
import pytest
import torch
from conftest import hf_model, random_prompts, tiny_task

from ivlens.effects import METHODS, EffectOptions, HeadEffects, causal_indirect_effect, head_effects, interval_over
from ivlens.forward import hooks
from ivlens.forward.means import mean_head_outputs
from ivlens.models import load_model, model_identity
from ivlens.prompts import PromptRecipe, PromptTemplate
from ivlens.tasks import Task, TaskExample, hash_of_tasks, load_bank

TOKENS, MASK = random_prompts()
ANSWERS = torch.tensor([[5, -100, -100], [6, 7, -100], [8, 9, 10], [11, -100, -100]])
FOILS = torch.tensor([20, 21, 22, 23])
TASK = tiny_task()
OTHERS = [tiny_task("synonym", "Name another word.", shift=2), tiny_task("rhyme", "Say what rhymes.", shift=5)]
SCORES = ["prob", "logprob", "logit_diff"]


def some_means(model):
    return torch.randn(model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)


def by_hand(model, row, layer, head, mean_z, score, mode="replace"):
    """One prompt, unpadded, its answer fed token by token; no function of ivlens but the hook."""
    prompt = TOKENS[row][MASK[row] == 1]
    answer = ANSWERS[row][ANSWERS[row] != -100]

    def edit(z, _):
        z = z.clone()
        z[0, len(prompt) - 1, head] = mean_z[layer, head] + (z[0, len(prompt) - 1, head] if mode == "add" else 0)
        return z

    def value(patched):
        ids = torch.cat([prompt, answer])[None]
        with torch.no_grad():
            if not patched:
                logits = model(ids, use_cache=False)[0, len(prompt) - 1 : -1].double()
            else:
                with hooks.patched_heads(model, edit, [layer]):
                    logits = model(ids, use_cache=False)[0, len(prompt) - 1 : -1].double()
        if score == "prob":
            return logits[0].softmax(-1)[answer[0]]
        if score == "logit_diff":
            return logits[0, answer[0]] - logits[0, FOILS[row]]
        return sum(logits[n].log_softmax(-1)[answer[n]] for n in range(len(answer)))

    return float(value(True) - value(False))


@pytest.mark.parametrize("score", SCORES)
def test_a_prompts_own_head_output_patched_back_changes_nothing(model, score):
    for row in range(len(TOKENS)):
        one = slice(row, row + 1)
        own = mean_head_outputs(model, TOKENS[one], MASK[one])
        cie = causal_indirect_effect(
            model, TOKENS[one], MASK[one], ANSWERS[one], own, score=score, foil_tokens=FOILS[one]
        )
        assert cie.abs().max() <= 1e-4


def test_adding_nothing_changes_nothing(model):
    zeros = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    inputs = model, TOKENS, MASK, ANSWERS, zeros
    cie = causal_indirect_effect(*inputs, mode="add", score="logprob", method="reference")
    assert not cie.any() and cie.shape == (4, model.cfg.n_layers, model.cfg.n_heads)
    assert causal_indirect_effect(*inputs, mode="add", score="logprob").abs().max() < 2e-5


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("mode", ["replace", "add"])
def test_every_effect_is_what_it_is_by_hand(model, score, mode):
    mean_z = some_means(model)
    cie = causal_indirect_effect(
        model, TOKENS, MASK, ANSWERS, mean_z, score=score, mode=mode, foil_tokens=FOILS, layers=[0, 2], heads=[1, 3]
    )
    assert cie[:, [0, 2]][:, :, [1, 3]].abs().max() > 5e-4
    for row in range(4):
        for layer, head in ((0, 1), (2, 3)):
            want = by_hand(model, row, layer, head, mean_z, score, mode)
            assert float(cie[row, layer, head]) == pytest.approx(want, abs=5e-5, rel=1e-3)
    asked = torch.zeros(3, 4, dtype=torch.bool)
    asked[0, [1, 3]] = asked[2, [1, 3]] = True
    assert torch.equal(~cie[0].isnan(), asked)


@pytest.mark.parametrize("score", SCORES)
def test_padding_side_and_memory_change_nothing(model, score):
    mean_z = some_means(model)
    options = {"score": score, "foil_tokens": FOILS, "layers": [1]}
    left = causal_indirect_effect(model, TOKENS, MASK, ANSWERS, mean_z, **options)
    tokens, mask = random_prompts(side="right")
    right = causal_indirect_effect(model, tokens, mask, ANSWERS, mean_z, **options)
    torch.testing.assert_close(left, right, equal_nan=True, atol=1e-4, rtol=1e-3)
    small = causal_indirect_effect(model, TOKENS, MASK, ANSWERS, mean_z, max_memory=1, **options)
    torch.testing.assert_close(left, small, equal_nan=True, atol=1e-4, rtol=1e-3)
    wide = torch.nn.functional.pad(TOKENS, (3, 0)), torch.nn.functional.pad(MASK, (3, 0))
    torch.testing.assert_close(causal_indirect_effect(model, *wide, ANSWERS, mean_z, **options), left, equal_nan=True)


def test_the_first_answer_token_is_all_that_prob_looks_at(llama):
    mean_z = some_means(llama)
    first = causal_indirect_effect(llama, TOKENS, MASK, ANSWERS[:, :1], mean_z)
    assert torch.equal(first, causal_indirect_effect(llama, TOKENS, MASK, ANSWERS, mean_z))
    torch.testing.assert_close(
        causal_indirect_effect(llama, TOKENS, MASK, ANSWERS, mean_z, score="logit_diff", foil_tokens=FOILS),
        causal_indirect_effect(llama, TOKENS, MASK, ANSWERS, mean_z, score="logit_diff", foil_tokens=FOILS[:, None]),
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("planted", [(0, 3), (1, 2)])
def test_a_head_built_to_matter_ranks_first(family, planted, new_model):
    """One head's projection is made to write the answer's own direction when its mean is patched in."""
    model = new_model(family)
    layer, head = planted
    answer = 77
    mean_z = torch.randn(3, 4, model.cfg.d_head)
    with torch.no_grad():
        for parameter in model.original_model.parameters():
            parameter.mul_(1 / 6 if parameter.ndim > 1 else 1.0)
        toward = model.original_model.get_output_embeddings().weight[answer]
        toward = toward - model.original_model.get_output_embeddings().weight.mean(0)
        direction = mean_z[layer, head] / mean_z[layer, head].norm() ** 2
        write = 30.0 * torch.outer(direction, toward / toward.norm())
        weight = model.blocks[layer].attn.o.weight
        columns = slice(head * model.cfg.d_head, (head + 1) * model.cfg.d_head)
        if family == "gpt2":  # its projection is stored [in, out]
            weight[columns] = write
        else:
            weight[:, columns] = write.T
    torch.testing.assert_close(model.blocks[layer].attn.W_O[head], write)
    cie = causal_indirect_effect(model, TOKENS, MASK, torch.full((4, 1), answer), mean_z, score="logprob")
    aie = cie.mean(0)
    assert divmod(int(aie.argmax()), 4) == planted
    if family != "gemma2":  # its norm after attention gives every head's change the same size
        assert aie[planted] > 2 * aie.flatten().topk(2).values[1]


def test_nothing_is_left_behind(llama):
    before = torch.get_rng_state()
    with torch.no_grad():
        logits = llama(TOKENS, attention_mask=MASK)
    causal_indirect_effect(llama, TOKENS, MASK, ANSWERS, some_means(llama) * 0)
    with torch.no_grad():
        assert torch.equal(llama(TOKENS, attention_mask=MASK), logits)
    assert not any(parameter.requires_grad for parameter in llama.parameters())
    assert before.shape == torch.get_rng_state().shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"mean_z": torch.zeros(3, 4, 8)},
            r"mean_z has shape \(3, 4, 8\), expected \(3, 4, 12\) from model.cfg; recompute",
        ),
        ({"mean_z": torch.full((3, 4, 12), torch.nan)}, "mean_z contains NaN or infinite values"),
        (
            {"tokens": TOKENS[:0], "attention_mask": MASK[:0]},
            r"tokens has shape \(0, 9\), expected .* at least one prompt",
        ),
        ({"attention_mask": MASK[:, 1:]}, r"attention_mask has shape \(4, 8\), expected \(4, 9\) like tokens"),
        ({"answer_tokens": ANSWERS[:3]}, r"answer_tokens has shape \(3, 3\), expected \(4, answer_len\)"),
        ({"answer_tokens": ANSWERS[:, 0]}, r"answer_tokens has shape \(4,\), expected \(4, answer_len\)"),
        ({"answer_tokens": ANSWERS * 0 - 100}, "answer_tokens row 0 is all -100, expected at least one answer token"),
        ({"answer_tokens": ANSWERS.flip(1)}, "answer_tokens has -100 before an answer token"),
        (
            {"answer_tokens": ANSWERS.clamp_min(-100) + 395},
            "answer_tokens contains [0-9]+, expected token ids from 0 to 399",
        ),
        ({"mode": "swap"}, "mode is 'swap', expected one of replace, add"),
        ({"score": "f1"}, "score is 'f1', expected one of prob, logprob, logit_diff"),
        ({"score": "logit_diff"}, "score 'logit_diff' got no foil_tokens"),
        ({"score": "logit_diff", "foil_tokens": FOILS[:2]}, r"foil_tokens has shape \(2,\), expected \(4,\)"),
        ({"score": "logit_diff", "foil_tokens": FOILS - 121}, "foil_tokens row 0 is -101, .* fell back to 'drop'"),
        ({"method": "magic"}, "method is 'magic', expected one of exact, cached, reference, attribution"),
        ({"layers": [3]}, "layer 3 does not exist: the model has 3 layers, 0 to 2"),
        ({"heads": [0, 4]}, "head 4 does not exist: the model has 4 heads in a layer, 0 to 3"),
        ({"layers": []}, "no layers or no heads were chosen"),
        ({"max_memory": 0}, "max_memory is 0, expected 'auto' or a positive number of bytes"),
        ({"max_memory": "much"}, "max_memory is 'much', expected 'auto'"),
    ],
)
def test_unusable_input(llama, change, message):
    good = {"tokens": TOKENS, "attention_mask": MASK, "answer_tokens": ANSWERS, "mean_z": torch.zeros(3, 4, 12)}
    with pytest.raises(ValueError, match=message):
        causal_indirect_effect(llama, **(good | change))


def test_prompts_longer_than_the_context(new_model):
    tokens = torch.randint(3, 400, (2, 128))
    model = new_model("gpt2")
    means = some_means(model)
    ones = torch.ones_like(tokens)
    assert causal_indirect_effect(model, tokens, ones, ANSWERS[:2], means, layers=[0], heads=[0]).shape == (2, 3, 4)
    with pytest.raises(
        ValueError, match="prompt 0 has 128 tokens and its answer up to 2, expected at most 128 together"
    ):
        causal_indirect_effect(model, tokens, ones, ANSWERS[:2], means, score="logprob")


@pytest.fixture(scope="module")
def effects(llama) -> HeadEffects:
    return head_effects(llama, TASK, n_prompts=6, options=EffectOptions(others=OTHERS, n_mean_prompts=4, contrast=True))


def test_from_a_task_to_effects(effects, llama):
    assert effects.cie.shape == (6, 3, 4) and effects.mean_z.shape == effects.mean_z_corrupted.shape == (3, 4, 12)
    assert effects.write_scale.shape == (3, 32) and effects.base_scores.shape == (6,)
    assert effects.corruptions == ("counterfactual",) * 6 and effects.task == "antonym"
    assert effects.model == model_identity(llama) and effects.live_model is llama
    assert set(effects.inputs) <= {example.input for example in TASK.split("fit")}
    torch.testing.assert_close(effects.aie, effects.cie.mean(0))
    assert not torch.allclose(effects.mean_z, effects.mean_z_corrupted)
    settings = effects.settings
    assert settings["corruption"] == "counterfactual" and settings["others"] == ["rhyme", "synonym"]
    assert settings["others_hash"] == hash_of_tasks(OTHERS) and sum(settings["counterfactual_tasks"].values()) == 6
    assert settings["n_prompts"] == 6 and settings["n_mean_prompts"] == 4
    assert effects.recipe == PromptRecipe(n_shots=0) and settings["recipe"] == effects.recipe.to_dict()
    assert settings["task_hash"] == TASK.content_hash() and settings["versions"]["torch"]
    assert "'antonym'" in repr(effects) and "6 prompts" in repr(effects)


def test_prompts_of_different_kinds_are_never_averaged(llama):
    half = Task("half", TASK.examples[::2], instructions=("Halve it.",))
    partial = Task("other", tuple(TaskExample(x.input, ("cold",)) for x in half.examples), instructions=("Freeze it.",))
    some = EffectOptions(others=[partial], layers=[0], heads=[0], n_mean_prompts=8, contrast=True)
    got = head_effects(llama, TASK, n_prompts=6, options=some)
    assert len(set(got.corruptions)) == 1
    assert 0 < got.settings["n_mean_prompts"] < 8  # those whose counterpart is of that kind
    alone = head_effects(llama, TASK, n_prompts=6, options=dataclasses.replace(some, contrast=False))
    assert alone.settings["n_mean_prompts"] == 8


def test_prompts_are_built_and_checked_once(llama, monkeypatch):
    """Clean versions, corrupted prompts, and clean ones for means, each once; more only where a contrast is."""
    from ivlens.effects import plan
    from ivlens.forward import inputs, means

    built, checked, read, n_fit = [], [], [], len(TASK.split("fit"))  # of which no more are built than are asked
    build, check, passes = plan.prompts_for, inputs.check_model, means._passes
    monkeypatch.setattr(plan, "prompts_for", lambda *a, **o: built.append(len(a[2])) or build(*a, **o))
    monkeypatch.setattr(inputs, "check_model", lambda model: checked.append(1) or check(model))
    monkeypatch.setattr(means, "_passes", lambda *given: read.append(len(given[1])) or passes(*given))
    few = {"others": OTHERS, "n_mean_prompts": 4, "batch_size": 2, "n_check_prompts": 0}
    head_effects(llama, TASK, n_prompts=3, options=EffectOptions(**few))
    assert built == [n_fit, 3, n_fit] and len(checked) == 3
    assert read == [4]  # means and write scales are read in the same passes
    head_effects(llama, TASK, n_prompts=3, options=EffectOptions(**few, contrast=True))
    assert built[3:] == [n_fit, 3, n_fit, 4] and read[1:] == [4, 4]


def test_the_same_seed_gives_the_same_bits(effects, llama):
    few = EffectOptions(others=OTHERS, n_mean_prompts=4, contrast=True)
    again = head_effects(llama, TASK, n_prompts=6, options=few)
    assert torch.equal(effects.cie, again.cie) and effects.inputs == again.inputs
    other = head_effects(llama, TASK, n_prompts=6, options=few, recipe=PromptRecipe(seed=1))
    assert effects.inputs != other.inputs


def test_the_default_corruption_follows_the_task(llama, caplog):
    bare = Task("bare", TASK.examples)
    fused = Task("fused", tuple(TaskExample(f"Is it {x.input}? Answer:", x.answers) for x in TASK.examples), fused=True)
    few = {"n_prompts": 2, "options": EffectOptions(n_mean_prompts=3, contrast=True, layers=[0], heads=[0])}
    shuffled, none = head_effects(llama, bare, **few), head_effects(llama, fused, **few)
    assert set(shuffled.corruptions) == {"shuffle"} and shuffled.recipe.n_shots == 5
    assert set(none.corruptions) == {"none"} and none.recipe.n_shots == 0
    assert torch.allclose(none.mean_z, none.mean_z_corrupted)  # nothing is taken away
    assert caplog.text.count("fused: nothing is taken from its prompts") == 1 and "bare: nothing" not in caplog.text
    shown = head_effects(llama, fused, recipe=PromptRecipe(n_shots=3), **few)
    assert set(shown.corruptions) == {"shuffle"} and not torch.equal(shown.clean_scores, shown.base_scores)
    caplog.clear()
    head_effects(llama, fused, corruption="none", **few)
    assert "nothing is taken" not in caplog.text  # it was asked for
    told = head_effects(llama, TASK, recipe=PromptRecipe(n_shots=3), corruption="shuffle", **few)
    assert set(told.corruptions) == {"shuffle"} and told.recipe.n_shots == 3
    dropped = head_effects(llama, bare, corruption="drop", **few)
    assert dropped.recipe.n_shots == 5 and not torch.allclose(dropped.mean_z, dropped.mean_z_corrupted)
    alone = head_effects(llama, TASK, recipe=PromptRecipe(instruction=None), **few)
    assert alone.recipe.n_shots == 5 and set(alone.corruptions) == {"shuffle"}
    assert 0 <= alone.settings["kept_answers"] < 1


def test_logit_diff_keeps_prompts_that_have_a_counterfactual(llama):
    half = Task("half", TASK.examples[::2], instructions=("Halve it.",))
    partial = Task("other", tuple(TaskExample(x.input, ("cold",)) for x in half.examples), instructions=("Freeze it.",))
    one = {"layers": [0], "heads": [0]}
    got = head_effects(llama, TASK, score="logit_diff", options=EffectOptions(others=[partial], **one))
    assert set(got.corruptions) == {"counterfactual"}
    assert set(got.inputs) <= {example.input for example in half.examples}
    with pytest.raises(ValueError, match="found no counterfactual for any of [0-9]+ prompts of task 'antonym'"):
        head_effects(llama, TASK, score="logit_diff", options=EffectOptions(others=[TASK]))
    with pytest.raises(ValueError, match="score 'logit_diff' got no foil_tokens"):
        head_effects(llama, TASK, score="logit_diff", corruption="drop")


def test_only_prompts_answered_correctly_enter_the_mean(llama, monkeypatch):
    correct = EffectOptions(correct_only=True, others=OTHERS, layers=[0], heads=[0], n_mean_prompts=4)
    with pytest.raises(ValueError, match="correct_only=True found none of 4 clean prompts of task 'antonym'"):
        head_effects(llama, TASK, n_prompts=2, options=correct)
    monkeypatch.setattr("ivlens.effects.plan.greedy_accuracy", lambda model, batch, **_: torch.arange(len(batch)) == 1)
    one = head_effects(llama, TASK, n_prompts=2, options=correct)
    assert one.settings["n_mean_prompts"] == 1 and one.settings["correct_only"] is True


def test_other_options_are_recorded(llama):
    mine = PromptTemplate("mine", "{instruction} {input} =", "{input} =", "{input} = {answer}\n")
    got = head_effects(
        llama,
        TASK,
        n_prompts=2,
        recipe=PromptRecipe(mine),
        corruption="drop",
        options=EffectOptions(mode="add", split="select", layers=[1]),
        progress=True,
    )
    assert got.recipe.template == mine and got.settings["mode"] == "add"
    assert got.settings["layers"] == [1] and got.settings["heads"] is None and got.settings["split"] == "select"
    assert got.settings["others_hash"] is None and got.settings["counterfactual_tasks"] == {}
    json.dumps(dict(got.settings))


def test_layers_and_heads_may_be_arrays(llama, tmp_path):
    few = EffectOptions(n_mean_prompts=2, others=OTHERS, layers=np.array([0, 2]), heads=[np.int64(1)])
    got = head_effects(llama, TASK, n_prompts=1, options=few)
    assert got.settings["layers"] == [0, 2] and got.settings["heads"] == [1]
    assert HeadEffects.load(got.save(tmp_path / "e")).top_heads(2) == got.top_heads(2)


def test_the_bank_is_recorded_where_counterfactuals_come_from_it(llama):
    few = EffectOptions(n_mean_prompts=2, layers=[0], heads=[0])
    got = head_effects(llama, load_bank()["antonym"], n_prompts=2, options=few)
    assert got.settings["others"] is None and got.settings["others_hash"] == hash_of_tasks(load_bank().values())
    assert all(load_bank()[name].in_training for name in got.settings["counterfactual_tasks"])


def test_a_family_that_is_refused_is_refused_before_the_long_part(llama, monkeypatch):
    def refuse(*args, **options):
        raise ValueError("not defined in this family")

    monkeypatch.setattr("ivlens.effects.measure.head_means", refuse)
    monkeypatch.setitem(METHODS, "reference", lambda model, request: pytest.fail("measured"))
    with pytest.raises(ValueError, match="not defined in this family"):
        head_effects(llama, TASK, n_prompts=2, options=EffectOptions(others=OTHERS))


def test_a_steered_model_is_not_measured(llama):
    with hooks.steering(llama):
        with pytest.raises(RuntimeError, match="this thread has a steer context open on the model"):
            causal_indirect_effect(llama, TOKENS, MASK, ANSWERS, some_means(llama))
        with pytest.raises(RuntimeError, match="this thread has a steer context open on the model"):
            head_effects(llama, TASK, options=EffectOptions(others=OTHERS))


def test_a_model_that_is_no_bridge():
    plain = hf_model("llama")
    with pytest.raises(TypeError, match="model is LlamaForCausalLM, expected the TransformerBridge"):
        causal_indirect_effect(plain, TOKENS, MASK, ANSWERS, torch.zeros(3, 4, 12))
    with pytest.raises(TypeError, match="model is LlamaForCausalLM, expected the TransformerBridge"):
        head_effects(plain, TASK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_prompts": 0}, "n_prompts is 0, expected 1 or more"),
        ({"n_mean_prompts": 0}, "n_mean_prompts is 0, expected 1 or more"),
        ({"heads": [9]}, "head 9 does not exist"),
        ({"max_memory": -1}, "max_memory is -1"),
        ({"recipe": PromptRecipe(instruction=None, n_shots=0)}, "neither an instruction nor demonstrations"),
    ],
)
def test_unusable_options(llama, options, message):
    with pytest.raises(ValueError, match=message):
        direct = {name: options[name] for name in ("n_prompts", "score", "corruption", "recipe") if name in options}
        rest = {name: value for name, value in options.items() if name not in direct}
        made_by = EffectOptions(**({"others": OTHERS} | rest))
        head_effects(llama, TASK, **({"n_prompts": 2, "corruption": "counterfactual"} | direct), options=made_by)


@pytest.mark.parametrize("options", [{"mode": "swap"}, {"method": "magic"}, {"score": "f1"}, {"corruption": "noise"}])
def test_unknown_words_are_refused(llama, options):
    """As a ValueError, or before that by the check of shapes and types under which tests run."""
    with pytest.raises((ValueError, TypeError)):
        direct = {name: value for name, value in options.items() if name in ("score", "corruption")}
        made_by = EffectOptions(**{name: value for name, value in options.items() if name not in direct})
        head_effects(llama, TASK, n_prompts=2, options=made_by, **direct)


def test_a_model_without_tokenizer_and_prompts_that_do_not_fit(new_model, byte_level):
    with pytest.raises(
        TypeError, match="tokenizer is NoneType, expected a transformers tokenizer; pass model.tokenizer"
    ):
        head_effects(new_model("llama"), TASK, options=EffectOptions(others=OTHERS))
    with pytest.raises(ValueError, match="prompt [0-9]+ has [0-9]+ tokens and its answer up to 1, expected at most 16"):
        head_effects(new_model("gpt2", byte_level, n_ctx=16), TASK, options=EffectOptions(others=OTHERS))


def made(cie: torch.Tensor, model) -> HeadEffects:
    n = len(cie)
    zeros = torch.zeros(*cie.shape[1:], 5)
    return HeadEffects(
        cie,
        zeros,
        zeros,
        torch.ones(cie.shape[1], 7),
        torch.zeros(n),
        ("drop",) * n,
        ("x",) * n,
        "t",
        model_identity(model),
        {},
    )


def test_top_heads_and_table(llama):
    cie = torch.zeros(4, 2, 3)
    cie[:, 1, 2], cie[:, 0, 1], cie[:, 1, 0] = 0.9, 0.5, torch.nan
    effects = made(cie, llama)
    assert effects.top_heads(3) == [(1, 2), (0, 1), (0, 0)]
    frame = effects.to_frame()
    assert frame["label"].tolist()[:2] == ["L1H2", "L0H1"] and len(frame) == 5
    assert list(frame) == ["task", "label", "layer", "head", "score", "aie", "low", "high", "interval", "n"]
    for k in (0, 6):
        with pytest.raises(ValueError, match=f"k is {k}, expected 1 to 5, the number of measured heads"):
            effects.top_heads(k)


def test_intervals(llama):
    cie = torch.randn(60, 2, 8, generator=torch.Generator().manual_seed(0)) + 0.5
    cie[:, 1, 7] = torch.nan
    effects = made(cie, llama)
    low, high = effects.interval()
    wide_low, wide_high = effects.interval(simultaneous=True)
    measured = ~effects.aie.isnan()
    assert ((low < effects.aie) & (effects.aie < high))[measured].all()
    assert ((wide_low < low) & (high < wide_high))[measured].all()
    assert effects.interval().kind == "pointwise 95 %"
    assert effects.interval(0.9, simultaneous=True).kind == "simultaneous 90 %"
    assert set(effects.to_frame()["interval"]) == {"simultaneous 95 %"}
    assert low[1, 7].isnan() and wide_high[1, 7].isnan()
    # t over 60 unit normals: about ± 2 / sqrt(60); max-T over 15 of them: about ± 3.05 / sqrt(60)
    torch.testing.assert_close((high - low)[measured].mean().item(), 2 * 2.0 / 60**0.5, atol=0.04, rtol=0)
    torch.testing.assert_close((wide_high - wide_low)[measured].mean().item(), 2 * 3.05 / 60**0.5, atol=0.06, rtol=0)
    assert torch.equal(effects.interval()[0].nan_to_num(), low.nan_to_num())
    narrow = effects.interval(0.5)
    assert (narrow[1] - narrow[0] < high - low)[measured].all()
    with pytest.raises(ValueError, match="level is 95.0, expected a coverage between 0 and 1"):
        effects.interval(95.0)


def test_intervals_of_one_prompt_and_of_effects_that_do_not_vary(llama):
    alone = made(torch.ones(1, 2, 2), llama).interval(simultaneous=True)
    assert alone.low.isnan().all() and alone.kind == ""
    for simultaneous in (False, True):
        low, high = made(torch.ones(3, 2, 2), llama).interval(simultaneous=simultaneous)
        assert torch.equal(low, torch.ones(2, 2)) and torch.equal(high, torch.ones(2, 2))


def test_maps_of_several_seeds_are_what_varies(llama):
    drawn = torch.randn(8, 40, 2, 3, generator=torch.Generator().manual_seed(0))
    maps = [
        made(each, llama) for each in drawn + 3 * torch.randn(8, 1, 2, 3, generator=torch.Generator().manual_seed(1))
    ]
    few, many = interval_over(maps[:3]), interval_over(maps)
    assert few.kind == "descriptive" and many.kind in ("simultaneous 95 %", "pointwise 95 %")
    aies = torch.stack([each.aie for each in maps[:3]])
    reach = 4.3027 * aies.std(0) / 3**0.5
    torch.testing.assert_close(few.high, aies.mean(0) + reach, atol=1e-3, rtol=1e-3)
    assert interval_over(maps[:1]).low.isnan().all()
    with pytest.raises(ValueError, match="expected one or more maps of the same shape"):
        interval_over([maps[0], made(torch.randn(4, 2, 2), llama)])
    with pytest.raises(ValueError, match="expected one or more maps"):
        interval_over([])


def test_save_and_load(effects, tmp_path):
    path = effects.save(tmp_path / "deep" / "antonym.safetensors")
    loaded = HeadEffects.load(path)
    for name in ("cie", "mean_z", "mean_z_corrupted", "write_scale", "base_scores"):
        assert torch.equal(getattr(loaded, name), getattr(effects, name))
    assert (loaded.task, loaded.model, loaded.corruptions, loaded.inputs) == (
        effects.task,
        effects.model,
        effects.corruptions,
        effects.inputs,
    )
    assert dict(loaded.settings) == dict(effects.settings) and loaded.live_model is None
    assert [file.name for file in path.parent.iterdir()] == ["antonym.safetensors"]
    assert loaded.to("cpu").task == "antonym"


def test_files_that_are_no_head_effects(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="is not a file, expected one written by HeadEffects.save"):
        HeadEffects.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="is no whole safetensors file"):
        HeadEffects.load(tmp_path / "text")
    save_file({"theta": torch.zeros(3)}, tmp_path / "other")
    with pytest.raises(ValueError, match="holds something else, not ivlens.HeadEffects/1, expected a file written by"):
        HeadEffects.load(tmp_path / "other")


def test_files_are_loaded_for_the_model_they_were_measured_on(effects, llama, new_model, byte_level, tmp_path):
    path = effects.save(tmp_path / "e")
    assert HeadEffects.load(path, llama).live_model is llama
    with pytest.raises(ValueError, match="holds effects measured on .* expected .*; measure them on this model"):
        HeadEffects.load(path, model=new_model("llama", byte_level, seed=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"name": "x"}}, "incomplete metadata .KeyError"),
        ({"model": None}, "incomplete metadata .TypeError"),
        ({"task": 3}, "incomplete metadata .TypeError: task is no text"),
        ({"settings": []}, "incomplete metadata .TypeError: task is no text or settings no mapping"),
        ({"inputs": [1] * 6}, "incomplete metadata .TypeError: corruptions or inputs are no texts"),
        ({"inputs": ["one"]}, "has 1 inputs for 6 prompts"),
        ({"corruptions": ["drop"] * 5}, r"has tensors .*'cie': \(6, 3, 4\).*, not .*'cie': \(5, 3, 4\)"),
        ({"format": "ivlens.HeadEffects/9"}, "holds ivlens.HeadEffects/9, not ivlens.HeadEffects/1"),
        ("{", "has damaged metadata"),
        ("[1]", "holds something else"),
    ],
)
def test_damaged_files(effects, tmp_path, change, message):
    from safetensors.torch import load_file, save_file

    path = effects.save(tmp_path / "e")
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    about = json.loads(header["__metadata__"]["ivlens"])
    text = change if isinstance(change, str) else json.dumps(about | change)
    save_file(load_file(path), tmp_path / "bad", metadata={"ivlens": text})
    with pytest.raises(ValueError, match=message):
        HeadEffects.load(tmp_path / "bad")
    (tmp_path / "cut").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match="is no whole safetensors file"):
        HeadEffects.load(tmp_path / "cut")
    save_file({**load_file(path), "cie": effects.cie.half()}, tmp_path / "half", metadata=header["__metadata__"])
    with pytest.raises(ValueError, match="tensors that are neither float32 nor float64"):
        HeadEffects.load(tmp_path / "half")


def test_effects_that_cannot_be_saved_leave_nothing(effects, tmp_path):
    odd = dataclasses.replace(effects, settings={"odd": object()})
    with pytest.raises(ValueError, match="settings do not fit in JSON"):
        odd.save(tmp_path / "e")
    assert not list(tmp_path.iterdir())


def test_effects_do_not_keep_a_model_in_memory(byte_level):
    model = load_model(hf_model=hf_model("llama"), tokenizer=byte_level)
    got = head_effects(model, TASK, n_prompts=1, options=EffectOptions(others=OTHERS, layers=[0], heads=[0]))
    assert got.live_model is model
    del model
    gc.collect()
    assert got.live_model is None


@pytest.mark.parametrize("foils", [torch.tensor([5.9]), torch.tensor([True])])
def test_foils_are_token_ids(llama, foils):
    tokens = torch.arange(6)[None]
    mean_z = torch.zeros(llama.cfg.n_layers, llama.cfg.n_heads, llama.cfg.d_head)
    options = {"score": "logit_diff", "foil_tokens": foils}
    with pytest.raises(TypeError, match="expected token ids"):
        causal_indirect_effect(llama, tokens, torch.ones_like(tokens), tokens[:, :1], mean_z, **options)
