"""Logits of a half-precision model, from its last stream on in float32."""

import pytest
import torch
from conftest import hf_model, tiny_task

from ivlens.effects.plan import Plan, measured_prompts
from ivlens.effects.rounding import rounding_noise, warn_of_noise
from ivlens.effects.taken import scores_of
from ivlens.forward.inputs import Inputs
from ivlens.forward.prefix import SharedPrefix
from ivlens.forward.unembedding import full_logits
from ivlens.models.load import load_model
from ivlens.prompts.recipe import PromptRecipe

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])


def last_stream(model):
    kept = {}
    handle = model.unembed.register_forward_pre_hook(lambda module, given: kept.update(stream=given[0]))
    with torch.no_grad():
        plain = model(IDS, attention_mask=torch.ones_like(IDS), use_cache=False)
    handle.remove()
    return kept["stream"], plain


@pytest.fixture(params=["llama", "gpt2", "gemma2"])
def family(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_are_those_of_the_last_stream_in_full(family, dtype):
    model = load_model(hf_model=hf_model(family), dtype=dtype)
    stream, plain = last_stream(model)
    weight = model.unembed.original_component.weight
    want = stream.float() @ weight.float().T
    if cap := getattr(model.original_model.config, "final_logit_softcapping", None):
        want = cap * torch.tanh(want / cap)
    inputs = Inputs(IDS, torch.ones_like(IDS), last=4, n_answer=1)
    found = inputs.logits(model)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:, -1], want[:, -1], rtol=1e-5, atol=1e-5)
    assert not torch.equal(plain[:, -1].float(), want[:, -1])  # the model's own are rounded
    prefix = SharedPrefix(model, IDS, torch.ones_like(IDS))
    resumed = prefix.logits(torch.arange(2), IDS[:, :0])
    assert resumed.dtype == torch.float32
    torch.testing.assert_close(resumed[:, -1], found[:, -1], rtol=0.05, atol=0.05 * float(found.abs().max()))
    # and the model is as it was
    assert torch.equal(last_stream(model)[1], plain) and "forward" not in model.unembed.original_component.__dict__


def test_a_large_vocabulary_is_taken_in_parts(monkeypatch):
    model = load_model(hf_model=hf_model("llama").to(torch.bfloat16))
    inputs = Inputs(IDS, torch.ones_like(IDS), last=4, n_answer=1)
    whole = inputs.logits(model)
    monkeypatch.setattr("ivlens.forward.unembedding._NUMBERS_AT_ONCE", 1000)
    torch.testing.assert_close(inputs.logits(model), whole, rtol=1e-6, atol=1e-6)


def test_a_model_in_full_precision_and_an_adapted_unembedding_are_left_alone(llama, monkeypatch):
    linear = llama.unembed.original_component
    with full_logits(llama):
        assert "forward" not in linear.__dict__
    model = load_model(hf_model=hf_model("llama").to(torch.bfloat16))
    monkeypatch.setattr(model.unembed.original_component, "forward", lambda stream: "somebody else's")
    with full_logits(model):
        assert model.unembed.original_component.forward(None) == "somebody else's"


def test_an_error_inside_leaves_the_model_as_it_was():
    model = load_model(hf_model=hf_model("llama").to(torch.bfloat16))
    with pytest.raises(KeyError), full_logits(model):
        raise KeyError
    assert "forward" not in model.unembed.original_component.__dict__


def test_noise_is_there_in_half_precision_alone(byte_level, caplog):
    task = tiny_task()
    noise = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model = load_model(hf_model=hf_model("llama"), tokenizer=byte_level, dtype=dtype)
        plan = Plan.of(task, PromptRecipe(), "drop", None)
        batch = measured_prompts(model, plan, task.examples, 8, "logprob").corrupted
        base = scores_of(model, batch, "logprob", None, 8)
        noise[dtype] = rounding_noise(model, batch, "logprob", base, 8, seed=0)
        assert noise[dtype] == rounding_noise(model, batch, "logprob", base, 8, seed=0)
    assert noise[torch.float32] is None and 0 < 3 * noise[torch.float16] < noise[torch.bfloat16]
    warn_of_noise(torch.full((4, 2, 2), 1.0), 0.1, "bfloat16", "antonym")
    assert not caplog.text
    warn_of_noise(torch.full((4, 2, 2), 0.1), 0.1, "bfloat16", "antonym")
    assert "rounding in bfloat16 (0.1) makes more of the effects of one head on one prompt (0.1 in all" in caplog.text
