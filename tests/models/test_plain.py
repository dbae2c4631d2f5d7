"""The plain model behind a bridge: the same weights again, under the names that Hugging Face gives them."""

import pytest
import torch
from conftest import hf_model, random_prompts

from ivlens.models import load_model
from ivlens.models.plain import module_paths, plain_model

TOKENS, MASK = random_prompts()


def test_a_plain_copy_is_the_model_before_it_was_wrapped(new_model, model):
    family = type(model.original_model).__name__
    plain = plain_model(model)
    assert type(plain).__name__ == family
    with torch.no_grad():
        want = model(TOKENS[:, -4:], use_cache=False)
        torch.testing.assert_close(plain(TOKENS[:, -4:]).logits, want, atol=2e-5, rtol=0)
    assert not any("_original_component" in name for name, _ in plain.named_modules())
    assert all(parameter.is_leaf for parameter in plain.parameters())


def test_a_plain_copy_is_nobodys_but_its_owners(new_model):
    model = new_model("gpt2")
    with torch.no_grad():
        want = model(TOKENS, attention_mask=MASK)
        before = torch.get_rng_state()
        plain = plain_model(model)
        assert torch.equal(torch.get_rng_state(), before)
        for parameter in plain.parameters():
            parameter.zero_()
        assert torch.equal(model(TOKENS, attention_mask=MASK), want)


def test_paths_lead_to_the_same_modules(model):
    plain, paths = plain_model(model), module_paths(model)
    kept = {}
    plain.get_submodule(paths.projections[1]).register_forward_pre_hook(lambda _, given: kept.update(z=given[0]))
    plain.get_submodule(paths.blocks[1]).register_forward_hook(
        lambda _, given, out: kept.update(out=out[0] if isinstance(out, tuple) else out)
    )
    plain.get_submodule(paths.attn_out[1]).register_forward_hook(lambda _, given, out: kept.update(attn=out))
    tokens = TOKENS[:1, -4:]
    names = ["blocks.1.attn.hook_z", "blocks.1.hook_out", "blocks.1.hook_attn_out"]
    with torch.no_grad():
        plain(tokens)
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: name in (*names, "blocks.1.attn.o.hook_in"))
    pairs = (kept["z"].view_as(cache[names[0]]), kept["out"], kept["attn"])
    for got, name in zip(pairs, names, strict=True):
        torch.testing.assert_close(got, cache[name], atol=2e-5, rtol=1e-5)


def test_weights_changed_through_the_bridge_are_not_lost_silently(new_model):
    model = new_model("neox")  # its bridge splits the fused projection into copies
    with torch.no_grad():
        model.blocks[0].attn.q.weight.mul_(3.0)
    with pytest.raises(ValueError, match="gives logits that are off by .*; if it has adapters, merge them"):
        plain_model(model)


def test_a_bridge_made_elsewhere():
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    hf = hf_model("llama")
    bridge = build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config)
    with pytest.raises(TypeError, match=r"was not opened by ivlens.load_model"):
        plain_model(bridge)


def test_pocket_again():
    model = load_model("pocket")
    plain = plain_model(model)
    assert plain.config.architectures == ["LlamaForCausalLM"]
