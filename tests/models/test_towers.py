"""Of a model that takes images as well the text part is measured, if transformers knows it as a language model."""

import pytest
import torch
import transformers
from conftest import byte_level_tokenizer
from families import N_WORDS

import ivlens
from ivlens.models import load_model
from ivlens.models.plain import plain_model

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
TEXT = {
    **SMALL,
    "vocab_size": N_WORDS,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
SEEN = {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14, **SMALL}
PATCHED = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32,
    "num_position_embeddings": 16,
}  # fmt: skip
THREE_AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}


def mistral3():
    text, seen = {"model_type": "mistral", **TEXT}, {"model_type": "pixtral", **SEEN}
    config = transformers.Mistral3Config(text_config=text, vision_config=seen, image_token_index=10)
    return transformers.Mistral3ForConditionalGeneration(config)


def gemma3():
    return transformers.Gemma3ForConditionalGeneration(transformers.Gemma3Config(text_config=TEXT, vision_config=SEEN))


def qwen3_5():
    mixers = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
    kinds = ["linear_attention", "full_attention"]
    rope = {**THREE_AXES, "partial_rotary_factor": 1.0, "mrope_interleaved": True}
    text = TEXT | mixers | {"linear_value_head_dim": 8, "layer_types": kinds, "rope_parameters": rope}
    return transformers.Qwen3_5ForConditionalGeneration(
        transformers.Qwen3_5Config(text_config=text, vision_config=PATCHED)
    )


def qwen3_vl():
    text = TEXT | {"rope_parameters": THREE_AXES}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=PATCHED | {"deepstack_visual_indexes": [0]})
    return transformers.Qwen3VLForConditionalGeneration(config)


def qwen3_vl_moe():
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
    config = transformers.Qwen3VLMoeConfig(
        text_config=TEXT | experts | {"rope_parameters": THREE_AXES},
        vision_config=PATCHED | {"deepstack_visual_indexes": [0]},
    )
    return transformers.Qwen3VLMoeForConditionalGeneration(config)


def qwen2_5_vl():
    text = {key: value for key, value in TEXT.items() if key != "head_dim"} | {
        "rope_parameters": THREE_AXES | {"mrope_section": [2, 1, 1]}
    }
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=PATCHED)
    )


def scaled(model):
    """With weights large enough for what heads do to show in the logits."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
    return model.eval()


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (mistral3, "MistralForCausalLM"),
        (gemma3, "Gemma3ForCausalLM"),
        (qwen3_5, "Qwen3_5ForCausalLM"),
        (qwen3_vl, "Qwen3ForCausalLM"),
        (qwen3_vl_moe, "Qwen3MoeForCausalLM"),
    ],
)
def test_the_text_part_gives_the_logits_of_the_whole(make, kind):
    whole = scaled(make())
    tokens = torch.tensor([[5, 9, 30, 7, 12]])
    with torch.no_grad():
        want = whole(input_ids=tokens, use_cache=False).logits
    model = load_model(hf_model=whole, tokenizer=byte_level_tokenizer())
    assert type(model.original_model).__name__ == kind and model.cfg.n_layers == 2
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, use_cache=False), want, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(plain_model(model)(tokens, use_cache=False).logits, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [qwen3_vl, qwen3_vl_moe])
def test_effects_are_those_of_hooks_on_the_whole_model(make):
    """Qwen3-VL, whose text part is opened as Qwen 3 with the same parameters, so that the whole is as it was."""
    whole = scaled(make())
    model = load_model(hf_model=whole)
    shared = {parameter.data_ptr() for parameter in whole.parameters()}
    assert {parameter.data_ptr() for parameter in model.original_model.parameters()} <= shared
    tokens, answer = torch.tensor([[5, 9, 30, 7, 12, 40]]), torch.tensor([[8]])
    mean_z = 3 * torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(0))
    given = model, tokens, torch.ones_like(tokens), answer, mean_z
    found = ivlens.causal_indirect_effect(*given, score="logprob")[0]

    def logprob():
        with torch.no_grad():
            return float(whole(input_ids=tokens, use_cache=False).logits[0, -1].log_softmax(-1)[8])

    base, want = logprob(), torch.zeros(2, 4)
    for layer in range(2):
        for head in range(4):

            def patch(module, given, layer=layer, head=head):
                z = given[0].clone().unflatten(-1, (4, 12))
                z[:, -1, head] = mean_z[layer, head]
                return (z.flatten(-2), *given[1:])

            projection = whole.model.language_model.layers[layer].self_attn.o_proj
            handle = projection.register_forward_pre_hook(patch)
            want[layer, head] = logprob() - base
            handle.remove()
    assert want.abs().max() > 0.1
    torch.testing.assert_close(found, want, atol=1e-4, rtol=0)


def test_a_text_part_that_is_no_language_model_by_itself():
    with pytest.raises(ValueError, match=r"no language model of its text part alone \(qwen2_5_vl_text\)"):
        load_model(hf_model=qwen2_5_vl())


def test_a_folder_of_such_a_model_is_refused_before_it_is_wrapped(tmp_path, monkeypatch):
    """TransformerLens would fetch a processor for it, and install packages by itself."""
    from transformer_lens.model_bridge import TransformerBridge

    monkeypatch.setattr(TransformerBridge, "boot_transformers", lambda *args, **options: pytest.fail("wrapped"))
    qwen3_vl().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="takes more than text, expected a language model alone; open it with"):
        load_model(tmp_path)


def test_a_text_part_that_is_not_all_of_the_text_is_refused():
    whole = mistral3()
    forward = whole.forward
    whole.forward = lambda *args, **kwargs: _louder(forward(*args, **kwargs))
    with pytest.raises(ValueError, match="and its text part gives other logits by itself"):
        load_model(hf_model=whole)


def _louder(out):
    out.logits = 2 * out.logits
    return out
