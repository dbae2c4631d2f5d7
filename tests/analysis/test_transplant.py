"""Head outputs and blocks of one model in another: identities, planted changes, and scores of plain passes."""

import numpy as np
import pytest
import torch

import ivlens
from ivlens import InstructionVector, load_model, load_task, splice, transplant
from ivlens.analysis.transplant import SpliceOptions, TransplantOptions, splicing
from ivlens.forward.hooks import captured_heads, patched_heads
from ivlens.steering.prompt_sets import PromptSets

TASK = load_task("antonym")
N = 12


@pytest.fixture(scope="module")
def before():
    return load_model("pocket")


@pytest.fixture(scope="module")
def effects(before):
    return ivlens.head_effects(before, TASK, n_prompts=16)


def changed(layer: int, *names: str):
    """A copy of the built-in model in which some matrices of one block are changed."""
    model = load_model("pocket")
    draw = torch.Generator().manual_seed(3)
    found = 0
    for name, parameter in model.original_model.named_parameters():
        if f".{layer}." in name and any(part in name for part in names):
            parameter.data += 3 * parameter.std() * torch.randn(parameter.shape, generator=draw)
            found += 1
    assert found == len(names)
    return model


def rows(table, **chosen):
    for name, value in chosen.items():
        table = table[table[name] == value]
    return table.to_dict("records")


def test_between_two_equal_models_nothing_changes(before, effects):
    found = transplant(
        before, load_model("pocket"), TASK, effects, n_prompts=N, options=TransplantOptions(ks=(2, 10), n_draws=2)
    )
    own = rows(found.table, heads="own")
    assert [row["into"] for row in own] == ["after", "before"] and own[0]["accuracy"] > 0.8
    others = found.table[found.table["heads"] != "own"]
    assert set(others["heads"]) == {"vector", "random", "every"} and sorted(set(others["k"])) == [2, 10, 48]
    assert (others["gain"] == 0).all() and others["share"].isna().all()
    assert others["prob"].to_list() == pytest.approx([own[0]["prob"]] * len(others), abs=1e-6)
    assert found.accuracy("after", k=2) == found.accuracy("before", "every") == own[0]["accuracy"]
    assert found.recipe == effects.recipe and found.settings["before"] == found.settings["after"]
    with pytest.raises(KeyError, match="into/heads/k is 'after'/'vector'/3, expected one of after/own/0"):
        found.accuracy("after", k=3)


def test_heads_whose_queries_were_changed_are_restored_and_no_others_are(before):
    after = changed(5, "q_proj", "v_proj")  # lower layers are the same: all is in the outputs of the last layer
    last = tuple((5, head) for head in range(8))
    vector = InstructionVector(
        torch.zeros(128), last, torch.zeros(8, 16), "antonym", ivlens.models.fingerprint.model_identity(before), {}
    )
    found = transplant(before, after, TASK, vector, n_prompts=N, options=TransplantOptions(n_draws=2))
    own = {row["into"]: row for row in rows(found.table, heads="own")}
    assert abs(own["after"]["prob"] - own["before"]["prob"]) > 1e-3
    for into, other in (("after", "before"), ("before", "after")):
        for heads in ("vector", "every"):
            (row,) = rows(found.table, into=into, heads=heads)
            assert row["prob"] == pytest.approx(own[other]["prob"], abs=1e-5)
            assert row["logprob"] == pytest.approx(own[other]["logprob"], abs=1e-4)
            assert row["accuracy"] == own[other]["accuracy"] and row["exact"] == own[other]["exact"]
    lower = tuple((0, head) for head in range(8))
    vector = InstructionVector(torch.zeros(128), lower, torch.zeros(8, 16), "antonym", vector.model, {})
    found = transplant(before, after, TASK, vector, n_prompts=N)
    (row,) = rows(found.table, into="after", heads="vector")
    assert row["prob"] == pytest.approx(own["after"]["prob"], abs=1e-6), "in layer 0 nothing was changed"


