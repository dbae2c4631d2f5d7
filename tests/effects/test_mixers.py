"""Heads of recurrent mixers: measured as attention's are, in every engine, and part of vectors."""

import pytest
import torch
from conftest import tiny_task
from families import hf_model
from test_parity import NOT_EXACT, SMALLEST_EFFECT, check_equal, request_on

import ivlens
from ivlens.effects.engines import run_engine
from ivlens.effects.measure import EffectOptions
from ivlens.effects.reference import patched_logits
from ivlens.effects.request import PatchOptions, make_request
from ivlens.forward.hooks import captured_heads
from ivlens.forward.means import head_means, mean_head_outputs
from ivlens.forward.writes import mixer_factors
from ivlens.models import load_model
from ivlens.models.mixers import column_matrices, columns, existing, head_label
from ivlens.tuning.training.sites import Sites
from ivlens.vectors.heads import head_writes

# the name of the mixer in each family's layers, its output projection, and the multiplier behind it
MIXERS = {
    "qwen3_5": ("linear_attn.out_proj", 1.0),
    "falcon_h1": ("mamba.out_proj", 0.6),
    "nemotron_h": ("mixer.out_proj", 1.0),
    "granite_hybrid": ("mamba.out_proj", 0.3),
    "olmo_hybrid": ("linear_attn.o_proj", 1.0),
    "qwen3_next": ("linear_attn.out_proj", 1.0),
    "bamba": ("mamba.out_proj", 1.0),
    "qwen3_5_moe": ("linear_attn.out_proj", 1.0),
    "granite_hybrid_dense": ("mamba.out_proj", 0.3),
    "zamba2": ("mamba.out_proj", 1.0),
}
OFTEN = ("qwen3_5", "falcon_h1", "nemotron_h")
FAMILIES = [pytest.param(name, marks=() if name in OFTEN else pytest.mark.families, id=name) for name in MIXERS]
TASK = tiny_task()


@pytest.fixture(scope="module")
def bridges():
    made = {}
    return lambda family: made.setdefault(family, load_model(hf_model=hf_model(family)))


@pytest.fixture(scope="module")
def measured(byte_level):
    model = load_model(hf_model=hf_model("falcon_h1", n_ctx=512), tokenizer=byte_level)
    options = EffectOptions(n_mean_prompts=6, mixer="all", contrast=True)
    return ivlens.head_effects(model, TASK, n_prompts=4, options=options), model


def wide_request(model):
    request, what = request_on(model), columns(model)
    mean_z = 6 * torch.randn(model.cfg.n_layers, what.n, what.width, generator=torch.Generator().manual_seed(3))
    options = PatchOptions(score="logprob")
    return make_request(model, request.tokens, request.attention_mask, request.answers, mean_z, options=options)


