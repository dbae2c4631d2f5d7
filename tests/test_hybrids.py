"""Hybrids, in which some layers have no attention: nothing is measured there, and everything else works."""

import dataclasses
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
import torch
from conftest import random_prompts, tiny_task
from families import HYBRIDS, hf_model

import ivlens
from ivlens.analysis.dynamics.stages import TaskStage
from ivlens.effects.measure import EffectOptions
from ivlens.forward.hooked import is_hooked
from ivlens.forward.hooks import (
    added,
    captured_heads,
    captured_patterns,
    captured_projection,
    captured_residual,
    output_projection,
    patched_heads,
)
from ivlens.forward.means import head_means
from ivlens.models.attention import all_heads, attention_layers
from ivlens.models.plain import module_paths
from ivlens.show.demo.run import DemoOptions, run_demo
from ivlens.show.figures.heads import empty_places, hatching
from ivlens.show.figures.theme import LIGHT
from ivlens.show.lab.engine import Engine
from ivlens.show.lab.maps import effects_maps
from ivlens.show.lab.measures import EngineOptions
from ivlens.show.lab.state import LabState
from ivlens.show.pages.demo import page
from ivlens.steering.controls import matched_heads, random_head_vectors
from ivlens.tuning import TuneOptions, finetune
from ivlens.tuning.builder import RECIPES, control, iv_guidance

TASK = tiny_task()
# one whose attention the bridge has wrapped, and one that calls all its mixers by one name
TRIED = ("qwen3_5", "nemotron_h")
NO_HEADS = r"layer 0 has no attention heads \(it has .*\), expected a layer that has; here that is 1"


@pytest.fixture(scope="module")
def hybrids(byte_level) -> Callable[[str], ivlens.models.TransformerBridge]:
    made = {}
    return lambda family: made.setdefault(
        family, ivlens.load_model(hf_model=hf_model(family, n_ctx=512), tokenizer=byte_level)
    )


@pytest.fixture(scope="module")
def measured(hybrids) -> Callable[[str], ivlens.HeadEffects]:
    made, options = {}, EffectOptions(n_mean_prompts=6, contrast=True)
    return lambda family: made.setdefault(
        family, ivlens.head_effects(hybrids(family), TASK, n_prompts=4, options=options)
    )


@pytest.mark.parametrize("family", HYBRIDS)
def test_the_layers_with_attention_are_found(family):
    model = ivlens.load_model(hf_model=hf_model(family))
    assert attention_layers(model) == (1,)
    assert all_heads(model) == [(1, head) for head in range(4)]
    paths = module_paths(model)
    assert [path is None for path in paths.projections] == [True, False, True] and None not in paths.blocks
    weight = output_projection(model)
    assert weight.shape == (3, 4, model.cfg.d_head, 32)
    assert weight[[0, 2]].isnan().all() and weight[1].isfinite().all()
    with pytest.raises(ValueError, match=NO_HEADS):
        output_projection(model, 0)


@pytest.mark.parametrize("family", TRIED)
def test_hooks_read_and_edit_what_the_plain_model_has_there(hybrids, family):
    model, plain = hybrids(family), hf_model(family, n_ctx=512)
    attention = plain.get_submodule(module_paths(model).projections[1].rpartition(".")[0])
    seen = {}
    attention.o_proj.register_forward_hook(lambda module, given, out: seen.update(z=given[0], out=out))
    attention.register_forward_hook(lambda module, given, out: seen.update(pattern=out[1]))
    tokens, mask = random_prompts()
    with torch.no_grad():
        plain(tokens, attention_mask=mask, use_cache=False)
        with (
            captured_heads(model) as z,
            captured_projection(model) as projected,
            captured_patterns(model) as patterns,
            captured_residual(model, [1], "attn_out") as written,
            captured_residual(model, [0, 1, 2]) as streams,
        ):
            model(tokens, attention_mask=mask, use_cache=False)
    assert list(z) == list(projected) == list(patterns) == [1] and list(streams) == [0, 1, 2]
    real = mask == 1
    torch.testing.assert_close(z[1].flatten(-2)[real], seen["z"][real])
    torch.testing.assert_close(projected[1][real], seen["out"][real])
    torch.testing.assert_close(written[1][real], seen["out"][real])
    torch.testing.assert_close(patterns[1][0, :, -1], seen["pattern"][0, :, -1])
    with torch.no_grad(), patched_heads(model, lambda one, layer: 0 * one, [1]), captured_projection(model) as nothing:
        model(tokens, attention_mask=mask, use_cache=False)
    assert nothing[1].abs().max() < 1e-6
    with torch.no_grad(), added(model, 1, "attn_out", lambda one: 0 * one), captured_residual(model, [0, 1]) as left:
        model(tokens, attention_mask=mask, use_cache=False)
    if family == "nemotron_h":  # its blocks have no MLP, so that nothing is left to change the stream
        torch.testing.assert_close(left[1], left[0])
    assert not is_hooked(model)