@pytest.mark.parametrize("positions", ["prompt", "every"])
def test_scores_are_those_of_plain_passes_over_each_prompt(before, effects, positions):
    after = changed(1, "q_proj", "v_proj")
    options = TransplantOptions(ks=(6,), n_draws=0, positions=positions)
    found = transplant(before, after, TASK, effects, n_prompts=6, options=options)
    heads = effects.top_heads(6)
    batch = PromptSets(before, TASK, effects.recipe, None, 6).batch("test")
    for into, model, other in (("after", after, before), ("before", before, after)):
        firsts, wholes = [], []
        for row in range(6):
            prompt = batch.tokens[row][batch.attention_mask[row] == 1]
            answer = torch.tensor(batch.alternatives[row][0])
            end = len(prompt)
            tokens = torch.cat([prompt, answer])[None]
            with torch.no_grad(), captured_heads(other) as given:
                other(tokens)

            def edit(z, layer, given=given, end=end):
                z = z.clone()
                where = slice(end - 1, end if positions == "prompt" else None)
                for at, head in heads:
                    if at == layer:
                        z[:, where, head] = given[layer][:, where, head]
                return z

            with torch.no_grad(), patched_heads(model, edit, sorted({layer for layer, _ in heads})):
                logits = model(tokens)[0].log_softmax(-1)
            each = logits[end - 1 : -1].gather(1, answer[:, None])[:, 0]
            firsts.append(float(each[0].exp()))
            wholes.append(float(each.sum()))
        (row,) = rows(found.table, into=into, heads="vector")
        assert row["prob"] == pytest.approx(sum(firsts) / 6, abs=1e-5)
        assert row["logprob"] == pytest.approx(sum(wholes) / 6, abs=1e-4)


def test_every_position_reaches_tokens_that_the_last_prompt_token_does_not():
    before = load_model("pocket")
    after = changed(5, "q_proj", "v_proj")
    last = tuple((5, head) for head in range(8))
    identity = ivlens.models.fingerprint.model_identity(before)
    vector = InstructionVector(torch.zeros(128), last, torch.zeros(8, 16), "plurals", identity, {})
    doubled = load_task("double")
    own, found = {}, {}
    for positions in ("prompt", "every"):
        made = transplant(
            before, after, doubled, vector, n_prompts=N, options=TransplantOptions(n_draws=0, positions=positions)
        )
        own = {row["into"]: row["logprob"] for row in rows(made.table, heads="own")}
        (row,) = rows(made.table, into="after", heads="vector")
        found[positions] = row["logprob"]
    assert found["every"] == pytest.approx(own["before"], abs=1e-4)
    assert abs(found["prompt"] - own["before"]) > 1e-3


def test_a_splice_jumps_at_the_block_that_was_changed(before):
    after = changed(3, "q_proj", "down_proj")
    found = splice(before, after, TASK, n_prompts=N).table
    series = {lower: {row["layer"]: row for row in rows(found, lower=lower)} for lower in ("before", "after")}
    assert [*series["before"]] == [*range(7)]
    own = {"before": series["after"][0], "after": series["before"][0]}  # layer 0: the upper model as it is
    assert abs(own["before"]["prob"] - own["after"]["prob"]) > 1e-3
    for lower, upper in (("before", "after"), ("after", "before")):
        for layer, row in series[lower].items():
            like = own[lower if layer > 3 else upper]
            assert row["prob"] == pytest.approx(like["prob"], abs=1e-5)
            assert row["logprob"] == pytest.approx(like["logprob"], abs=1e-4)
            assert (row["accuracy"], row["exact"]) == (like["accuracy"], like["exact"])


def runs_of_blocks(model):
    """A list that gets the number of every block that runs."""
    seen = []
    for layer, block in enumerate(model.original_model.model.layers):
        # not of the block itself, whose hooks are also called where its work is left out
        block.mlp.register_forward_hook(lambda mlp, given, out, layer=layer: seen.append(layer))
    return seen


def test_blocks_below_a_splice_do_not_run_and_scores_stay(before, monkeypatch):
    """The reference runs them, and puts the lower model's stream in the place of theirs."""
    after = changed(2, "q_proj", "down_proj")
    own, swapped = runs_of_blocks(after), {}
    options = SpliceOptions(layers=(1, 3, 6))
    for way in ("left out", "run"):
        with monkeypatch.context() as patch:
            if way == "run":
                patch.setattr(splicing, "_way_in", lambda *_: splicing._replaced)
            own.clear()
            swapped[way] = splice(before, after, TASK, n_prompts=N, options=options).table
            # once as it is, and above the other model from blocks 1, 3 and 6 on; some runs more try it on a few rows
            assert [own.count(layer) for layer in (0, 2, 5)] == ([4, 4, 4] if way == "run" else [4, 5, 7])
    left_out, run = (table.select_dtypes("number") for table in swapped.values())
    assert np.allclose(left_out, run, atol=1e-6) and run["prob"].nunique() == 2