def projection_of(plain, family, layer):
    layers = plain.get_submodule("model.layers")
    return layers[layer].get_submodule(MIXERS[family][0])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_engine_gives_what_the_reference_gives(bridges, family):
    model = bridges(family)
    request = wide_request(model)
    want = run_engine(model, request, "reference")
    assert torch.equal(~want.cie[0].isnan(), existing(model))
    for method in ("cached",) if family in NOT_EXACT else ("exact", "cached"):
        found = run_engine(model, request, method)
        assert found.method == method
        check_equal(found.cie, want.cie)
    assert want.cie[:, :, model.cfg.n_heads :].nan_to_num(0.0).abs().max() >= SMALLEST_EFFECT
    estimated = run_engine(model, request, "attribution").cie
    assert torch.equal(estimated.isnan(), want.cie.isnan())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_gives_what_plain_hooks_on_the_unwrapped_model_give(bridges, family):
    model = bridges(family)
    request, n_heads = wide_request(model), model.cfg.n_heads
    want = patched_logits(model, request, torch.arange(3), 0, n_heads + 2)
    plain = hf_model(family)
    width = projection_of(plain, family, 0).in_features // columns(model).n_mixer
    for row, length in enumerate((9, 4, 7)):
        answers = request.answers[row][request.answers[row] != -100]
        tokens = torch.cat([request.tokens[row, -length:], answers[:-1]])[None]

        def patch(module, given, length=length):
            z = given[0].clone().unflatten(-1, (-1, width))
            z[:, length - 1, 2] = request.mean_z[0, n_heads + 2, :width]
            return (z.flatten(-2), *given[1:])

        handle = projection_of(plain, family, 0).register_forward_pre_hook(patch)
        with torch.no_grad():
            got = plain(tokens, use_cache=False).logits[0, length - 1 :]
        handle.remove()
        torch.testing.assert_close(got, want[row, : len(answers)], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_writes_are_what_the_plain_mixer_adds(bridges, family):
    model, plain, multiplier = bridges(family), hf_model(family), MIXERS[family][1]
    assert mixer_factors(model)[0] == pytest.approx(multiplier, abs=1e-6)
    kept = {}
    projection_of(plain, family, 0).register_forward_hook(lambda module, given, out: kept.update(out=out, z=given[0]))
    tokens = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad():
        plain(tokens, use_cache=False)
    means = head_means(model, tokens, torch.ones_like(tokens), mixer="all")
    what, n_heads = columns(model), model.cfg.n_heads
    own = means.mean_z[0, n_heads:]
    torch.testing.assert_close(own[:, : kept["z"].shape[-1] // what.n_mixer].flatten(), kept["z"][0, -1])
    if family == "zamba2":  # what its attention adds is no fixed multiple of what the heads write
        with pytest.raises(ValueError, match="what a head of layer 1 writes is not defined in Zamba2ForCausalLM"):
            head_writes(model, means.mean_z, means.write_scale)
        return
    written = head_writes(model, means.mean_z, means.write_scale)
    torch.testing.assert_close(written[0, n_heads:].sum(0), kept["out"][0, -1] * multiplier, atol=1e-4, rtol=1e-4)
    assert torch.equal(written.isnan().all(-1), ~existing(model))
    assert column_matrices(model, 0).shape == (what.n, what.width, 32)


def test_attention_is_where_it_was(bridges):
    model = bridges("falcon_h1")
    tokens = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad(), captured_heads(model) as z, captured_heads(model, mixers=True) as wide:
        model(tokens, use_cache=False)
    for layer in range(3):
        torch.testing.assert_close(wide[layer][:, :, :4, :12], z[layer])
        assert wide[layer].shape == (1, 4, 10, 12) and wide[layer][:, :, 4:, :8].abs().sum() > 0
        assert not wide[layer][:, :, 4:, 8:].any()
    alone = mean_head_outputs(model, tokens, torch.ones_like(tokens))
    both = mean_head_outputs(model, tokens, torch.ones_like(tokens), mixer="all")
    torch.testing.assert_close(both[:, :4], alone)


def test_labels_and_tables(measured):
    effects, model = measured
    assert effects.cie.shape[1:] == (3, 10) and effects.settings["mixer"] == "all"
    assert head_label(3, 9, 4) == "L3M5" and head_label(3, 3, 4) == "L3H3"
    labels = set(effects.to_frame()["label"])
    assert {"L0H3", "L0M0", "L2M5"} <= labels and len(labels) == 30
    assert "M" in str(ivlens.compare_heads(effects, effects, k=30))
    assert effects.plot().layout.xaxis.title.text == "head of attention | of the mixer"


def test_vectors_of_mixers_heads(measured, tmp_path):
    effects, model = measured
    heads = [(0, 5), (1, 1), (2, 9)]
    iv = ivlens.InstructionVector.from_effects(effects, heads=heads)
    assert "L0M1, L1H1, L2M5" in repr(iv)
    writes = head_writes(model, effects.mean_z, effects.write_scale)
    torch.testing.assert_close(iv.theta, sum(writes[head] for head in heads))
    again = ivlens.InstructionVector.load(iv.save(tmp_path / "iv"), model)
    assert again.heads == iv.heads and torch.equal(again.head_means, iv.head_means)
    effects_again = ivlens.HeadEffects.load(effects.save(tmp_path / "effects"), model)
    torch.testing.assert_close(effects_again.cie, effects.cie, atol=0, rtol=0)
    alone = ivlens.InstructionVector.from_effects(effects, heads=[(0, 1)])
    assert alone.head_means.shape == (1, 12)
    with ivlens.steer(model, iv, mode="heads"), captured_heads(model, mixers=True, select=lambda z: z[:, -1]) as z:
        model(torch.tensor([[5, 9, 30, 7]]), use_cache=False)
    for (layer, head), mean in zip(heads, iv.head_means, strict=True):
        torch.testing.assert_close(z[layer][0, head], mean)


def test_a_vector_of_mixers_heads_is_judged(measured):
    effects, model = measured
    iv = ivlens.InstructionVector.from_effects(effects, heads=[(0, 5), (1, 1)])
    found = ivlens.evaluate_intervention(model, TASK, iv, n_prompts=4)
    assert {"iv", "iv_heads", "random_heads"} <= set(found.table["condition"])
    assert ivlens.measure_again(effects, TASK, heads=[(0, 5), (2, 0)]).again.cie.shape[1] == 2


def test_what_has_no_such_heads_says_so(bridges, measured):
    effects, model = measured
    with pytest.raises(ValueError, match="mixer is 'all', but no layer of Lfm2ForCausalLM has a mixer with heads"):
        mean_head_outputs(load_model(hf_model=hf_model("lfm2")), *[torch.ones(1, 3, dtype=torch.long)] * 2, mixer="all")
    with pytest.raises(ValueError, match="mixer is 'all', but no layer of LlamaForCausalLM"):
        columns(llama := load_model(hf_model=hf_model("llama")))
        mean_head_outputs(llama, *[torch.ones(1, 3, dtype=torch.long)] * 2, mixer="all")
    iv = ivlens.InstructionVector.from_effects(effects, heads=[(0, 5)])
    with pytest.raises(ValueError, match="heads have L0M1 among them, expected one or more different heads"):
        ivlens.head_attention(model, TASK, iv)


def test_mixers_of_several_shapes_leave_attention_as_it_is():
    model = load_model(hf_model=hf_model("qwen3_5"))
    # as if this layer had two heads
    model.blocks[2].linear_attn.original_component.A_log = torch.nn.Parameter(torch.zeros(2))
    assert columns(model).n_mixer == 0 and columns(model).n == 4
    with pytest.raises(ValueError, match="have heads of several numbers and widths"):
        mean_head_outputs(model, *[torch.ones(1, 3, dtype=torch.long)] * 2, mixer="all")
    assert existing(model)[1].all() and not existing(model)[[0, 2]].any()


def test_training_holds_attention_heads_alone(bridges):
    with pytest.raises(ValueError, match="heads L0M1 do not exist: the model has 4 in a layer"):
        Sites(bridges("falcon_h1")).check_heads([(0, 5)])
