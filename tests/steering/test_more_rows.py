"""Further rows of a judgement: each is what plain hooks in plain passes give, with the controls that belong to it."""

import math
from dataclasses import replace

import pytest
import torch

from ivlens import (
    Grid,
    InstructionVector,
    JudgeOptions,
    MoreRows,
    Setting,
    evaluate_intervention,
    head_effects,
    load_model,
    load_task,
)
from ivlens.forward.hooks import captured_heads, captured_residual, patched_heads
from ivlens.forward.scoring import greedy_accuracy
from ivlens.forward.writes import added_to_stream
from ivlens.steering.making_rows import MAKERS
from ivlens.steering.more_rows import ROWS, Asked
from ivlens.steering.necessity import next_heads
from ivlens.steering.other_vectors import mean_stream
from ivlens.steering.prompt_sets import PromptSets
from ivlens.steering.side_effects import plain_text

N = 8
AT = Setting(1, 2.0, "resid_post")


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


@pytest.fixture(scope="module")
def task():
    return load_task("antonym")


@pytest.fixture(scope="module")
def effects(pocket, task):
    return head_effects(pocket, task, n_prompts=6)


@pytest.fixture(scope="module")
def iv(pocket, effects):
    return InstructionVector.from_effects(effects, 6, model=pocket)


def judged(pocket, task, iv, effects, *rows, at=AT, **more):
    options = JudgeOptions(
        means=effects, other_vectors=(), more=MoreRows(rows, n_mean_prompts=5, n_others=2, **{"n_draws": 2, **more})
    )
    return evaluate_intervention(pocket, task, iv, at=at, n_prompts=N, n_draws=1, options=options)


@pytest.fixture(scope="module")
def asked(pocket, task, iv, effects):
    prompts = PromptSets(pocket, task, iv.recipe, n_prompts=N)
    more = MoreRows(n_mean_prompts=5, n_others=2)
    return Asked(iv, AT, prompts, prompts.trials("test"), "test", Grid.only(AT), 2, more, effects)


def first_probs(pocket, batch, edit):
    """The probability of each first answer token, with `edit` applied to head outputs at the last prompt token."""
    with torch.no_grad():
        logits = edit(lambda: pocket(batch.tokens, attention_mask=batch.attention_mask))
    return logits[:, -1].softmax(-1)[torch.arange(len(batch)), batch.answer_tokens[:, 0]]


def at_last(pocket, heads, values, change):
    """A pass with the outputs of these heads changed at the last token: written out once more, without the engine."""

    def edit(z, layer):
        z = z.clone()
        for (at, head), value in zip(heads, values, strict=True):
            if at == layer:
                z[:, -1, head] = change(z[:, -1, head], value)
        return z

    def run(forward):
        with patched_heads(pocket, edit, sorted({layer for layer, _ in heads})):
            return forward()

    return run


def means_by_hand(pocket, batch):
    with captured_heads(pocket, select=lambda z: z[:, -1]) as z, torch.no_grad():
        pocket(batch.tokens, attention_mask=batch.attention_mask)
    return torch.stack([z[layer].mean(0) for layer in sorted(z)])


