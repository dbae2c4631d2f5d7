"""The vector is the sum it claims to be, keeps its provenance through a file, and refuses what it does not fit."""

import json
import pickle
import weakref
from dataclasses import replace

import pytest
import torch
from conftest import hf_model, random_prompts, tiny_task
from safetensors.torch import save_file

from ivlens.effects import EffectOptions, HeadEffects, head_effects
from ivlens.forward.hooks import captured_residual, output_projection
from ivlens.forward.means import mean_head_outputs, mean_write_scale
from ivlens.models import load_model, model_identity
from ivlens.prompts import PromptRecipe
from ivlens.vectors import InstructionVector
from ivlens.vectors.decode import top_tokens
from ivlens.vectors.vector import base_task, check_belongs


def effects_of(model, *, seed=0, task="antonym", n=4, **more):
    """Effects that were not measured: random values in the right shapes."""
    draw = torch.Generator().manual_seed(seed)
    cfg = model.cfg
    heads = (cfg.n_layers, cfg.n_heads)
    values = {
        "cie": torch.randn(n, *heads, generator=draw),
        "mean_z": torch.randn(*heads, cfg.d_head, generator=draw),
        "mean_z_corrupted": torch.randn(*heads, cfg.d_head, generator=draw),
        "write_scale": torch.ones(cfg.n_layers, cfg.d_model),
        "base_scores": torch.zeros(n),
        "corruptions": ("drop",) * n,
        "inputs": tuple("abcdefgh"[:n]),
        "task": task,
        "model": model_identity(model),
        "settings": {"score": "prob", "seed": 0, "split": "fit", "n_prompts": n, "versions": {"torch": "2"}},
        "model_ref": weakref.ref(model),
    }
    return HeadEffects(**values | more)


@pytest.fixture
def effects(llama):
    return effects_of(llama)


@pytest.fixture
def iv(effects):
    return InstructionVector.from_effects(effects, k=3)


def test_theta_is_the_sum_of_head_means_through_their_projection_without_the_bias(model):
    effects = effects_of(model)
    vector = InstructionVector.from_effects(effects, k=5)
    w_o = output_projection(model)
    by_hand = sum(effects.mean_z[layer, head] @ w_o[layer, head] for layer, head in effects.top_heads(5))
    torch.testing.assert_close(vector.theta, by_hand, atol=1e-5, rtol=1e-5)
    assert list(vector.heads) == effects.top_heads(5)
    assert torch.equal(vector.head_means, torch.stack([effects.mean_z[head] for head in vector.heads]))


def test_contrast_subtracts_the_same_heads_under_corrupted_prompts(effects, iv):
    other = InstructionVector.from_effects(replace(effects, mean_z=effects.mean_z_corrupted), k=3)
    contrast = InstructionVector.from_effects(effects, k=3, contrast=True)
    torch.testing.assert_close(contrast.theta, iv.theta - other.theta)
    assert contrast.settings["contrast"] is True and torch.equal(contrast.head_means, iv.head_means)


@pytest.mark.parametrize("family", ["gemma2", "olmo2", "granite"])
def test_on_post_norm_families_all_heads_of_a_layer_sum_to_what_attention_adds(new_model, family):
    """One prompt, so that the mean scale of the norm is its scale."""
    bridge = new_model(family)
    tokens, mask = random_prompts((6,))
    effects = effects_of(
        bridge,
        cie=torch.zeros(1, 3, 4).index_fill(1, torch.tensor([1]), 1.0),
        base_scores=torch.zeros(1),
        corruptions=("drop",),
        inputs=("a",),
        mean_z=mean_head_outputs(bridge, tokens, mask),
        write_scale=mean_write_scale(bridge, tokens, mask),
    )
    vector = InstructionVector.from_effects(effects, k=4)
    with captured_residual(bridge, 1, "attn_out") as kept, torch.no_grad():
        bridge(tokens)
    torch.testing.assert_close(vector.theta, kept[1][0, -1], atol=1e-4, rtol=1e-3)
    assert vector.settings["write_scaled"] is True