@pytest.mark.parametrize("family", TRIED)
def test_effects_are_nan_where_no_head_is(measured, family):
    effects = measured(family)
    assert effects.cie[:, 1].isfinite().all() and effects.cie[:, [0, 2]].isnan().all()
    assert effects.mean_z[1].isfinite().all() and effects.mean_z[[0, 2]].isnan().all()
    assert effects.write_scale[1].isfinite().all() and effects.write_scale[[0, 2]].isnan().all()
    assert {layer for layer, _ in effects.top_heads(4)} == {1}
    with pytest.raises(ValueError, match="expected 1 to 4, the number of measured heads"):
        effects.top_heads(5)
    assert effects.interval().low[[0, 2]].isnan().all() and effects.interval().low[1].isfinite().all()
    assert effects.to_frame()["layer"].tolist() == [1, 1, 1, 1]
    assert ivlens.compare_heads(effects, effects, k=2).n_heads == 4


def test_asked_layers_without_heads_are_left_out_and_refused_alone(hybrids):
    model = hybrids("qwen3_5")
    tokens, mask = random_prompts()
    answers = torch.tensor([[5], [6], [7], [8]])
    mean_z = head_means(model, tokens, mask).mean_z
    for method in ("exact", "attribution"):
        found = ivlens.causal_indirect_effect(model, tokens, mask, answers, mean_z, layers=[0, 1], method=method)
        assert found[:, 1].isfinite().all() and found[:, [0, 2]].isnan().all()
    with pytest.raises(ValueError, match=NO_HEADS):
        ivlens.causal_indirect_effect(model, tokens, mask, answers, mean_z, layers=[0])


def test_effects_are_saved_and_opened_again(measured, hybrids, tmp_path):
    effects = measured("qwen3_5")
    again = ivlens.HeadEffects.load(effects.save(tmp_path / "effects"), hybrids("qwen3_5"))
    torch.testing.assert_close(again.cie, effects.cie, equal_nan=True, atol=0, rtol=0)
    torch.testing.assert_close(again.mean_z, effects.mean_z, equal_nan=True, atol=0, rtol=0)


@pytest.mark.parametrize("family", TRIED)
def test_vectors_come_from_layers_with_heads_and_steer_in_every_layer(measured, hybrids, family):
    model, effects = hybrids(family), measured(family)
    iv = ivlens.InstructionVector.from_effects(effects, 2)
    weight = output_projection(model, 1)
    want = sum(effects.mean_z[1, head] @ weight[head] for _, head in iv.heads)
    torch.testing.assert_close(iv.theta, want * effects.write_scale[1])
    ivlens.InstructionVector.from_effects(effects, 2, contrast=True)
    with pytest.raises(ValueError, match="layer 0 has no attention heads"):
        ivlens.InstructionVector.from_effects(effects, heads=[(0, 1)])
    with pytest.raises(ValueError, match=f"{NO_HEADS}.*Site 'resid_post' is in every layer"):
        with ivlens.steer(model, iv, layer=0, site="attn_out"):
            pass
    found = ivlens.sweep_settings(model, TASK, iv, n_prompts=4, grid=ivlens.Grid(alphas=(1.0,)))
    places = {(row.layer, row.site) for row in found.itertuples()}
    assert places >= {(0, "resid_post"), (1, "attn_out"), (2, "resid_post")} and (0, "attn_out") not in places
    drawn = random_head_vectors(model, iv, effects, 2)
    assert len(drawn) == 2 and all(vector.theta.isfinite().all() for vector in drawn)
    others = matched_heads(iv.heads, (), all_heads(model), Random(0))
    assert {layer for layer, _ in others} == {1} and not {*others} & {*iv.heads}
    ivlens.evaluate_intervention(model, TASK, iv, n_prompts=4)


