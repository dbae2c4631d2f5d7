"""What attention adds to the stream, measured on blocks: multipliers are found, and what is no multiple is refused."""

import pytest
import torch
from families import CONFIGS, HYBRIDS, N_WORDS, hf_model

from ivlens.forward import writes
from ivlens.forward.means import head_means, mean_write_scale
from ivlens.forward.writes import added_to_stream, write_factors
from ivlens.models import load_model
from ivlens.models.plain import plain_model
from ivlens.steering.edits import addition
from ivlens.tuning.training.sites import Sites
from ivlens.vectors.heads import head_writes

FACTORS = {"falcon_h1": 0.3}
FAMILIES = [
    pytest.param(
        name,
        marks=()
        if name in (*FACTORS, "llama", "gpt2", "gemma2", "phi3", "granite", "openai_gpt")
        else pytest.mark.families,
    )
    for name in CONFIGS
]


def prompts(lengths=(9, 4)):
    mask = torch.stack([(torch.arange(max(lengths)) >= max(lengths) - length).long() for length in lengths])
    return torch.randint(3, N_WORDS, mask.shape, generator=torch.Generator().manual_seed(1)) * mask, mask


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_adds_what_its_hooks_show_or_a_multiple(family):
    model = load_model(hf_model=hf_model(family))
    found = write_factors(model, *prompts())
    if family == "zamba2":  # attention is followed by an MLP and a projection before it reaches the stream
        assert found.factors.isnan().all() and "attention of layer 1: what it adds" in (found.fault or "")
        return
    if family == "openai_gpt":  # norms the sum of the stream and attention
        assert found.factors.isnan().all() and "attention of layer 0: what it adds" in (found.fault or "")
        return
    want = torch.full((3,), FACTORS.get(family, 1.0), dtype=torch.float64)
    if family in HYBRIDS:  # their other layers have no heads
        want[[0, 2]] = torch.nan
    torch.testing.assert_close(found.factors, want, atol=1e-6 if family in FACTORS else 0, rtol=0, equal_nan=True)
    assert found.fault is None


def test_the_writes_of_falcon_h1_sum_to_what_its_plain_layer_adds():
    plain, model = hf_model("falcon_h1"), load_model(hf_model=hf_model("falcon_h1"))
    kept = {}
    layer = plain.model.layers[1]
    layer.self_attn.o_proj.register_forward_hook(lambda module, given, out: kept.update(z=given[0], out=out))
    tokens, mask = prompts((7,))
    with torch.no_grad():
        plain(tokens, attention_mask=mask, use_cache=False)
    added = kept["out"][0, -1] * layer.attn_out_multiplier
    means = head_means(model, tokens, mask)
    writes_of = head_writes(model, means.mean_z, means.write_scale)
    torch.testing.assert_close(writes_of[1].sum(0), added.float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mean_write_scale(model, tokens, mask), torch.full((3, 32), 0.3))


def test_where_a_write_is_not_defined_effects_go_on_and_vectors_are_refused():
    model = load_model(hf_model=hf_model("openai_gpt"))
    means = head_means(model, *prompts())
    assert means.mean_z.isfinite().all() and means.write_scale.isnan().all()
    with pytest.raises(ValueError, match="what a head of layer 0 writes is not defined in OpenAIGPTLMHeadModel"):
        head_writes(model, means.mean_z, means.write_scale)
    with pytest.raises(ValueError, match="no fixed multiple of its projection; what one head writes is not defined"):
        mean_write_scale(model, *prompts())


@pytest.mark.parametrize(
    ("change", "factor"),
    [
        (lambda out: 1.7 * out, 1.7),
        (lambda out: -0.02 * out, -0.02),
        (lambda out: 0 * out, None),
        (lambda out: out.tanh(), None),
        (lambda out: out + 0.1 * out.flip(-1), None),
        (lambda out: out / (1 + out.norm(dim=-1, keepdim=True)), None),
    ],
)
def test_whatever_happens_between_attention_and_the_stream_is_seen(change, factor):
    """Something that no hook shows: between the attention module and the sum."""
    model = load_model(hf_model=hf_model("llama"))
    attention = model.blocks[1].attn
    attention.register_forward_hook(lambda module, given, out: (change(out[0]), *out[1:]))
    found = write_factors(model, *prompts())
    assert found.factors[0] == 1.0
    if factor is None:
        assert found.factors[1].isnan() and found.fault is not None
    else:
        assert abs(found.factors[1] - factor) < 1e-5 and found.fault is None