def test_universal_heads_come_from_the_average_over_tasks(llama, effects):
    others = [effects_of(llama, seed=seed, task=f"task {seed}") for seed in (0, 1, 2)]
    vector = InstructionVector.from_effects(effects, k=4, universal=others)
    mean = torch.stack([other.aie for other in others]).mean(0)
    assert list(vector.heads) == [divmod(at, 4) for at in mean.flatten().topk(4).indices.tolist()]
    assert [at["task"] for at in vector.settings["universal"]] == ["task 0", "task 1", "task 2"]
    assert vector.settings["universal"][2]["effects"]["split"] == "fit"
    for name, value in (("seed", 1), ("score", "logprob"), ("mode", "add")):
        other = replace(effects, settings={**effects.settings, name: value})
        with pytest.raises(ValueError, match=f"with {name} {value!r}"):
            InstructionVector.from_effects(effects, k=4, universal=[effects, other])
    with pytest.raises(TypeError):
        InstructionVector.from_effects(effects, k=4, universal=True)


@pytest.mark.parametrize("k", [0, -1, 13])
def test_a_k_that_does_not_fit_is_refused(effects, k):
    with pytest.raises(ValueError, match="expected 1 to 12"):
        InstructionVector.from_effects(effects, k=k)


def test_only_measured_heads_are_chosen(effects):
    cie = effects.cie.clone()
    cie[:, 1:] = float("nan")
    vector = InstructionVector.from_effects(replace(effects, cie=cie), k=4)
    assert {layer for layer, _ in vector.heads} == {0}
    with pytest.raises(ValueError, match="expected 1 to 4"):
        InstructionVector.from_effects(replace(effects, cie=cie), k=5)


def test_without_a_live_model_it_must_be_given(new_model, tmp_path):
    bridge = new_model("llama")
    effects = effects_of(bridge)
    loaded = HeadEffects.load(effects.save(tmp_path / "effects.safetensors"))
    with pytest.raises(ValueError, match=r"from_effects\(effects, k, model=model\)"):
        InstructionVector.from_effects(loaded, k=3)
    again = InstructionVector.from_effects(loaded, k=3, model=bridge)
    assert torch.equal(again.theta, InstructionVector.from_effects(effects, k=3).theta)


def test_another_model_than_the_measured_one_is_refused(new_model, effects):
    with pytest.raises(ValueError, match=r"\(weights [0-9a-f]{12}\), on which .* measure them again"):
        InstructionVector.from_effects(effects, k=3, model=new_model("llama", seed=1))
    with pytest.raises(ValueError, match="measured on other weights"):
        InstructionVector.from_effects(effects, k=3, universal=[effects, effects_of(new_model("llama", seed=1))])


def test_from_measured_effects(llama):
    effects = head_effects(llama, tiny_task(), n_prompts=3, corruption="drop", options=EffectOptions(n_mean_prompts=4))
    vector = InstructionVector.from_effects(effects, k=2)
    assert vector.settings["corruptions"] == {"drop": 3}
    assert vector.recipe == effects.recipe == PromptRecipe(n_shots=0)
    assert vector.settings["effects"]["versions"]["torch"]
    assert (2 * vector).recipe == (vector - vector.random_like(0)).recipe == effects.recipe
    with pytest.raises(ValueError, match=r"EffectOptions\(contrast=True\)"):
        InstructionVector.from_effects(effects, k=2, contrast=True)


