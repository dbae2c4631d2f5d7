"""Where heads look: weights are those of plain Hugging Face models, shares sum to 1, planted heads are found."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import TOKENIZERS, hf_model, tiny_task
from families import CONFIGS

import ivlens
from ivlens import PromptRecipe, head_attention, head_effects, head_scores, load_model
from ivlens.analysis.attention import SEGMENTS, AttentionOptions, HeadAttention, ScoreOptions
from ivlens.analysis.attention.chosen import chosen_heads
from ivlens.analysis.attention.looking import last_rows, with_sinks
from ivlens.analysis.attention.scores import _diagonals
from ivlens.models.attention import all_heads
from ivlens.models.boot import ModelRef
from ivlens.prompts.segments import token_segments
from ivlens.prompts.tokens import Encoder
from ivlens.steering.prompt_sets import PromptSets

TASK = tiny_task()
SHOWN = PromptRecipe(n_shots=2)
ALL = AttentionOptions(n_kept=None, scores=None, batch_size=3)


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


@pytest.fixture(scope="module")
def antonym(pocket):
    return head_attention(pocket, ivlens.load_task("antonym"), recipe=PromptRecipe(n_shots=3), n_prompts=8)


def by_hf(family: str, ids: tuple[int, ...], **shape) -> torch.Tensor:
    """Attention from the last token of an unpadded text in a plain model: [n_layers, n_heads, pos]."""
    with torch.no_grad():
        found = hf_model(family, **shape)(torch.tensor([ids]), output_attentions=True, use_cache=False).attentions
    return torch.stack([each[0, :, -1] for each in found if each is not None])  # hybrids: of their attention layers


# fused and separate projections, grouped keys, windows shorter than the prompt, ALiBi, attention sinks
FEW = ("gpt2", "neox", "llama_gqa", "gemma2", "gptneo", "bloom", "opt", "gpt_oss", "phi3")
REST = [pytest.param(family, marks=pytest.mark.slow) for family in CONFIGS if family not in FEW]


@pytest.mark.parametrize("family", [*FEW, *REST])
def test_weights_are_those_of_the_plain_model(new_model, byte_level, family):
    model = new_model(family, byte_level, n_ctx=256)
    found = head_attention(model, TASK, recipe=SHOWN, n_prompts=4, options=ALL)
    heads = all_heads(model)
    assert list(found.heads) == heads and found.prompts == ("clean", "shuffle")
    widths = set()
    for kind, looked in found.looked.items():
        assert len(looked.shown) == 4
        for prompt, shown in enumerate(looked.shown):
            want = by_hf(family, shown.ids, n_ctx=256).flatten(0, 1)
            widths.add(len(shown.ids))
            torch.testing.assert_close(shown.weights, want, atol=2e-6, rtol=1e-4)
            for place, segment in enumerate(SEGMENTS[:-1]):
                own = want[:, [at == segment for at in shown.segments]].sum(1)
                torch.testing.assert_close(looked.shares[prompt, :, place], own, atol=3e-6, rtol=1e-4)
        torch.testing.assert_close(looked.shares.sum(-1), torch.ones(4, len(heads)), atol=1e-5, rtol=0)
        assert bool((looked.shares[..., -1] > 1e-3).all()) is (family == "gpt_oss")
        assert found.shares(kind) is looked.shares
    assert len(widths) > 1, "no prompt was padded"


def test_shares_are_of_the_prompts_that_were_built(llama):
    options = AttentionOptions(
        corruptions=("shuffle", "counterfactual_inputs", "drop"), n_kept=None, scores=None, seed=3
    )
    recipe = PromptRecipe("qa", n_shots=2, seed=1)
    found = head_attention(llama, TASK, ["L1H2"], recipe=recipe, n_prompts=3, options=options)
    assert found.prompts == ("clean", "shuffle", "counterfactual_inputs", "drop")
    for kind, looked in found.looked.items():
        corruption = None if kind == "clean" else kind
        batch = PromptSets(llama, TASK, recipe, corruption, 3, 3).batch("select", corrupted=corruption is not None)
        segments = token_segments(llama.tokenizer, TASK, recipe, batch)
        assert looked.inputs == tuple(one.input for one in batch.examples)
        for row, shown in enumerate(looked.shown):
            assert list(shown.ids) == Encoder(llama.tokenizer).ids(batch.texts[row])
            assert shown.segments == tuple(segments[row])
    told = {
        kind: looked.shares[:, 0, [SEGMENTS.index(name) for name in ("instruction", "inputs", "answers")]].sum()
        for kind, looked in found.looked.items()
    }
    assert told["drop"] == 0 < told["shuffle"]
    assert not found.shares("shuffle")[..., SEGMENTS.index("instruction")].any()


def test_without_demonstrations_there_is_nothing_to_shuffle(llama):
    found = head_attention(llama, TASK, [(0, 0)], n_prompts=2, options=ALL)
    assert found.prompts == ("clean",) and found.scores is None
    assert float(found.shares()[..., SEGMENTS.index("answers")].sum()) == 0
    one_shot = head_attention(llama, TASK, [(0, 0)], recipe=PromptRecipe(n_shots=1), n_prompts=2, options=ALL)
    assert one_shot.prompts == ("clean",)


def test_batches_and_padding_change_nothing(llama):
    one = head_attention(llama, TASK, recipe=SHOWN, n_prompts=6, options=replace(ALL, batch_size=1))
    many = head_attention(llama, TASK, recipe=SHOWN, n_prompts=6, options=replace(ALL, batch_size=6))
    for kind in one.prompts:
        torch.testing.assert_close(one.shares(kind), many.shares(kind), atol=1e-6, rtol=1e-4)
    same = head_attention(llama, TASK, recipe=SHOWN, n_prompts=6, options=replace(ALL, batch_size=6))
    assert torch.equal(many.shares(), same.shares())
    some = head_attention(llama, TASK, ["L2H3", "L0H1"], recipe=SHOWN, n_prompts=6, options=replace(ALL, batch_size=6))
    assert torch.equal(some.shares(), many.shares()[:, [2 * 4 + 3, 1]])


def test_half_precision_has_no_sink(byte_level):
    model = load_model(hf_model=hf_model("llama", n_ctx=256).bfloat16(), tokenizer=byte_level)
    found = head_attention(model, TASK, recipe=SHOWN, n_prompts=4, options=ALL)
    torch.testing.assert_close(found.shares().sum(-1), torch.ones(4, 12), atol=1e-5, rtol=0)
    assert not found.shares()[..., -1].any()
    for shown in found.looked["clean"].shown:
        torch.testing.assert_close(shown.weights.sum(-1), torch.ones(12), atol=1e-5, rtol=0)
    batch = PromptSets(model, TASK, SHOWN, None, 4, 0).batch("select", corrupted=False)
    sums = torch.stack(
        [weights.sum(-1) for _, weights in last_rows(model, batch.tokens, batch.attention_mask, found.heads, 4)]
    )
    assert (sums - 1).abs().max() > 1e-4, "the model itself rounds"


def test_what_lacks_from_one_is_a_sink_where_it_is_no_rounding():
    heads, short = ((0, 1), (0, 3), (2, 0)), torch.tensor([[0.0, 0.01, 0.0], [0.0, 0.004, 1e-4]])
    assert with_sinks(short, heads, is_half=False).tolist() == [True, True, False], "sinks are those of a layer"
    assert with_sinks(short, heads, is_half=True).tolist() == [False] * 3
    assert with_sinks(10 * short, heads, is_half=True).tolist() == [True, True, False]


def previous_token_head(byte_level):
    """A GPT-2 whose head L1H2 attends to the token before, whatever it is, by its positions alone."""
    hf = hf_model("gpt2", n_ctx=128)
    torch.manual_seed(0)
    with torch.no_grad():
        for block in hf.transformer.h:  # positions reach the second block as they are
            block.attn.c_proj.weight.zero_(), block.attn.c_proj.bias.zero_()
            block.mlp.c_proj.weight.zero_(), block.mlp.c_proj.bias.zero_()
        hf.transformer.wte.weight.zero_()
        angles = torch.outer(torch.arange(128.0), torch.tensor([2.1, 1.3, 0.31, 0.04]))
        code = torch.cat([angles.cos(), angles.sin()], 1)  # [128, 8]; a turn leads from each position to the next
        places = torch.zeros(128, 32)
        places[:, :8], places[:, 8:16] = code, -code  # mean 0 and one length, so that the norm only scales
        hf.transformer.wpe.weight.copy_(places)
        block = hf.transformer.h[1]
        block.ln_1.weight.fill_(1), block.ln_1.bias.zero_()
        weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        turned = torch.zeros(8, 8)
        for n, angle in enumerate((2.1, 1.3, 0.31, 0.04)):
            turned[n, n] = turned[n + 4, n + 4] = torch.tensor(angle).cos()
            turned[n, n + 4], turned[n + 4, n] = torch.tensor(angle).sin(), -torch.tensor(angle).sin()
        columns = slice(2 * 8, 3 * 8)
        weight[:, columns] = 0
        weight[:, 32:][:, columns] = 0
        bias.zero_()
        weight[:8, columns] = 30 * torch.eye(8)
        weight[:8, 32:][:, columns] = turned  # keys are codes of the next position
    return load_model(hf_model=hf, tokenizer=byte_level)


def test_a_planted_previous_token_head_is_found(byte_level):
    model = previous_token_head(byte_level)
    scores = head_scores(model, ScoreOptions(length=30, n_sequences=3))
    induction, previous = scores.of((1, 2))
    assert previous > 0.95 and induction < 0.05
    others = scores.previous.mean(0).flatten()
    assert int(others.argmax()) == 1 * 4 + 2 and float(others.topk(2).values[1]) < 0.5
    found = head_attention(model, TASK, ["L1H2"], recipe=SHOWN, n_prompts=3, options=ALL)
    tokens = found.tokens("L1H2")
    assert tokens["weight"].iloc[-2] > 0.95 and found.share("L1H2", "template")[0] > 0.95
    pattern = found.pattern("L1H2")
    assert bool((pattern.diagonal(-1)[1:] > 0.9).all())


@pytest.mark.parametrize("n_start", [0, 1, 2])
def test_scores_of_a_pattern_made_by_hand(n_start):
    length = 5
    n = n_start + 2 * length
    induction, previous, own = torch.zeros(3, 1, 1, n, n)
    for place in range(n):
        own[..., place, place] = 1.0
        previous[..., place, max(0, place - 1)] = 1.0
        first = place - length
        induction[..., place, first + 1 if first >= n_start else place] = 1.0
    pattern = torch.cat([induction, previous, own], 1)  # [1, 3, n, n]
    found = _diagonals(n_start, length)(pattern)
    assert found.shape == (2, 1, 3)
    assert found[0, 0].tolist() == [1.0, 0.0, 0.0] and found[1, 0].tolist() == [0.0, 1.0, 0.0]
    halved = _diagonals(n_start, length)(0.5 * pattern)
    assert halved[0, 0].tolist() == [0.5, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_scores_are_means_over_the_plain_models_weights(kind):
    tokenizer = TOKENIZERS[kind]()
    plain = hf_model("llama_gqa")
    model = load_model(hf_model=hf_model("llama_gqa"), tokenizer=tokenizer)
    options = ScoreOptions(length=6, n_sequences=3, seed=4, batch_size=2)
    found = head_scores(model, options)
    start = Encoder(tokenizer).start
    drawn = torch.Generator().manual_seed(4)
    special = {*tokenizer.all_special_ids}
    usable = [one for one in range(len(tokenizer)) if one not in special and one < model.cfg.d_vocab]
    for sequence in range(3):
        copy = [usable[at] for at in torch.randperm(len(usable), generator=drawn)[:6].tolist()]
        assert len(set(copy)) == 6
        ids = [*start, *copy, *copy]
        with torch.no_grad():
            every = plain(torch.tensor([ids]), output_attentions=True).attentions
        for layer in range(3):
            for head in range(4):
                row = every[layer][0, head]
                after = [float(row[at, at - 5]) for at in range(len(start) + 6, len(ids))]
                before = [float(row[at, at - 1]) for at in range(2, len(ids))]
                assert float(found.induction[sequence, layer, head]) == pytest.approx(sum(after) / len(after), abs=1e-5)
                assert float(found.previous[sequence, layer, head]) == pytest.approx(
                    sum(before) / len(before), abs=1e-5
                )
    assert found.settings["length"] == 6 and found.settings["n_start"] == len(start)
    assert torch.equal(head_scores(model, options).induction, found.induction)
    assert not torch.equal(head_scores(model, replace(options, seed=5)).induction, found.induction)


def test_sequences_fit_the_model(llama, new_model):
    assert head_scores(llama, ScoreOptions(n_sequences=1)).settings["length"] == 50
    short = new_model("llama", n_ctx=32)
    assert head_scores(short, ScoreOptions(n_sequences=1)).settings == {
        "length": 16, "n_sequences": 1, "seed": 0, "batch_size": 8, "n_start": 0,
    }  # fmt: skip
    with pytest.raises(ValueError, match="length is 17, expected 2 to 16: the model has a context of 32 tokens"):
        head_scores(short, ScoreOptions(length=17))
    with pytest.raises(ValueError, match="length is 1, expected a whole number, 2 or more"):
        ScoreOptions(length=1)


def test_the_frame_has_intervals_and_scores(antonym):
    frame = antonym.frame()
    assert len(frame) == 2 * 48 * len(SEGMENTS)
    assert (
        set(frame["prompts"]) == {"clean", "shuffle"}
        and set(frame["n"]) == {8}
        and set(frame["interval"]) == {"t 95 %"}
    )
    assert ((frame["low"] <= frame["share"]) & (frame["share"] <= frame["high"])).all()
    assert frame["low"].min() >= 0 and frame["high"].max() <= 1 and frame.attrs["split"] == "select"
    row = frame[(frame["label"] == "L3H4") & (frame["segment"] == "answers") & (frame["prompts"] == "shuffle")].iloc[0]
    from ivlens.common.intervals import t_interval

    values = antonym.shares("shuffle")[:, 3 * 8 + 4, SEGMENTS.index("answers")].double().numpy()
    mean, low, high = t_interval(values)
    assert (row["share"], row["low"], row["high"]) == pytest.approx((mean, max(0, low), min(1, high)))
    assert antonym.share((3, 4), "answers", "shuffle") == pytest.approx((row["share"], row["low"], row["high"]))
    assert antonym.share("l3h4", "answers", "shuffle") == antonym.share((3, 4), "answers", "shuffle")
    assert (row["induction"], row["previous"]) == antonym.scores.of((3, 4))
    one = head_attention(ivlens.load_model("pocket"), ivlens.load_task("antonym"), ["L0H0"], n_prompts=1)
    assert one.frame()["low"].isna().all() and set(one.frame()["interval"]) == {""}


def test_the_table_is_wide_and_texts_are_short(antonym):
    table = antonym.table()
    assert list(table.columns) == ["head", "prompts", *SEGMENTS[:-1], "induction", "previous"]
    assert len(table) == 96 and table[list(SEGMENTS[:-1])].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    assert repr(antonym) == "HeadAttention('antonym', 'pocket', 48 heads, prompts: 8 clean, 8 shuffle)"
    assert "induction" in str(antonym)
    html = antonym._repr_html_()
    assert html.count("<tr>") == 1 + 20 + 4 and "48, of which the first 10 are shown" in html


def test_tokens_and_pattern_of_one_prompt(antonym, pocket):
    tokens = antonym.tokens("L3H4", 2, "shuffle")
    assert list(tokens.columns) == ["token", "segment", "weight"]
    shown = antonym.looked["shuffle"].shown[2]
    assert tuple(tokens["token"]) == shown.texts and float(tokens["weight"].sum()) == pytest.approx(1, abs=1e-5)
    by_part = tokens.groupby("segment")["weight"].sum()
    assert by_part["answers"] == pytest.approx(
        float(antonym.shares("shuffle")[2, 28, SEGMENTS.index("answers")]), abs=1e-5
    )
    pattern = antonym.pattern("L3H4", 2, "shuffle")
    assert pattern.shape == (len(tokens),) * 2 and not pattern.triu(1).any()
    torch.testing.assert_close(pattern[-1], shown.weights[28], atol=1e-5, rtol=1e-3)
    with pytest.raises(
        ValueError, match="prompt is 8, expected a number below 8, as the tokens of so many clean prompts"
    ):
        antonym.tokens("L3H4", 8)
    with pytest.raises(ValueError, match="head is 'L9H0', expected one of the heads that were watched: L0H0, "):
        antonym.tokens("L9H0")
    with pytest.raises(ValueError, match="prompts is 'bare', expected one of clean, shuffle"):
        antonym.tokens("L3H4", prompts="bare")
    with pytest.raises(ValueError, match="segment is 'demo', expected one of start, instruction"):
        antonym.share("L3H4", "demo")


def test_a_pattern_needs_the_model_that_was_measured(antonym):
    with pytest.raises(ValueError, match="pattern needs the model, which is no longer in memory"):
        replace(antonym, model_ref=None).pattern("L3H4")
    other = load_model("pocket")
    with torch.no_grad():
        other.original_model.get_input_embeddings().weight.normal_()
    with pytest.raises(ValueError, match="the model changed since the attention of 'antonym' was measured"):
        replace(antonym, model_ref=ModelRef(other)).pattern("L0H7")


def test_heads_are_named_in_many_ways(pocket):
    effects = head_effects(pocket, ivlens.load_task("antonym"), n_prompts=8)
    iv = ivlens.InstructionVector.from_effects(effects, k=3)
    assert chosen_heads(pocket, effects, 4) == tuple(effects.top_heads(4))
    assert chosen_heads(pocket, iv) == iv.heads
    assert chosen_heads(pocket, "L1H2, l0h7") == chosen_heads(pocket, ["L1H2", (0, 7)]) == ((1, 2), (0, 7))
    assert len(chosen_heads(pocket, None)) == 48 and len(chosen_heads(pocket, effects, 99)) == 48
    for wrong, said in (
        ("L1", "heads have 'L1', expected a layer and a head such as 'L20H5'"),
        ("L6H0", "heads have L6H0 among them, expected one or more different heads of 6 layers and 8 heads"),
        (["L1H1", (1, 1)], "heads have one of them twice"),
        ([], "heads have none of them"),
    ):
        with pytest.raises(ValueError, match=said):
            head_attention(pocket, ivlens.load_task("antonym"), wrong)


def test_effects_bring_their_recipe(llama):
    recipe = PromptRecipe("qa", instruction="Say it.", n_shots=2, seed=5)
    quick = ivlens.EffectOptions(n_mean_prompts=4, n_check_prompts=0)
    effects = head_effects(llama, TASK, recipe=recipe, n_prompts=4, corruption="drop", options=quick)
    iv = ivlens.InstructionVector.from_effects(effects, k=2)
    few = AttentionOptions(k=2, n_kept=0, scores=None)
    for heads in (effects, iv):
        found = head_attention(llama, TASK, heads, n_prompts=2, options=few)
        assert found.recipe == recipe and list(found.heads) == effects.top_heads(2)
        other = head_attention(llama, tiny_task("synonym", "Give a synonym.", 2), heads, n_prompts=2, options=few)
        assert other.recipe == replace(recipe, instruction=ivlens.prompts.TASK)
    given = head_attention(llama, TASK, effects, recipe=PromptRecipe(), n_prompts=2, options=few)
    assert given.recipe.resolved(TASK) == PromptRecipe().resolved(TASK)
    with pytest.raises(ValueError, match="prompt is 0, expected a number below 0"):
        given.tokens(effects.top_heads(1)[0])


def test_attention_without_weights_is_refused(new_model, byte_level):
    model = new_model("opt", byte_level, n_ctx=256)
    model.original_model.set_attn_implementation("sdpa")
    for call in (lambda: head_attention(model, TASK, n_prompts=2, options=ALL), lambda: head_scores(model)):
        with pytest.raises(
            ValueError, match="attention in layer 0 gives no weights, expected eager attention; call model"
        ):
            call()
    model.original_model.set_attn_implementation("eager")
    head_attention(model, TASK, n_prompts=2, options=ALL)


def test_nothing_is_measured_while_steered(llama):
    quick = ivlens.EffectOptions(n_mean_prompts=4, n_check_prompts=0)
    effects = head_effects(llama, TASK, n_prompts=4, corruption="drop", options=quick)
    iv = ivlens.InstructionVector.from_effects(effects, k=2)
    found = head_attention(llama, TASK, [(0, 0)], n_prompts=2, options=ALL)
    with ivlens.steer(llama, iv, layer=1):
        for call in (lambda: head_attention(llama, TASK), lambda: head_scores(llama), lambda: found.pattern((0, 0))):
            with pytest.raises(RuntimeError, match="steer context"):
                call()
        llama(torch.tensor([[5, 6]]))  # a context that no pass reaches is an error


def test_a_tokenizer_is_needed(new_model):
    with pytest.raises(TypeError, match="tokenizer is NoneType"):
        head_attention(new_model("llama"), TASK)


@pytest.mark.real
def test_known_heads_of_a_real_model(smollm2):
    scores = head_scores(smollm2)
    assert scores.of((18, 6))[0] > 0.85 and scores.of((20, 5))[0] < 0.2 and scores.of((16, 0))[1] > 0.8
    assert len(scores.induction_heads(0.4)) == 8
    options = AttentionOptions(scores=scores)
    recipe = PromptRecipe("qa", instruction=None, n_shots=5)
    found = head_attention(smollm2, ivlens.load_task("third_person"), "L20H5,L18H6", recipe=recipe, options=options)
    for kind in ("clean", "shuffle"):
        assert found.share("L20H5", "answers", kind)[1] > 0.9
    assert isinstance(found.table(), pd.DataFrame)


def test_what_was_saved_comes_back_with_its_tokens_scores_and_model(antonym, pocket, tmp_path):
    path = antonym.save(tmp_path / "a.safetensors")
    assert path.read_bytes() == antonym.save(tmp_path / "b.safetensors").read_bytes()
    back = HeadAttention.load(path, pocket)
    assert (back.heads, back.task, back.model, back.recipe) == (
        antonym.heads, antonym.task, antonym.model, antonym.recipe
    )  # fmt: skip
    assert back.prompts == antonym.prompts == ("clean", "shuffle")
    pd.testing.assert_frame_equal(back.frame(), antonym.frame())
    pd.testing.assert_frame_equal(back.tokens("L2H1", 3, "shuffle"), antonym.tokens("L2H1", 3, "shuffle"))
    assert torch.equal(back.pattern("L2H1"), antonym.pattern("L2H1"))
    assert back.scores is not None and torch.equal(back.scores.induction, antonym.scores.induction)
    with pytest.raises(ValueError, match="pattern needs the model"):
        HeadAttention.load(path).pattern("L2H1")
    bare = HeadAttention.load(replace(antonym, scores=None).save(tmp_path / "c.safetensors"))
    assert bare.scores is None and bare.frame()["induction"].isna().all()


def test_attention_of_another_model_is_refused(antonym, new_model, byte_level, tmp_path):
    path = antonym.save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="holds attention of .*, expected this model, which has"):
        HeadAttention.load(path, new_model("llama", byte_level, n_ctx=64))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: {"shares": one.shares[:, :-1]}, r"shares.0 is \(8, 47, 7\) in torch.float32, not \(8, 48, 7\)"),
        (lambda one: {"shares": one.shares.half()}, "in torch.float16"),
        (lambda one: {"inputs": one.inputs[1:]}, r"not \(7, 48, 7\)"),
        (lambda one: {"shown": (replace(one.shown[0], texts=("a",)),)}, "do not belong together"),
        (lambda one: {"shown": (replace(one.shown[0], segments=("query",)),)}, "do not belong together"),
        (lambda one: {"shown": one.shown * 2}, "shows 16 of 8 prompts"),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused(antonym, tmp_path, change, said):
    clean = antonym.looked["clean"]
    broken = replace(antonym, looked={"clean": replace(clean, **change(clean))})
    with pytest.raises(ValueError, match=said):
        HeadAttention.load(broken.save(tmp_path / "broken.safetensors"))


def test_other_files_are_no_attention(antonym, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected one written by HeadAttention.save"):
        HeadAttention.load(tmp_path / "none")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="expected a file written by HeadAttention.save"):
        HeadAttention.load(tmp_path / "text")
    with pytest.raises(ValueError, match="names no heads, or heads that the model does not have"):
        HeadAttention.load(replace(antonym, heads=((99, 0),) * 48).save(tmp_path / "x"))
