"""What the check at load compares before and after wrapping: padded prompts with masks, positions and a cache."""

import re
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import hf_model, random_prompts

from ivlens.forward.means import mean_head_outputs
from ivlens.models import load_model, selfcheck

SIZES = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def openai_gpt():
    torch.manual_seed(0)
    config = transformers.OpenAIGPTConfig(vocab_size=400, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    model = transformers.OpenAIGPTLMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
    return model


@pytest.mark.parametrize("mask", [torch.ones(3, 9).long(), random_prompts((9, 4, 7))[1]])
def test_gpt_1_sees_nothing_of_what_follows(mask):
    tokens = torch.randint(3, 400, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    plain, model = openai_gpt(), load_model(hf_model=openai_gpt())
    kept = {}
    projection = plain.get_submodule("transformer.h.1.attn.c_proj")
    projection.register_forward_pre_hook(lambda _, given: kept.update(z=given[0]))
    with torch.no_grad():
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        want = plain(tokens, attention_mask=mask, position_ids=places).logits[mask == 1]
        got = model(tokens, attention_mask=mask, use_cache=False)[mask == 1]
    assert want.abs().max() > 1
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    means = mean_head_outputs(model, tokens, mask)[1]
    torch.testing.assert_close(means, kept["z"][:, -1].mean(0).view(4, 8), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["Olmo", "Olmo2", "Olmo3", "FlexOlmo"])
def test_olmo_opens_in_half_precision(family, dtype):
    experts = {"num_experts": 4, "num_experts_per_tok": 2} if family == "FlexOlmo" else {}
    kind = getattr(transformers, f"{family}Config")
    torch.manual_seed(0)
    plain = getattr(transformers, f"{family}ForCausalLM")(kind(**SIZES, **MARKS, **experts, num_hidden_layers=2))
    plain = plain.to(dtype).eval()
    tokens, mask = torch.tensor([[5, 17, 40, 8], [0, 0, 9, 23]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    with torch.no_grad():
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        want = plain(tokens, attention_mask=mask, position_ids=places, use_cache=False).logits[mask == 1]
        model = load_model(hf_model=plain, dtype=dtype)
        got = model(tokens, attention_mask=mask, use_cache=False)[mask == 1]
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, atol=2e-2, rtol=2e-2)


class Stub(torch.nn.Module):
    """Stands where a bridge is called: the plain model, with something changed on the way."""

    def __init__(self, plain, change=lambda given: None):
        super().__init__()
        self.plain, self.change = plain, change

    def forward(self, tokens, return_type="logits", **given):
        mask = given["attention_mask"]
        given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        self.change(given)
        out = self.plain(tokens, **given)
        return out.logits if return_type == "logits" else (out.logits, out.past_key_values)


def lengthened(given):
    if "past_key_values" in given:
        for layer in given["past_key_values"].layers:
            layer.keys = layer.keys.flip(-2)


def fails(given):
    raise KeyError("nothing here\nand more")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda given: None, None),
        (
            lambda given: given.update(attention_mask=given["attention_mask"] * 0 + 1),
            "gives other logits on padded prompts, off by",
        ),
        (lambda given: given.pop("position_ids"), None),  # positions are relative in Llama
        (lambda given: given.update(position_ids=given["position_ids"] * 2), "gives other logits on padded prompts"),
        (lengthened, "gives other logits with a cache, off by"),
        (fails, r"fails \(KeyError: 'nothing here"),
    ],
)
def test_what_the_check_sees(change, reason):
    plain = hf_model("llama")
    want = selfcheck.plain_logits(plain, "mine")
    found = selfcheck.difference(Stub(plain, change), plain, want)
    assert re.match(reason or "^$", found or "")


def test_absolute_positions_are_compared():
    plain = hf_model("gpt2")
    want = selfcheck.plain_logits(plain, "mine")
    forgets = Stub(plain, lambda given: given.pop("position_ids"))
    assert "on padded prompts" in (selfcheck.difference(forgets, plain, want) or "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_is_no_rounding(dtype):
    want = torch.zeros(2, 3, 4, dtype=dtype)
    error, within = selfcheck.off_by(want / want, want)
    assert not error <= within


def test_a_row_that_is_nan_for_transformers_itself_is_left_out():
    want = torch.zeros(2, 3, 4)
    want[1, 0] = torch.nan
    assert selfcheck.off_by(want, want) == (0.0, 1e-3)
    wrong = want.clone()
    wrong[0, 0] = 1.0
    assert selfcheck.off_by(wrong, want)[0] == 1.0


def test_in_half_precision_one_token_may_go_to_another_expert():
    want = torch.zeros(2, 3, 4, dtype=torch.bfloat16)
    one, row = want.clone(), want.clone()
    one[1, 1], row[1] = 3.0, 3.0
    for got, passes in ((one, True), (row, False)):
        error, within = selfcheck.off_by(got, want)
        assert (error <= within) == passes
    error, within = selfcheck.off_by(one.float(), want.float())
    assert not error <= within


def test_a_model_without_a_cache_is_compared_without(monkeypatch):
    plain = hf_model("gpt2")
    forward = type(plain).forward

    def no_cache(self, input_ids=None, attention_mask=None, position_ids=None, use_cache=None, past_key_values=None):
        if use_cache:
            raise NotImplementedError("no cache")
        return SimpleNamespace(logits=forward(self, input_ids, attention_mask=attention_mask, use_cache=False).logits)

    monkeypatch.setattr(type(plain), "forward", no_cache)
    want = selfcheck.plain_logits(plain, "mine")
    assert want.last is None and want.first.shape[0] == 2


def test_a_crash_at_load_is_one_sentence(monkeypatch):
    plain = hf_model("llama")

    def crash(*args, **kwargs):
        raise RuntimeError("expected m1 and m2 to have the same dtype")

    from transformer_lens.model_bridge import generalized_components

    monkeypatch.setattr(generalized_components.PositionEmbeddingsAttentionBridge, "forward", crash)
    with pytest.raises(ValueError, match=r"failed the self-check: wrapped, it fails \(RuntimeError") as error:
        load_model(hf_model=plain)
    assert str(error.value).endswith("use another model.")