def test_arithmetic_and_cosine(llama, effects, iv):
    other = InstructionVector.from_effects(effects_of(llama, seed=1, task="synonym"), k=3)
    torch.testing.assert_close((iv + other).theta, iv.theta + other.theta)
    torch.testing.assert_close((iv - other).theta, iv.theta - other.theta)
    torch.testing.assert_close((2 * iv).theta, (iv * 2).theta)
    assert (iv - (iv + other)).task == "antonym - (antonym + synonym)"
    assert torch.equal((-iv).theta, -iv.theta) and (iv + other).heads == ()
    assert [term["task"] for term in (iv + other).settings["operands"]] == ["antonym", "synonym"]
    assert iv.cosine(iv) == pytest.approx(1) and iv.cosine(-2 * iv) == pytest.approx(-1)
    assert iv.cosine(other) == pytest.approx(float(torch.cosine_similarity(iv.theta, other.theta, dim=0)))
    assert iv.cosine(iv.theta) == pytest.approx(1)
    with pytest.raises(ValueError, match="length 0"):
        iv.cosine(0 * iv)
    with pytest.raises(TypeError):
        iv * "2"


def test_a_scaled_vector_keeps_its_heads_and_its_provenance(iv):
    scaled = -2 * (3 * iv)
    assert scaled.heads == iv.heads and torch.equal(scaled.head_means, -6 * iv.head_means)
    assert scaled.settings["factor"] == -6 and base_task(scaled) == "antonym"
    assert scaled.settings["effects"] == iv.settings["effects"] and scaled.task == "-2 * (3 * antonym)"


def test_vectors_of_two_widths_do_not_mix(iv):
    wide = replace(iv, theta=torch.randn(64))
    with pytest.raises(ValueError, match="expected the same d_model"):
        iv + wide
    with pytest.raises(ValueError, match="expected the same d_model"):
        iv.cosine(wide)


def test_random_like_has_the_norm_and_depends_on_the_seed_only(iv):
    one, again, other = iv.random_like(1), iv.random_like(1), iv.random_like(2)
    assert torch.equal(one.theta, again.theta) and not torch.allclose(one.theta, other.theta)
    assert one.norm == pytest.approx(iv.norm, rel=1e-6) and abs(one.cosine(iv)) < 0.9


def test_nan_is_refused(iv):
    with pytest.raises(ValueError, match="NaN or infinite"):
        replace(iv, theta=iv.theta * float("nan"))
    with pytest.raises(ValueError, match="one mean per head"):
        replace(iv, heads=())


def test_decode_names_the_token_the_vector_points_to(llama, iv):
    unembedding = llama.original_model.lm_head.weight.detach()
    planted = replace(iv, theta=unembedding[42].clone() / llama.original_model.model.norm.weight.detach())
    top = planted.decode(k=5)
    assert len(top) == 5 and top[0][0] == llama.tokenizer.decode([42])
    assert [value for _, value in top] == sorted((value for _, value in top), reverse=True)
    assert planted.decode(llama, k=5) == top