def test_a_map_is_hatched_where_no_head_is(measured):
    effects = measured("qwen3_5")
    (bars,) = [trace for trace in effects.plot().data if trace.type == "bar"]
    assert list(bars.y) == [0, 2] and list(bars.x) == [4, 4] and bars.marker.pattern.shape == "/"
    assert not hatching(np.zeros((2, 3), bool), LIGHT)
    (mixed,) = hatching(np.array([[False, True, True], [True, False, True]]), LIGHT)
    assert list(zip(mixed.y, mixed.base, mixed.x, strict=True)) == [(0, 0.5, 2), (1, -0.5, 1), (1, 1.5, 1)]
    assert empty_places(effects).tolist() == [[True] * 4, [False] * 4, [True] * 4]


def test_where_heads_look_and_what_they_are_needed_for(measured, hybrids):
    model, effects = hybrids("nemotron_h"), measured("nemotron_h")
    frame = ivlens.head_scores(model).frame()
    assert frame["layer"].tolist() == [1, 1, 1, 1] and frame["induction"].notna().all()
    assert {layer for layer in ivlens.head_attention(model, TASK, effects).frame()["layer"]} == {1}
    assert "L1H" in str(ivlens.head_attention(model, TASK, None))
    with pytest.raises(ValueError, match=NO_HEADS):
        ivlens.head_attention(model, TASK, "L0H1")
    assert "nothing" in str(ivlens.ablate_heads(model, TASK, effects))


def test_the_strongest_heads_of_a_stage_are_heads():
    aie = torch.full((3, 2), torch.nan)
    aie[1] = torch.tensor([0.1, 0.2])
    stage = TaskStage.__new__(TaskStage)
    object.__setattr__(stage, "aie", aie)
    assert stage.top_heads(2) == ((1, 1), (1, 0))


@pytest.mark.parametrize("family", TRIED)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_hybrid_is_tuned_with_guidance(hybrids, family, method):
    model = hybrids(family)
    plan = dataclasses.replace(RECIPES["heads"], k=2, n_prompts=4)
    guidance = iv_guidance(model, TASK, plan)
    result = finetune(
        model, TASK, method=method, guidance=guidance, options=TuneOptions(lr=1e-2, steps=2, batch_size=4)
    )
    assert len(result.log) == 2 and result.log["loss"].notna().all()
    others = control(guidance, "all_heads", model, seed=0).terms[0].chosen
    assert set(others) == set(all_heads(model))
    for name, value in result.model.original_model.state_dict().items():
        assert value.isfinite().all(), name


def test_the_demo_of_a_hybrid(tmp_path, byte_level):
    from show.test_demo import task_file

    hf_model("qwen3_5", n_ctx=512).save_pretrained(tmp_path / "checkpoint")
    byte_level.save_pretrained(tmp_path / "checkpoint")
    tasks = tuple(str(task_file(tmp_path, name, shift)) for name, shift in (("next", 1), ("second", 2)))
    options = DemoOptions(
        str(tmp_path / "checkpoint"), tasks, n_prompts=2, k=3, n_draws=1, n_examples=1, recipe=ivlens.PromptRecipe()
    )
    assert '"pattern":{' in page(run_demo(options))


def test_the_lab_of_a_hybrid(hybrids):
    from show.test_lab import opened

    engine = Engine(hybrids("qwen3_5"), {"antonym": TASK}, EngineOptions(n_prompts=4, n_search=4))
    session, screen = opened([engine], LabState("antonym", text="big", layer=0, alpha=1.0, site="resid_post"))
    try:
        assert screen["status"]["error"] == "" and {layer for layer, _ in screen["state"]["heads"]} == {1}
        (shown,) = effects_maps([engine], session.state)
        assert shown["aie"][0] == [None] * 4 and None not in shown["aie"][1]
        session.toggle((0, 1))
        assert session.wait()
        assert "layer 0 has no attention heads" in screen["status"]["error"]
    finally:
        session.close()
