"""Inside a pass: the lens ends at the model's own output, patched places end at the clean score."""

import pytest
import torch
from conftest import hf_model, tiny_task
from families import CONFIGS

import ivlens
from ivlens import PromptRecipe, Setting, logit_lens, patch_places
from ivlens.analysis.inside import LensOptions, PlaceOptions
from ivlens.forward.hooks import captured_residual
from ivlens.prompts.segments import place_tokens
from ivlens.vectors import InstructionVector

TASK = tiny_task()
TEXTS = ["Input: big\nOutput:", "Input: a much longer one, red\nOutput:"]
# a scale or a softcap behind the unembedding, norms with a bias, tied and untied matrices
FEW = ("gpt2", "llama", "gemma2", "cohere", "granite", "opt")
# GPT-1 gives its blocks no output that a hook could read
REST = [pytest.param(family, marks=pytest.mark.slow) for family in CONFIGS if family not in (*FEW, "openai_gpt")]


@pytest.fixture(scope="module")
def pocket():
    return ivlens.load_model("pocket")


@pytest.fixture(scope="module")
def vector(pocket):
    return InstructionVector.from_effects(ivlens.head_effects(pocket, ivlens.load_task("antonym"), n_prompts=8), 5)


@pytest.mark.parametrize("family", [family for family in FEW if family in CONFIGS] + REST)
def test_the_last_layer_is_the_models_own_output(new_model, byte_level, family):
    model = new_model(family, byte_level, n_ctx=256)
    lens = logit_lens(model, TEXTS, options=LensOptions(k=3, follow=[" small", " red"]))
    for number, text in enumerate(TEXTS):
        ids = torch.tensor([byte_level(text)["input_ids"]])
        with torch.no_grad():
            want = hf_model(family, n_ctx=256)(ids).logits[0, -1].float().softmax(-1)
        torch.testing.assert_close(lens.probs[0, number, -1], want.topk(3).values, atol=2e-5, rtol=1e-3)
        first = byte_level(" small")["input_ids"][0]
        assert float(lens.followed_probs[0, number, -1, 0]) == pytest.approx(float(want[first]), abs=1e-5)
        assert int(lens.followed_ranks[0, number, -1, 0]) == int((want > want[first]).sum()) + 1
    assert float(lens.kl[..., -1].abs().max()) < 1e-5 and bool((lens.kl[..., 0] > 1e-4).all())


def test_every_layer_is_read_by_hand(pocket, vector):
    at = Setting(1, 4.0, "attn_out")
    lens = logit_lens(pocket, TEXTS[0], vector, at=at, options=LensOptions(k=4, follow=[" small"]))
    assert lens.runs == ("plain", "patched") and lens.probs.shape == (2, 1, 6, 4)
    ids = torch.tensor([pocket.tokenizer(TEXTS[0])["input_ids"]])
    for number, run in enumerate(lens.runs):
        with torch.no_grad():
            if run == "plain":
                with captured_residual(pocket, range(6)) as kept:
                    pocket(ids)
            else:
                with ivlens.steer(pocket, vector, at=at), captured_residual(pocket, range(6)) as kept:
                    pocket(ids)
            for layer in range(6):
                by_hand = pocket.unembed(pocket.ln_final(kept[layer][:, -1:]))[0, 0].softmax(-1)
                torch.testing.assert_close(lens.probs[number, 0, layer], by_hand.topk(4).values, atol=1e-5, rtol=1e-4)
                entropy = -(by_hand * by_hand.log()).nan_to_num(0).sum()
                assert float(lens.entropy[number, 0, layer]) == pytest.approx(float(entropy), abs=1e-4)
    assert torch.equal(lens.probs[0, 0, 0], lens.probs[1, 0, 0]), "the vector comes in at layer 1"
    assert lens.tokens[1][0][-1][0].strip() == "small" != lens.tokens[0][0][-1][0].strip()
    frame, followed, table = lens.frame(), lens.followed_frame(), lens.table()
    assert len(frame) == 2 * 6 * 4 and len(followed) == 2 * 6 and list(table["layer"]) == [5, 4, 3, 2, 1, 0]
    assert followed.query("run == 'patched' and layer == 5")["rank"].item() == 1
    assert str(lens).splitlines()[1].split()[0] == "5" and "<table" in lens._repr_html_()


