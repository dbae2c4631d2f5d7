"""Mean head outputs at the last real token, and the scale of what heads write."""

import pytest
import torch
from conftest import hf_model, output_bias, random_prompts

from ivlens.forward import hooks
from ivlens.forward.inputs import check_prompts
from ivlens.forward.means import mean_head_outputs, mean_write_scale


def one_by_one(model, tokens, mask):
    """Every prompt on its own, unpadded."""
    outputs = []
    for row in range(len(tokens)):
        with hooks.captured_heads(model) as z, torch.no_grad():
            model(tokens[row][mask[row] == 1][None], use_cache=False)
        outputs.append(torch.stack([z[layer][0, -1] for layer in range(model.cfg.n_layers)]))
    return torch.stack(outputs)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_padding_and_batches_change_nothing(model, side, batch_size):
    tokens, mask = random_prompts(side=side)
    mean = mean_head_outputs(model, tokens, mask, batch_size=batch_size)
    assert mean.shape == (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head) and mean.dtype == torch.float32
    torch.testing.assert_close(mean, one_by_one(model, tokens, mask).mean(0), atol=1e-4, rtol=1e-4)


def test_padding_on_both_sides_and_masks_of_any_type(llama):
    tokens, mask = random_prompts((5, 5))
    wide = torch.zeros(2, 9, dtype=torch.long)
    wide_mask = torch.zeros(2, 9)
    wide[0, 2:7], wide[1, 4:9] = tokens[0], tokens[1]
    wide_mask[0, 2:7] = wide_mask[1, 4:9] = 1.0
    want = mean_head_outputs(llama, tokens, mask)
    for typed in (wide_mask, wide_mask.bool(), wide_mask.int()):
        torch.testing.assert_close(mean_head_outputs(llama, wide.int(), typed), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["gemma2", "olmo2", "granite"])
def test_scaled_head_writes_sum_to_what_attention_adds(family, new_model):
    model = new_model(family)
    tokens, mask = random_prompts((6,))
    scale = mean_write_scale(model, tokens, mask)
    assert scale.shape == (model.cfg.n_layers, model.cfg.d_model) and (scale != 1).any()
    with (
        hooks.captured_heads(model) as z,
        hooks.captured_residual(model, range(3), "attn_out") as written,
        torch.no_grad(),
    ):
        model(tokens, use_cache=False)
    for layer in range(model.cfg.n_layers):
        heads = torch.einsum("hd,hdm->hm", z[layer][0, -1], hooks.output_projection(model)[layer])
        bias = output_bias(model, layer)
        torch.testing.assert_close((heads.sum(0) + bias) * scale[layer], written[layer][0, -1], atol=1e-4, rtol=1e-4)


def test_write_scale_is_a_mean_over_prompts_and_ones_without_a_post_norm(new_model, llama):
    gemma = new_model("gemma2")
    tokens, mask = random_prompts(side="right")
    alone = [mean_write_scale(gemma, tokens[row : row + 1], mask[row : row + 1]) for row in range(len(tokens))]
    got = mean_write_scale(gemma, tokens, mask, batch_size=3)
    torch.testing.assert_close(got, torch.stack(alone).mean(0), atol=1e-4, rtol=1e-4)
    for model in (llama, new_model("gpt2"), new_model("neox")):
        assert torch.equal(mean_write_scale(model, tokens, mask), torch.ones(3, 32))


def test_a_write_that_is_no_fixed_multiple_is_refused(llama, monkeypatch):
    monkeypatch.setattr(
        "ivlens.forward.means.captured_projection",
        lambda model, select: hooks.captured_residual(model, range(3), "resid_post", select=select),
    )
    with pytest.raises(ValueError, match="attention of layer 0 adds something .* that is no fixed multiple"):
        mean_write_scale(llama, *random_prompts())


TOKENS, MASK = random_prompts((4, 3))


@pytest.mark.parametrize(
    ("tokens", "mask", "error", "message"),
    [
        (
            TOKENS[:0],
            MASK[:0],
            ValueError,
            r"tokens has shape \(0, 4\), expected \[batch, pos\] with at least one prompt",
        ),
        (TOKENS[0], MASK[0], ValueError, r"tokens has shape \(4,\), expected \[batch, pos\]"),
        (TOKENS, MASK[:, 1:], ValueError, r"attention_mask has shape \(2, 3\), expected \(2, 4\) like tokens"),
        (TOKENS, MASK * 2, ValueError, "attention_mask has values other than 0 and 1"),
        (TOKENS, MASK * torch.tensor([[1], [0]]), ValueError, "attention_mask row 1 is all 0"),
        (TOKENS + 400, MASK, ValueError, "tokens contains [0-9]+, expected token ids from 0 to 399"),
        (TOKENS - 399, MASK, ValueError, "tokens contains -[0-9]+, expected token ids from 0 to 399"),
        (TOKENS.float(), MASK, TypeError, "tokens is a torch.float32 tensor, expected an integer tensor"),
    ],
)
def test_unusable_prompts(llama, tokens, mask, error, message):
    with pytest.raises(error, match=message):
        mean_head_outputs(llama, tokens, mask)


@pytest.mark.parametrize("filler", [-100, -1, 400, 10**9])
def test_what_stands_under_the_mask_does_not_matter(model, filler):
    for side in ("left", "right"):
        tokens, mask = random_prompts(side=side)
        want = mean_head_outputs(model, tokens, mask)
        assert torch.equal(mean_head_outputs(model, tokens.masked_fill(mask == 0, filler), mask), want)


def test_a_model_that_is_no_bridge():
    for measure in (mean_head_outputs, mean_write_scale):
        with pytest.raises(TypeError, match="model is LlamaForCausalLM, expected the TransformerBridge .*load_model"):
            measure(hf_model("llama"), *random_prompts())


def test_prompts_that_are_no_tensors(llama):
    with pytest.raises(TypeError, match="attention_mask is NoneType, expected an integer tensor"):
        check_prompts(llama, TOKENS, None)
    with pytest.raises(TypeError, match="tokens is list, expected an integer tensor"):
        check_prompts(llama, [[1, 2]], MASK)