def test_decode_rounds_no_logits_in_half_precision(byte_level):
    bridge = load_model(hf_model=hf_model("llama"), tokenizer=byte_level, dtype="bfloat16")
    theta = torch.randn(bridge.cfg.d_model, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stream = bridge.ln_final(theta.bfloat16()[None, None])[0, 0]
    want = bridge.original_model.lm_head.weight.detach().float() @ stream.float()
    found = [value for _, value in top_tokens(theta, bridge, 9)]
    assert found == pytest.approx(want.topk(9).values.tolist(), rel=1e-5)
    assert found != [float(torch.tensor(value).bfloat16()) for value in found]


def test_decode_shows_the_space_of_a_piece_and_bytes_by_name(new_model, metaspace):
    bridge = new_model("llama", metaspace)
    iv = InstructionVector.from_effects(effects_of(bridge), k=3)
    pieces = (metaspace.convert_tokens_to_ids(piece) for piece in ("\u2581house", "<0xE5>"))
    shown = []
    for token in pieces:
        row = bridge.original_model.lm_head.weight.detach()[token]
        shown.append(replace(iv, theta=row / bridge.original_model.model.norm.weight.detach()).decode(k=1)[0][0])
    assert shown == [" house", "<0xE5>"]
    bare = new_model("llama")
    with pytest.raises(ValueError, match="without a tokenizer"):
        InstructionVector.from_effects(effects_of(bare), k=3).decode()


def test_decode_needs_a_model_that_fits(new_model, tmp_path, iv):
    loaded = InstructionVector.load(iv.save(tmp_path / "iv.safetensors"))
    with pytest.raises(ValueError, match=r"decode\(model\)"):
        loaded.decode()
    with pytest.raises(ValueError, match="has d_model 16"):
        replace(iv, theta=torch.randn(16)).decode()


def test_a_file_gives_back_the_same_vector_and_the_same_bytes(tmp_path, llama, iv):
    path = iv.save(tmp_path / "deep" / "iv.safetensors")
    loaded = InstructionVector.load(path, llama)
    assert torch.equal(loaded.theta, iv.theta) and torch.equal(loaded.head_means, iv.head_means)
    assert (loaded.heads, loaded.task, loaded.model) == (iv.heads, iv.task, iv.model)
    assert loaded.settings == json.loads(json.dumps(iv.settings))
    assert loaded.save(tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == [
        "again.safetensors",
        "iv.safetensors",
    ]
    derived = iv - 2 * iv.random_like(0)
    assert torch.equal(InstructionVector.load(derived.save(path)).theta, derived.theta)


def test_provenance_is_complete(iv):
    assert set(iv.settings) >= {"k", "contrast", "universal", "n_effect_prompts", "corruptions", "effects"}
    assert iv.model.weights_hash and iv.settings["effects"]["split"] == "fit"


def test_a_damaged_recipe_is_refused_with_the_file(tmp_path, iv):
    odd = replace(iv, settings={**iv.settings, "effects": {"recipe": {"template": "plain"}}})
    with pytest.raises(ValueError, match="incomplete metadata .ValueError: a recipe lacks instruction"):
        InstructionVector.load(odd.save(tmp_path / "odd.safetensors"))


def test_loading_for_another_model(tmp_path, new_model, iv):
    path = iv.save(tmp_path / "iv.safetensors")
    with pytest.raises(ValueError, match="one shape of model only"):
        InstructionVector.load(path, new_model("llama", n_layers=2))
    with pytest.raises(ValueError, match="one shape of model only"):
        InstructionVector.load(path, new_model("llama", n_layers=2), allow_other_weights=True)
    tuned = new_model("llama", seed=1)
    with pytest.raises(ValueError, match="allow_other_weights=True"):
        InstructionVector.load(path, tuned)
    allowed = InstructionVector.load(path, tuned, allow_other_weights=True)
    assert allowed.settings["used_with"]["weights_hash"] == model_identity(tuned).weights_hash
    assert allowed.model == iv.model
    for vector in (allowed, 2 * allowed, allowed.random_like(0), allowed - allowed):
        check_belongs(vector, tuned)
    with pytest.raises(ValueError, match="allow_other_weights=True"):
        check_belongs(iv, tuned)
    check_belongs(iv.for_model(tuned), tuned)
    assert iv.for_model(tuned).settings["used_with"] == allowed.settings["used_with"]
    with pytest.raises(ValueError, match="one shape of model only"):
        iv.for_model(new_model("gpt2"))
    with pytest.raises(TypeError, match="load_model"):
        check_belongs(iv, tuned.original_model)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, iv, size):
    path = iv.save(tmp_path / "iv.safetensors")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="written by InstructionVector.save; save it again"):
        InstructionVector.load(path)