def test_a_projection_that_is_more_than_w_o(monkeypatch):
    model = load_model(hf_model=hf_model("llama"))
    kept = writes.output_projection

    def other(model, layer):
        return 1.01 * kept(model, layer) if layer == 2 else kept(model, layer)

    monkeypatch.setattr(writes, "output_projection", other)
    found = write_factors(model, *prompts())
    assert found.fault == "attention of layer 2: its output projection is not the product of heads and W_O"


def test_a_block_that_runs_once_only(monkeypatch):
    model = load_model(hf_model=hf_model("llama"))
    block, runs = model.blocks[1], []
    forward = block.forward

    def once(*args, **kwargs):
        runs.append(None)
        if len(runs) > 1:
            raise KeyError("once")
        return forward(*args, **kwargs)

    block.__dict__["forward"] = once
    fault = write_factors(model, *prompts()).fault
    assert fault is not None and fault.startswith("attention of layer 1: it cannot be run alone (KeyError")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "falcon_h1"])
def test_half_precision(family, dtype):
    model = load_model(hf_model=hf_model(family), dtype=dtype)
    found = write_factors(model, *prompts()).factors
    torch.testing.assert_close(found, torch.full_like(found, FACTORS.get(family, 1.0)), atol=2e-3, rtol=0)


def test_it_leaves_no_hook_behind_and_measures_once():
    model = load_model(hf_model=hf_model("gemma2"))
    counts = [len(module._forward_hooks) for module in model.modules()]
    first = write_factors(model, *prompts())
    assert [len(module._forward_hooks) for module in model.modules()] == counts
    assert write_factors(model, *prompts()) is first


def test_hooks_of_others_are_not_remembered():
    model = load_model(hf_model=hf_model("llama"))
    for _ in range(2):
        handle = model.blocks[1].attn.register_forward_hook(lambda module, given, out: (1.7 * out[0], *out[1:]))
        assert abs(write_factors(model, *prompts()).factors[1] - 1.7) < 1e-5
        handle.remove()
        assert write_factors(model, *prompts()).factors.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("family", ["llama", "granite", "gemma2", "falcon_h1"])
def test_what_is_added_at_attention_arrives_whole(family):
    """Of the change of the stream nothing is lost on the way: compared where the MLP cannot answer, in the block."""
    model, plain = load_model(hf_model=hf_model(family)), plain_model(load_model(hf_model=hf_model(family)))
    delta = 5 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    tokens, mask = prompts((7,))
    last = (torch.arange(7) == 6)[None]
    entering: list[torch.Tensor] = []  # what the norm before the MLP is given: the stream after attention

    def streams(run, module) -> torch.Tensor:
        handle = module.register_forward_pre_hook(lambda norm, given: entering.append(given[0].detach().clone()))
        with torch.no_grad():
            run()
        handle.remove()
        return entering.pop()

    own = model.blocks[1].ln2
    clean = streams(lambda: model(tokens, use_cache=False), own)
    with added_to_stream(model, 1, "attn_out", addition(delta, lambda: last)):
        moved = streams(lambda: model(tokens, use_cache=False), own)
    torch.testing.assert_close((moved - clean)[0, -1], delta, atol=1e-4, rtol=1e-4)
    assert not (moved - clean)[0, :-1].any()
    with torch.no_grad(), added_to_stream(model, 1, "attn_out", addition(delta, lambda: last)):
        want = model(tokens, use_cache=False)
    with torch.no_grad(), Sites(model).shifted(plain, 1, "attn_out", 6, delta):
        got = plain(tokens, use_cache=False).logits
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_nothing_is_added_at_attention_where_that_is_not_defined():
    model = load_model(hf_model=hf_model("openai_gpt"))
    with pytest.raises(ValueError, match="site 'attn_out' is not defined in this model: use 'resid_post'"):
        with added_to_stream(model, 1, "attn_out", torch.clone):
            pass