def test_the_figure_shows_followed_texts_layer_by_layer(pocket, vector):
    lens = logit_lens(
        pocket, TEXTS, vector, at=Setting(1, 4.0, "attn_out"), options=LensOptions(k=1, follow=[" small", " red"])
    )
    figure = lens.plot(prompt=1)
    lines = [trace for trace in figure.data if trace.x[0] is not None]
    assert [trace.name for trace in lines] == ["plain", "with the vector"] * 2
    assert list(lines[3].y) == pytest.approx(lens.followed_probs[1, 1, :, 1].tolist())
    assert [shape.x0 for shape in figure.layout.shapes] == [1, 1], "the vector's layer, in both panels"
    assert [one.text for one in figure.layout.annotations] == ["“small”", "“red”"]
    alone = logit_lens(pocket, TEXTS[0], options=LensOptions(follow=[" small"])).plot()
    assert [trace.name for trace in alone.data] == ["plain"] and not alone.layout.shapes
    with pytest.raises(ValueError, match="followed no text"):
        logit_lens(pocket, TEXTS[0]).plot()
    with pytest.raises(ValueError, match="prompt is 2, expected 0 to 1"):
        lens.plot(2)


def test_batches_change_nothing(pocket):
    texts = [f"Input: {word}\nOutput:" for word in ("big", "hot", "sad", "old", "dark")]
    whole, parts = (logit_lens(pocket, texts, options=LensOptions(batch_size=n)) for n in (8, 2))
    torch.testing.assert_close(whole.probs, parts.probs, atol=1e-5, rtol=1e-4)
    assert whole.tokens == parts.tokens


def test_what_the_lens_refuses(pocket, vector):
    with pytest.raises(ValueError, match="expected a vector with its setting, or neither"):
        logit_lens(pocket, "big", vector)
    with pytest.raises(ValueError, match="no prompts"):
        logit_lens(pocket, [])
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        logit_lens(pocket, ["big", ""])
    with pytest.raises(ValueError, match="follow has an empty text"):
        logit_lens(pocket, "big", options=LensOptions(follow=[""]))
    handle = pocket.unembed.register_forward_hook(lambda part, given, out: out + out.shape[1])
    other = pocket.ln_final.register_forward_hook(lambda part, given, out: out * (1 + (out.shape[1] > 1)))
    with pytest.raises(ValueError, match="misses the model's own output"):
        logit_lens(pocket, TEXTS[0])
    handle.remove(), other.remove()
    with ivlens.steer(pocket, vector, layer=1), pytest.raises(RuntimeError, match="steer context"):
        try:
            logit_lens(pocket, "big")
        finally:
            pocket(torch.tensor([[5, 6]]))


def test_the_last_place_of_the_last_layer_gives_the_clean_score(pocket):
    task, recipe = ivlens.load_task("antonym"), PromptRecipe(n_shots=3, instruction=None)
    found = patch_places(pocket, task, layers=[0, 5], heads=["L3H4"], recipe=recipe, n_prompts=6)
    demos = [f"{what} {number}" for number in (1, 2, 3) for what in ("input", "answer")]
    assert found.places == (*demos, "query", "last") and found.targets == ("resid 0", "resid 5", "L3H4")
    taken = found.clean_scores - found.base_scores
    torch.testing.assert_close(found.effects[:, 1, -1], taken, atol=1e-4, rtol=1e-4)
    assert float(found.effects[:, 1, :-1].abs().max()) < 1e-5, "after the last block only the last token is read"
    assert float(found.effects[:, 0, :-2].abs().max()) > 1e-3, "answers of demonstrations reach the last token later"
    frame = found.frame()
    assert len(frame) == 3 * 8 and frame["taken"].iloc[0] == pytest.approx(float(taken.mean()))
    assert str(found).splitlines()[0].split()[-1] == "last" and "<table" in found._repr_html_()