def row(found, condition, variant=""):
    rows = found.table[(found.table["condition"] == condition) & (found.table["variant"] == variant)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_necessity_replaces_the_last_outputs_on_clean_prompts(pocket, task, iv, effects, asked):
    found = judged(pocket, task, iv, effects, "necessity")
    clean = asked.prompts.batch("test", corrupted=False)
    fit = replace(asked.prompts, n_prompts=5)
    for variant, corruption in (("corrupted", "counterfactual"), ("bare", "drop")):
        batch = replace(fit, corruption=corruption).batch("fit")
        means = means_by_hand(pocket, batch.rows(batch.rows_of_one_kind()))
        values = [means[head] for head in iv.heads]
        probs = first_probs(pocket, clean, at_last(pocket, iv.heads, values, lambda z, v: v.expand_as(z)))
        assert row(found, "necessity", variant)["prob"] == pytest.approx(float(probs.mean()), abs=1e-5)
    lost = row(found, "necessity", "corrupted")
    assert lost["lost"] == pytest.approx(found.accuracy("clean") - lost["accuracy"])
    assert math.isnan(lost["lead"])  # it is no way to make bare prompts right


def test_necessity_has_its_controls(pocket, task, iv, effects):
    found = judged(pocket, task, iv, effects, "necessity")
    for variant in ("corrupted", "other_tasks", "bare"):
        drawn = row(found, "necessity_random_heads", variant)
        assert drawn["n_vectors"] == 2 and drawn["p"] == (1 + drawn["n_as_good"]) / 3
        row(found, "necessity_next_heads", variant)
    # pocket's heads are needed: what is put in their place decides more than which heads are replaced
    assert row(found, "necessity", "other_tasks")["accuracy"] < found.accuracy("clean") - 0.5


def test_other_tasks_means_come_from_given_effects(pocket, task, iv, effects, asked):
    other = head_effects(pocket, load_task("synonym"), n_prompts=4)
    found = judged(pocket, task, iv, effects, "necessity", others=[other])
    clean, values = asked.prompts.batch("test", corrupted=False), [other.mean_z[head] for head in iv.heads]
    probs = first_probs(pocket, clean, at_last(pocket, iv.heads, values, lambda z, v: v.expand_as(z)))
    assert row(found, "necessity", "other_tasks")["prob"] == pytest.approx(float(probs.mean()), abs=1e-5)


def test_random_heads_are_of_the_same_layers_and_outside_the_vector(asked):
    layers = sorted(layer for layer, _ in asked.iv.heads)
    drawn = [asked.matched_heads(asked.iv.heads, draw) for draw in range(4)]
    for heads in drawn:
        assert sorted(layer for layer, _ in heads) == layers
        assert len({*heads}) == len(heads) and not {*heads} & {*asked.iv.heads}
    assert len({*drawn}) > 1 and drawn[0] == asked.matched_heads(asked.iv.heads, 0)


def test_a_layer_without_enough_heads_takes_those_of_the_nearest(asked):
    every = tuple((2, head) for head in range(6))  # of eight heads
    crowded = replace(asked, iv=replace(asked.iv, heads=every, head_means=asked.iv.head_means))
    layers = sorted(layer for layer, _ in crowded.matched_heads(every, 0))
    assert layers.count(2) == 2 and {*layers} <= {1, 2}


def test_the_next_heads_follow_in_strength(asked, effects):
    assert next_heads(asked) == tuple(effects.top_heads(12)[6:])
    assert next_heads(replace(asked, effects=None)) == ()


def test_by_k_repeats_the_judgement_for_every_number_of_heads(pocket, task, iv, effects):
    grid = Grid(layers=(0, 1), alphas=(1.0, 2.0), sites=("resid_post",))
    found = judged(pocket, task, iv, effects, "by_k", ks=(6, 1, 1000), at=grid)
    same, own = row(found, "by_k", "k=6"), row(found, "iv")
    for column in ("accuracy", "prob", "logprob", "layer", "alpha"):
        assert same[column] == own[column]
    assert "k=1000" not in set(found.table["variant"])
    one = InstructionVector.from_effects(effects, 1, model=pocket)
    alone = evaluate_intervention(
        pocket, task, one, at=grid, n_prompts=N, n_draws=0, options=JudgeOptions(other_vectors=())
    )
    assert row(found, "by_k", "k=1")["logprob"] == pytest.approx(row(alone, "iv")["logprob"], abs=1e-5)
    assert row(found, "by_k_random_heads", "k=6")["n_vectors"] == 2


def test_mean_difference_adds_the_difference_of_the_streams(pocket, task, iv, effects, asked):
    found = judged(pocket, task, iv, effects, "mean_difference")
    fit = replace(asked.prompts, n_prompts=5)
    for variant, corruption in (("corrupted", "counterfactual"), ("bare", "drop")):
        streams = []
        for kind in ("none", corruption):
            batch = replace(fit, corruption=kind).batch("fit")
            batch = batch.rows(batch.rows_of_one_kind())
            with captured_residual(pocket, 1, select=lambda one: one[:, -1]) as kept, torch.no_grad():
                pocket(batch.tokens, attention_mask=batch.attention_mask)
            streams.append(kept[1].mean(0))
        theta = streams[0] - streams[1]
        bare = asked.judge.batch

        def shifted(forward, theta=theta):
            def edit(resid):
                return torch.cat([resid[:, :-1], resid[:, -1:] + 2 * theta], 1)

            with added_to_stream(pocket, 1, "resid_post", edit):
                return forward()

        probs = first_probs(pocket, bare, shifted)
        own = row(found, "mean_difference", variant)
        assert own["prob"] == pytest.approx(float(probs.mean()), abs=1e-5)
        assert own["norm"] == pytest.approx(2 * float(theta.norm()), rel=1e-4)
        drawn = row(found, "mean_difference_random", variant)
        assert drawn["norm"] == pytest.approx(own["norm"], rel=1e-4)
        # controls are compared with the row that they belong to
        assert drawn["lead"] == pytest.approx(own["accuracy"] - drawn["accuracy"])


def test_mean_difference_searches_with_the_vector_of_each_layer(asked):
    grid = Grid(layers=(0, 1, 2), alphas=(1.0, 4.0), sites=("resid_post",), n_finalists=0)
    free = replace(asked, grid=grid)
    (best,) = {one.settings for one in MAKERS["mean_difference"](free) if one.variant == "bare" and len(one.names) == 1}
    select, goodness = asked.prompts.trials("select"), {}
    theta = mean_stream(asked, "none") - mean_stream(asked, "drop")
    for setting in grid.settings(asked.prompts.model):
        goodness[setting] = float(select.at([setting], theta[setting.layer][None]).goodness())
    assert goodness[best[0]] == max(goodness.values())


def test_distributed_adds_means_to_each_head(pocket, task, iv, effects, asked):
    found = judged(pocket, task, iv, effects, "distributed", head_alphas=(0.5,))
    fit = replace(asked.prompts, n_prompts=5)
    clean, bare = (means_by_hand(pocket, replace(fit, corruption=kind).batch("fit")) for kind in ("none", "drop"))
    for variant, means in (("mean", clean), ("minus_bare", clean - bare)):
        values = [means[head] for head in iv.heads]
        edit = at_last(pocket, iv.heads, values, lambda z, v: z + 0.5 * v)
        own = row(found, "distributed", variant)
        assert own["prob"] == pytest.approx(float(first_probs(pocket, asked.judge.batch, edit).mean()), abs=1e-5)
        assert own["alpha"] == 0.5 and own["n_vectors"] == 1
    searched = judged(pocket, task, iv, effects, "distributed", head_alphas=(0.01, 1.0))
    assert row(searched, "distributed", "mean")["alpha"] == 1.0


def test_trained_vectors_are_judged_where_they_were_trained(pocket, task, iv, effects):
    found = judged(pocket, task, iv, effects, "trained")
    own, permuted = row(found, "trained"), row(found, "trained_permuted")
    assert own["accuracy"] > found.accuracy("bare") + 0.4
    assert permuted["accuracy"] < own["accuracy"] - 0.3 and permuted["lead"] > 0.3
    assert own["norm"] > 0 and own["site"] == "resid_post" and own["alpha"] == 1


def test_other_templates_keep_the_setting(pocket, task, iv, effects):
    found = judged(pocket, task, iv, effects, "other_templates", templates=("plain", "qa", "chat"))
    assert set(found.table["variant"]) == {"", "qa"}  # its own is no other one, and pocket has no chat template
    qa = replace(iv.recipe, template="qa")
    alone = evaluate_intervention(
        pocket, task, iv, recipe=qa, at=AT, n_prompts=N, n_draws=0, options=JudgeOptions(other_vectors=())
    )
    for condition, same in (
        ("other_template", "iv"),
        ("other_template_bare", "bare"),
        ("other_template_clean", "clean"),
    ):
        assert row(found, condition, "qa")["logprob"] == pytest.approx(row(alone, same)["logprob"], abs=1e-5)


def test_side_effects_of_nothing_are_none(pocket, task, iv, effects):
    still = judged(pocket, task, iv, effects, "side_effects", at=Setting(1, 0.0, "resid_post"))
    own = row(still, "iv")
    assert own["kl"] == pytest.approx(0, abs=1e-6)
    assert own["perplexity"] == pytest.approx(own["perplexity_plain"], rel=1e-5)
    loud = row(judged(pocket, task, iv, effects, "side_effects", at=Setting(1, 8.0, "resid_post")), "iv")
    assert loud["kl"] > 0.5 and loud["perplexity"] > own["perplexity"]
    assert math.isnan(row(still, "clean")["kl"])  # no vector, no side effects


def test_perplexity_is_that_of_plain_passes(pocket, task, iv, effects):
    text = "The river was closed.\nThe old house has a red door and a green gate."
    found = row(judged(pocket, task, iv, effects, "side_effects", text=text), "iv")
    ids = torch.tensor([pocket.tokenizer(" ".join(text.split()))["input_ids"]])
    with torch.no_grad():
        logprobs = pocket(ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    assert found["perplexity_plain"] == pytest.approx(float((-logprobs.mean()).exp()), rel=1e-4)


def test_the_text_has_as_many_sentences_as_are_asked():
    lines = plain_text().splitlines()
    assert len(lines) >= 32 and len({*lines}) == len(lines) and all(len(line.split()) > 8 for line in lines)


def test_without_more_rows_the_table_is_as_before(pocket, task, iv, effects):
    plain = evaluate_intervention(pocket, task, iv, at=AT, n_prompts=N, n_draws=1, options=JudgeOptions(means=effects))
    assert set(plain.table["variant"]) == {""} and plain.settings["more"] is None
    more = judged(pocket, task, iv, effects, "necessity", "by_k", ks=(1,))
    assert more.settings["more"]["rows"] == ("necessity", "by_k")
    for condition in ("clean", "bare", "iv", "random", "iv_heads"):
        assert row(more, condition)["logprob"] == row(plain, condition)["logprob"]
    assert len(more.by_vector()) > len(plain.by_vector())


def test_accuracy_of_a_variant(pocket, task, iv, effects):
    found = judged(pocket, task, iv, effects, "by_k", ks=(1, 6))
    each = [found.accuracy("by_k", f"k={k}") for k in (1, 6)]
    assert found.accuracy("by_k") == pytest.approx(sum(each) / 2)
    with pytest.raises(KeyError, match="expected one of 'k=1', 'k=6' for by_k"):
        found.accuracy("by_k", "k=2")


def test_a_vector_without_heads_has_rows_that_need_none(pocket, task, iv, effects):
    found = judged(pocket, task, iv * 1.0 + iv * 0.0, effects, "necessity", "distributed", "mean_difference")
    assert {"necessity", "distributed"}.isdisjoint(found.table["condition"])
    assert "mean_difference" in set(found.table["condition"])


def test_rows_are_refused_clearly(pocket, task, iv):
    with pytest.raises(ValueError, match=r"row 'by_k' got no effects.*JudgeOptions\(means=effects\)"):
        judged(pocket, task, iv, None, "by_k")
    with pytest.raises(ValueError, match=f"rows has 'magic', expected some of {', '.join(ROWS)}"):
        MoreRows(("magic",))
    with pytest.raises(ValueError, match="ks is"):
        MoreRows(ks=(0, 2))
    with pytest.raises(ValueError, match="too few words"):
        judged(pocket, task, iv, None, "side_effects", text=" ")


def test_greedy_accuracy_agrees_with_the_clean_row(pocket, task, iv, effects, asked):
    batch = asked.prompts.batch("test", corrupted=False)
    found = judged(pocket, task, iv, effects, "other_templates")
    assert found.accuracy("clean") == pytest.approx(float(greedy_accuracy(pocket, batch).float().mean()))
