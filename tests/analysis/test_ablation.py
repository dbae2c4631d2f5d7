"""Accuracy without sets of heads: which heads are in each set, and scores that are those of plain patched passes."""

from collections import Counter
from dataclasses import replace
from random import Random

import pandas as pd
import pytest
import torch
from conftest import tiny_task

import ivlens
from ivlens import PromptRecipe, ablate_heads, head_effects, head_scores, load_model
from ivlens.analysis.attention import AblationOptions, HeadAblation
from ivlens.analysis.attention.ablated import NOTHING, Tried
from ivlens.analysis.attention.ablation import _without
from ivlens.analysis.attention.scores import HeadScores, ScoreOptions
from ivlens.analysis.attention.sets import SETS, head_sets
from ivlens.common.intervals import wilson
from ivlens.forward.means import mean_head_outputs
from ivlens.models.fingerprint import model_identity
from ivlens.prompts.build import build_prompts
from ivlens.steering.controls import matched_heads
from ivlens.steering.prompt_sets import PromptSets
from ivlens.steering.summary import Scores
from ivlens.tasks import TaskExample

TASK = tiny_task()
QUICK = ivlens.EffectOptions(n_mean_prompts=4, n_check_prompts=0)


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


@pytest.fixture(scope="module")
def effects(pocket):
    return head_effects(pocket, ivlens.load_task("antonym"), n_prompts=16)


def scored(model, induction: dict[tuple[int, int], float]) -> HeadScores:
    """Scores of a model, 0 but for these heads."""
    values = torch.zeros(1, model.cfg.n_layers, model.cfg.n_heads)
    for (layer, head), score in induction.items():
        values[0, layer, head] = score
    return HeadScores(values, torch.zeros_like(values), model_identity(model), {})


def test_sets_leave_the_other_kind_out_and_are_filled_up(pocket, effects):
    ranked = effects.top_heads(48)
    scores = scored(pocket, {ranked[1]: 0.9, ranked[5]: 0.41, ranked[2]: 0.6, ranked[30]: 0.5, ranked[40]: 0.39})
    sets = head_sets(effects, scores, 4, 0.4)
    assert tuple(sets) == SETS
    assert sets["vector"] == tuple(ranked[:4])
    assert sets["vector_only"] == (ranked[0], ranked[3], ranked[4], ranked[6]), "induction heads out, next ones in"
    assert sets["induction"] == (ranked[1], ranked[2], ranked[30], ranked[5])
    assert sets["induction_only"] == (ranked[30], ranked[5])
    iv = ivlens.InstructionVector.from_effects(effects, k=3)
    sets = head_sets(iv, scores, 10, 0.4)
    assert sets["vector"] == iv.heads and sets["vector_only"] == (ranked[0],), "a vector knows no next heads"
    assert len(sets["induction"]) == 3 and sets["induction_only"] == (ranked[30], ranked[5])
    assert head_sets(effects, scores, 4, 0.95)["induction"] == ()


def every(n_layers, n_heads):
    return [(layer, head) for layer in range(n_layers) for head in range(n_heads)]


def test_random_heads_are_in_the_same_layers():
    chosen = ((0, 1), (2, 0), (2, 3), (5, 5))
    for seed in range(20):
        found = matched_heads(chosen, {(0, 2), (2, 1)}, every(6, 8), Random(seed))
        assert Counter(layer for layer, _ in found) == {0: 1, 2: 2, 5: 1}
        assert len(set(found)) == 4 and not {*chosen, (0, 2), (2, 1)}.intersection(found)
    assert matched_heads(chosen, (), every(6, 8), Random(0)) == matched_heads(chosen, (), every(6, 8), Random(0))
    assert matched_heads(chosen, (), every(6, 8), Random(0)) != matched_heads(chosen, (), every(6, 8), Random(1))


def test_a_full_layer_takes_heads_of_the_nearest_one():
    full = tuple((3, head) for head in range(4))
    found = matched_heads(full, {(2, 0), (2, 1)}, every(6, 4), Random(0))
    # two free heads in layer 2, four in layer 4: layer 2 comes first, as the lower of two equally near ones
    assert Counter(layer for layer, _ in found) == {2: 2, 4: 2}
    everything = tuple((layer, head) for layer in range(2) for head in range(4))
    assert matched_heads(everything[:5], (), every(2, 4), Random(0)) == everything[5:]
    assert matched_heads(everything, (), every(2, 4), Random(0)) == ()