def test_places_are_patched_as_by_hand(pocket):
    task, recipe = ivlens.load_task("antonym"), PromptRecipe(n_shots=2)
    found = patch_places(pocket, task, layers=[2], heads=[(1, 3)], recipe=recipe, n_prompts=3)
    from ivlens.effects.plan import Plan
    from ivlens.forward.hooks import added, captured_heads, patched_heads

    plan = Plan.of(task, recipe, None, None)
    row = 1
    pair = plan.pairs(pocket, [task.find(found.inputs[row])], "prob")
    ends = [place_tokens(pocket.tokenizer, task, plan.recipe, batch)[0] for batch in pair]
    answer = int(pair.clean.answer_tokens[0, 0])
    with torch.no_grad(), captured_residual(pocket, [2]) as streams, captured_heads(pocket, [1]) as z:
        pocket(pair.clean.tokens)
    for number, place in enumerate(found.places):
        there, here = ends[0][place], ends[1][place]

        def stream(h, there=there, here=here):
            h = h.clone()
            h[0, there] = streams[2][0, here]
            return h

        def one(each, layer, there=there, here=here):
            each = each.clone()
            each[0, there, 3] = z[1][0, here, 3]
            return each

        for target, context in ((0, added(pocket, 2, "resid_post", stream)), (1, patched_heads(pocket, one, [1]))):
            with torch.no_grad(), context:
                score = pocket(pair.corrupted.tokens)[0, -1].softmax(-1)[answer]
            want = float(score) - float(found.base_scores[row])
            assert float(found.effects[row, target, number]) == pytest.approx(want, abs=1e-5), place


@pytest.mark.parametrize("template", ["plain", "qa", "after"])
def test_places_end_where_the_texts_end(pocket, template):
    task, recipe = ivlens.load_task("antonym"), PromptRecipe(template, n_shots=2)
    batch = ivlens.build_prompts(pocket.tokenizer, task, task.split("select")[:3], recipe)
    for number, ends in enumerate(place_tokens(pocket.tokenizer, task, recipe, batch)):
        ids = batch.tokens[number][batch.attention_mask[number] == 1]
        (x1, y1), (x2, y2) = batch.shots[number]
        texts = {"instruction": batch.instructions[number], "input 1": x1, "answer 1": y1, "input 2": x2}
        texts |= {"answer 2": y2, "query": batch.examples[number].input}
        for place, text in texts.items():
            assert pocket.tokenizer.decode(ids[: ends[place] + 1]).rstrip().endswith(text), (place, text)
        assert ends["last"] == len(ids) - 1


def test_a_corruption_that_takes_nothing_away_has_no_effect(pocket):
    task = ivlens.load_task("antonym")
    found = patch_places(pocket, task, layers=[1], n_prompts=3, options=PlaceOptions(corruption="none"))
    assert float(found.effects.abs().max()) < 1e-5 and torch.equal(found.base_scores, found.clean_scores)


def test_passes_of_one_row_change_nothing(pocket):
    task, calls = ivlens.load_task("antonym"), []
    whole = patch_places(pocket, task, layers=[1, 3], n_prompts=4)
    options = PlaceOptions(batch_size=1, progress=lambda done, total: calls.append((done, total)))
    parts = patch_places(pocket, task, layers=[1, 3], n_prompts=4, options=options)
    torch.testing.assert_close(whole.effects, parts.effects, atol=1e-5, rtol=1e-4)
    assert calls[-1] == (2 * 4 * len(whole.places),) * 2 and len(calls) == calls[-1][0]


def test_what_places_refuse(pocket):
    task = ivlens.load_task("antonym")
    with pytest.raises(ValueError, match="layer 6 does not exist"):
        patch_places(pocket, task, layers=[6])
    with pytest.raises(ValueError, match="heads have L9H9 among them"):
        patch_places(pocket, task, heads=["L9H9"])
    with pytest.raises(ValueError, match="something to patch"):
        patch_places(pocket, task, layers=[])
    with pytest.raises(ValueError, match="n_prompts is 0"):
        patch_places(pocket, task, n_prompts=0)