def test_other_files_are_refused(tmp_path, iv, effects):
    path = tmp_path / "iv.pt"
    path.write_bytes(pickle.dumps({"theta": [1.0]}))
    with pytest.raises(ValueError, match="never read"):
        InstructionVector.load(path)
    torch.save({"theta": iv.theta}, path)
    with pytest.raises(ValueError, match="never read"):
        InstructionVector.load(path)
    with pytest.raises(ValueError, match="not ivlens.InstructionVector/1"):
        InstructionVector.load(effects.save(path))
    with pytest.raises(FileNotFoundError, match="not a file"):
        InstructionVector.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="not a file"):
        InstructionVector.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other/1"}, "not ivlens.InstructionVector/1"),
        ({"heads": [[0, 99]] * 3}, "do not include"),
        ({"heads": [[0]]}, "incomplete metadata"),
        ({"model": {"name": "x"}}, "incomplete metadata"),
        ({"settings": 3}, "incomplete metadata"),
        ({"task": None}, "incomplete metadata"),
        ({"heads": [[0, 0]]}, "has tensors"),
    ],
)
def test_wrong_metadata_is_refused(tmp_path, iv, change, message):
    from safetensors import safe_open

    path = iv.save(tmp_path / "iv.safetensors")
    with safe_open(path, framework="pt") as opened:
        content = json.loads(opened.metadata()["ivlens"])
    tensors = {"theta": iv.theta, "head_means": iv.head_means}
    save_file(tensors, path, metadata={"ivlens": json.dumps(content | change)})
    with pytest.raises(ValueError, match=message):
        InstructionVector.load(path)
    save_file({"theta": iv.theta.half(), "head_means": iv.head_means}, path, metadata={"ivlens": json.dumps(content)})
    with pytest.raises(ValueError, match="not float32"):
        InstructionVector.load(path)
    save_file(tensors, path, metadata={"ivlens": "{"})
    with pytest.raises(ValueError, match="damaged metadata"):
        InstructionVector.load(path)


def test_settings_that_are_no_json_are_refused_when_saving(tmp_path, iv):
    with pytest.raises(ValueError, match="do not fit in JSON"):
        replace(iv, settings={"model": object()}).save(tmp_path / "iv.safetensors")
    assert not list(tmp_path.iterdir())


def test_named_heads_in_their_order_instead_of_the_strongest(llama, effects):
    named = [(1, 0), (0, 1)]
    vector = InstructionVector.from_effects(effects, heads=named)
    w_o = output_projection(llama)
    by_hand = sum(effects.mean_z[layer, head] @ w_o[layer, head] for layer, head in named)
    torch.testing.assert_close(vector.theta, by_hand, atol=1e-5, rtol=1e-5)
    assert vector.heads == ((1, 0), (0, 1)) and vector.settings["k"] == 2 and vector.settings["heads"] == "named"
    strongest = InstructionVector.from_effects(effects, heads=effects.top_heads(3))
    assert torch.equal(strongest.theta, InstructionVector.from_effects(effects, k=3).theta)


@pytest.mark.parametrize(
    ("heads", "what"),
    [([], "none of them"), ([(0, 1), (0, 1)], "one of them twice"), ([(0, 99)], r"\(0, 99\) among them")],
)
def test_named_heads_that_do_not_exist(effects, heads, what):
    with pytest.raises(ValueError, match=f"heads are .* with {what}, expected one or more different"):
        InstructionVector.from_effects(effects, heads=heads)
    with pytest.raises(ValueError, match="two ways to choose heads"):
        InstructionVector.from_effects(effects, heads=[(0, 0)], universal=[effects])


@pytest.mark.parametrize("name", ["effects", "used_with", "scaled", "factor", "k", "operands"])
@pytest.mark.parametrize("wrong", [True, ["x"], {1, 2}])
def test_settings_of_another_kind_are_refused(name, wrong):
    from ivlens.vectors.provenance import check_settings

    with pytest.raises(TypeError, match="in its settings"):
        check_settings({name: wrong})


@pytest.mark.parametrize(
    "ability", [True, 5, "x", [], {}, {"clean": "1", "bare": None, "n": 2}, {"clean": 1.0, "n": 2.5}]
)
def test_abilities_of_another_kind_are_refused(ability):
    from ivlens.vectors.provenance import check_settings

    for settings in (
        {"effects": {"ability": ability}},
        {"operands": [{"task": "a", "settings": {"effects": {"ability": ability}}}]},
    ):
        with pytest.raises(TypeError, match="ability is"):
            check_settings(settings)