@pytest.mark.parametrize("replaced_by", ["corrupted", "bare"])
@pytest.mark.parametrize("positions", ["prompt", "every"])
def test_scores_are_those_of_plain_patched_passes(new_model, byte_level, replaced_by, positions):
    model = new_model("llama", byte_level, n_ctx=256)
    recipe = PromptRecipe(n_shots=2, seed=1)
    effects = head_effects(model, TASK, recipe=recipe, n_prompts=4, corruption="drop", options=QUICK)
    options = AblationOptions(
        k=3, replaced_by=replaced_by, positions=positions, corruption="shuffle", n_draws=2, n_mean_prompts=6
    )
    best = effects.top_heads(3)
    found = ablate_heads(model, TASK, effects, scores=scored(model, {best[0]: 0.9}), n_prompts=5, options=options)
    kind = "drop" if replaced_by == "bare" else "shuffle"
    assert found.settings["means_over"] == kind and found.recipe == recipe.resolved(TASK)
    sets = PromptSets(model, TASK, recipe, None, 5, 0)
    means = PromptSets(model, TASK, recipe, kind, 6, 0).batch("fit")
    values = mean_head_outputs(model, means.tokens, means.attention_mask)
    batch = build_prompts(byte_level, TASK, sets.examples("test"), recipe)
    for row in found.table.to_dict("records"):
        if row["drawn"] or row["ablated"] == NOTHING or not row["n_heads"]:
            continue
        heads = [tuple(map(int, name[1:].split("H"))) for name in row["heads"].split()]
        probs = []
        for number in range(len(batch)):
            ids = batch.tokens[number][batch.attention_mask[number] == 1][None]

            def edit(z, hook, heads=heads):
                layer = int(hook.name.split(".")[1])
                for at, head in heads:
                    if at == layer:
                        z[:, -1, head] = values[layer, head]
                return z

            hooks = [(f"blocks.{layer}.attn.hook_z", edit) for layer in {at for at, _ in heads}]
            with torch.no_grad(), model.hooks(fwd_hooks=hooks):
                logits = model(ids, use_cache=False)
            probs.append(float(logits[0, -1].softmax(-1)[batch.answer_tokens[number, 0]]))
        assert row["prob"] == pytest.approx(sum(probs) / len(probs), rel=1e-3, abs=1e-7)
    names = list(zip(found.table["ablated"], found.table["drawn"], strict=True))
    assert names == [
        (NOTHING, False),
        *((name, drawn) for name in SETS[:3] for drawn in (False, True)),
        ("induction_only", False),
    ]
    assert found.table["n_heads"].tolist() == [0, 3, 3, 3, 3, 1, 1, 0]


@pytest.mark.parametrize("positions", ["prompt", "every"])
def test_tokens_of_the_answer_are_edited_too(new_model, byte_level, positions):
    model = new_model("llama", byte_level, n_ctx=256)
    task = replace(TASK, examples=tuple(TaskExample(one.input, (f"{one.answer} tree",)) for one in TASK.examples))
    recipe, heads = PromptRecipe(n_shots=2), ((0, 1), (1, 3), (2, 0))
    values = torch.randn(3, 4, model.cfg.d_head, generator=torch.Generator().manual_seed(0))
    sets = PromptSets(model, task, recipe, None, 4, 0, positions)
    trials = sets.trials("test", corrupted=False)
    found = trials.edited(_without(model, heads, values)).logprob[0]
    lengths = set()
    for number, want in enumerate(found.tolist()):
        batch = trials.batch.rows([number])
        prompt, answer = batch.tokens[batch.attention_mask == 1].tolist(), list(batch.alternatives[0][0])
        last, lengths = len(prompt) - 1, lengths | {len(answer)}

        def edit(z, hook, last=last):
            for at, head in heads:
                if f"blocks.{at}." in hook.name:
                    z[:, last : last + 1 if positions == "prompt" else None, head] = values[at, head]
            return z

        hooks = [(f"blocks.{layer}.attn.hook_z", edit) for layer in range(3)]
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            logs = model(torch.tensor([[*prompt, *answer]]), use_cache=False)[0].log_softmax(-1)
        assert want == pytest.approx(float(sum(logs[last + n, token] for n, token in enumerate(answer))), abs=1e-3)
    assert max(lengths) > 1