@pytest.mark.parametrize("change", [lambda stream: 2 * stream, lambda stream: stream[:, :1]])
def test_blocks_run_where_a_model_needs_more_than_the_stream(before, monkeypatch, change):
    """As if blocks handed on more: with blocks left out other logits come out, or an error."""
    after = changed(2, "q_proj")
    options = SpliceOptions(layers=(2, 4))
    want = splice(before, after, TASK, n_prompts=N, options=options).table
    plain = splicing.blocks_left_out
    monkeypatch.setattr(
        splicing, "blocks_left_out", lambda model, at, stream, form: plain(model, at, change(stream), form)
    )
    own = runs_of_blocks(after)
    found = splice(before, after, TASK, n_prompts=N, options=options).table
    assert own.count(0) == 6  # as it is, above in two splices, and three times where it is tried
    assert np.allclose(found.select_dtypes("number"), want.select_dtypes("number"), atol=1e-6)


def test_prompts_that_fill_the_context_with_their_answers_are_spliced_row_by_row(monkeypatch):
    """One prompt is as long as the context allows and another one's answer too: together they are wider."""
    models = []
    for _ in range(2):
        models.append(load_model("pocket"))
        models[-1].cfg.n_ctx = 64
    prompts = PromptSets(models[0], TASK, ivlens.PromptRecipe(), None, 6, 0).batch("test")
    width = prompts.tokens.shape[1] + prompts.answer_tokens.shape[1]
    for model in models:
        model.cfg.n_ctx = width - 1
    found = splice(*models, TASK, recipe=ivlens.PromptRecipe(), n_prompts=6, options=SpliceOptions(layers=(2, 4)))
    assert found.table["prob"].nunique() == 1 and found.table["accuracy"].min() > 0.5


def test_models_of_two_precisions_are_spliced_without_running_blocks_twice(before):
    after = load_model("pocket", dtype="bfloat16")
    own = runs_of_blocks(after)
    found = splice(before, after, TASK, n_prompts=N, options=SpliceOptions(layers=(3,))).table
    assert own.count(0) < own.count(4)
    assert np.allclose(found["prob"], found["prob"][0], atol=0.05)


def test_splices_agree_with_transplants_about_both_models(before, effects):
    after = changed(2, "v_proj")
    spliced = splice(
        before, after, TASK, recipe=effects.recipe, n_prompts=N, options=SpliceOptions(layers=(2,), rows_per_pass=5)
    )
    swapped = transplant(before, after, TASK, effects, n_prompts=N, options=TransplantOptions(ks=(1,), n_draws=0))
    for lower, into in (("before", "after"), ("after", "before")):
        (one,), (other,) = rows(spliced.table, lower=lower, layer=0), rows(swapped.table, into=into, heads="own")
        for name in ("accuracy", "exact", "prob", "logprob"):
            assert one[name] == pytest.approx(other[name], abs=1e-5)


def test_what_does_not_fit_is_refused(before, effects, llama):
    with pytest.raises(ValueError, match="before and after are the same model object, expected two"):
        transplant(before, before, TASK, effects)
    with pytest.raises(ValueError, match="before has n_layers 6 and after"):
        splice(before, llama, TASK)
    with pytest.raises(ValueError, match="layers has 7, expected layers from 1 to 6"):
        splice(before, load_model("pocket"), TASK, options=SpliceOptions(layers=(7,)))
    with pytest.raises(ValueError, match=r"ks is \(0,\), expected one or more numbers of heads"):
        TransplantOptions(ks=(0,))
    with pytest.raises(ValueError, match="measured on the split 'fit', on which they would be judged"):
        transplant(before, load_model("pocket"), TASK, effects, options=TransplantOptions(split="fit"))