def test_the_built_in_models_heads_carry_the_task(pocket, effects):
    options = AblationOptions(n_draws=3, split="select")
    found = ablate_heads(pocket, ivlens.load_task("antonym"), effects, n_prompts=16, options=options)
    assert found.accuracy(NOTHING) == 1.0 and found.accuracy("vector") < 0.4
    assert found.accuracy("vector", drawn=True) > found.accuracy("vector") + 0.2
    again = ablate_heads(pocket, ivlens.load_task("antonym"), effects, n_prompts=16, options=options)
    pd.testing.assert_frame_equal(found.table, again.table)
    assert pd.isna(found.accuracy("induction")), "pocket has no induction heads"
    assert "accuracy without nothing 1.00, vector 0." in repr(found) and "vector_only" in str(found)
    assert found._repr_html_().count("<tr>") == 1 + len(found.table) and found.table.attrs["threshold"] == 0.4
    with pytest.raises(KeyError, match="ablated is 'all', expected one of nothing, vector, vector_only"):
        found.accuracy("all")


def test_the_table_by_hand():
    def scores(rows):
        accuracy = torch.tensor(rows)
        return Scores(accuracy, accuracy, accuracy / 2, accuracy)

    heads, drawn = ((0, 1), (1, 2)), (((0, 2), (1, 3)), ((0, 3), (1, 0)), ((0, 0), (1, 1)))
    tried = [
        Tried(NOTHING, False, (), scores([[1.0, 1.0, 1.0, 0.0]])),
        Tried("vector", False, (heads,), scores([[1.0, 0.0, 0.0, 0.0]])),
        Tried("vector", True, drawn, scores([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])),
        Tried("induction", False, (), None),
    ]
    table = HeadAblation.of(tried, {"task": "x"}).table
    assert table["accuracy"].tolist()[:3] == pytest.approx([0.75, 0.25, 0.5])
    assert (table["accuracy_lo"][1], table["accuracy_hi"][1]) == wilson(1, 4)
    assert (table["accuracy_lo"][2], table["accuracy_hi"][2]) == pytest.approx(wilson(2, 4))
    assert table["drop"].tolist()[1:3] == pytest.approx([0.5, 0.25]) and pd.isna(table["drop"][0])
    assert table["n_as_bad"][1] == 1 and table["p"][1] == 2 / 4
    assert table["heads"].tolist() == ["", "L0H1 L1H2", "", ""] and table["n_sets"].tolist() == [0, 1, 3, 0]
    assert table["prob"].tolist()[:2] == [0.375, 0.125] and pd.isna(table["accuracy"][3])
    same = HeadAblation.of([tried[0], Tried("vector", False, (heads,), tried[0].scores)], {}).table
    assert same["drop"][1] == 0.0 and same["drop_lo"][1] < 0 < same["drop_hi"][1], "never seen is not impossible"


def test_what_chose_the_heads_is_not_judged_on(pocket, effects):
    task = ivlens.load_task("antonym")
    with pytest.raises(ValueError, match="effects were measured on the split 'fit', on which they would be judged"):
        ablate_heads(pocket, task, effects, options=AblationOptions(split="fit"))
    iv = ivlens.InstructionVector.from_effects(effects, k=3)
    with pytest.raises(ValueError, match="a vector was made on the split 'fit'"):
        ablate_heads(pocket, task, iv, options=AblationOptions(split="fit"))


def test_splits_stay_those_of_the_effects(llama):
    effects = head_effects(llama, TASK, recipe=PromptRecipe(seed=5), n_prompts=2, corruption="drop", options=QUICK)
    options = AblationOptions(n_draws=0, k=2, corruption="drop", n_mean_prompts=2)
    for heads in (effects, ivlens.InstructionVector.from_effects(effects, k=2)):
        for recipe in (None, PromptRecipe("qa", seed=7)):
            found = ablate_heads(
                llama, TASK, heads, scores=scored(llama, {}), recipe=recipe, n_prompts=2, options=options
            )
            assert found.recipe.seed == 5 and found.recipe.template == ("qa" if recipe else "plain")


def test_heads_of_another_model_are_refused(pocket, effects, llama):
    task = ivlens.load_task("antonym")
    with pytest.raises(ValueError, match="expected 'pocket'"):
        ablate_heads(llama, task, effects)
    with pytest.raises(ValueError, match="scores are those of .*, expected those of this model; leave them out"):
        ablate_heads(pocket, task, effects, scores=head_scores(llama, ScoreOptions(n_sequences=1)), n_prompts=2)
    for wrong in (0, -0.1, 1.5):
        with pytest.raises(ValueError, match="threshold is .*, expected a share of attention above 0 and at most 1"):
            AblationOptions(threshold=wrong)
