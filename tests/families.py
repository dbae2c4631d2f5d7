"""Tiny random models of every family in the parity matrix, with weights scaled so that heads matter."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

N_WORDS = 400
WINDOW = 6  # of the windowed families: shorter than the tests' prompts

_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
_MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA = {**_SIZES, **_MARKS, "tie_word_embeddings": False}
_GROUPED = {**_LLAMA, "num_key_value_heads": 2}
_WIDE = {**_GROUPED, "head_dim": 12}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


def _layers(config: str, **options: Any) -> Callable[[int, int, int], Any]:
    def make(n_vocab: int, n_layers: int, n_ctx: int) -> Any:
        kind = getattr(transformers, config)
        return kind(vocab_size=n_vocab, num_hidden_layers=n_layers, max_position_embeddings=n_ctx, **options)

    return make


def _gpt2(n_vocab: int, n_layers: int, n_ctx: int) -> Any:
    return transformers.GPT2Config(
        vocab_size=n_vocab, n_embd=32, n_layer=n_layers, n_head=4, n_positions=n_ctx, bos_token_id=1, eos_token_id=2
    )


def _gptj(n_vocab: int, n_layers: int, n_ctx: int) -> Any:
    return transformers.GPTJConfig(
        vocab_size=n_vocab,
        n_embd=32,
        n_layer=n_layers,
        n_head=4,
        n_positions=n_ctx,
        rotary_dim=4,
        bos_token_id=1,
        eos_token_id=2,
    )


def _gptneo(window: int) -> Callable[[int, int, int], Any]:
    def make(n_vocab: int, n_layers: int, n_ctx: int) -> Any:
        kinds = [["global", "local"][n % 2] for n in range(n_layers)]
        return transformers.GPTNeoConfig(
            vocab_size=n_vocab,
            hidden_size=32,
            num_layers=n_layers,
            num_heads=4,
            max_position_embeddings=n_ctx,
            window_size=window,
            attention_types=[[[kind], 1] for kind in kinds],
            bos_token_id=1,
            eos_token_id=2,
        )

    return make


def _bloom(n_vocab: int, n_layers: int, n_ctx: int) -> Any:
    return transformers.BloomConfig(vocab_size=n_vocab, hidden_size=32, n_layer=n_layers, n_head=4)


def _mpt(n_vocab: int, n_layers: int, n_ctx: int) -> Any:
    return transformers.MptConfig(vocab_size=n_vocab, d_model=32, n_layers=n_layers, n_heads=4, max_seq_len=n_ctx)


def _falcon(**options: Any) -> Callable[[int, int, int], Any]:
    def make(n_vocab: int, n_layers: int, n_ctx: int) -> Any:
        return transformers.FalconConfig(
            vocab_size=n_vocab,
            hidden_size=32,
            num_hidden_layers=n_layers,
            num_attention_heads=4,
            max_position_embeddings=n_ctx,
            new_decoder_architecture=False,
            **options,
        )

    return make


CONFIGS: dict[str, Callable[[int, int, int], Any]] = {
    "gpt2": _gpt2,
    "neox": _layers("GPTNeoXConfig", **_SIZES, **_MARKS),
    "gptj": _gptj,
    "gptneo": _gptneo(WINDOW),
    "gptneo_wide": _gptneo(256),
    "opt": _layers("OPTConfig", hidden_size=32, ffn_dim=48, num_attention_heads=4, word_embed_proj_dim=32, **_MARKS),
    "llama": _layers("LlamaConfig", **_WIDE),
    "llama_gqa": _layers("LlamaConfig", **_GROUPED),
    "mistral": _layers("MistralConfig", **_WIDE, sliding_window=WINDOW),
    "mixtral": _layers("MixtralConfig", **_GROUPED, **_EXPERTS),
    "qwen2": _layers("Qwen2Config", **_GROUPED),
    "qwen2_window": _layers(
        "Qwen2Config", **_GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3": _layers("Qwen3Config", **_WIDE),
    "qwen3_moe": _layers(
        "Qwen3MoeConfig", **_WIDE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, decoder_sparse_step=1
    ),
    "gemma": _layers("GemmaConfig", **_WIDE),
    "gemma2": _layers("Gemma2Config", **_WIDE, sliding_window=WINDOW),
    "gemma3": _layers("Gemma3TextConfig", **_WIDE, sliding_window=WINDOW),
    "phi": _layers("PhiConfig", **_LLAMA),
    "phi3": _layers("Phi3Config", **_GROUPED),
    "olmo2": _layers("Olmo2Config", **_GROUPED),
    "falcon": _falcon(multi_query=True, parallel_attn=True, alibi=False),
    "falcon_alibi": _falcon(multi_query=False, parallel_attn=False, alibi=True),
    "bloom": _bloom,
    "mpt": _mpt,
    "stablelm": _layers("StableLmConfig", **_GROUPED),
    "cohere": _layers("CohereConfig", **_GROUPED, logit_scale=1.0),
    "granite": _layers("GraniteConfig", **_GROUPED, residual_multiplier=0.3, logits_scaling=2.0),
    "gpt_oss": _layers("GptOssConfig", **_WIDE, **_EXPERTS, sliding_window=WINDOW),
}


def hf_model(family: str, *, n_vocab: int = N_WORDS, n_layers: int = 3, seed: int = 0, n_ctx: int = 128) -> Any:
    """A tiny random model in float32, its weights scaled up so that what heads do shows in the logits.

    d_model 32; 4 heads, of which the grouped families share 2 keys and values, some with `d_head` 12 and not 32 / 4.
    """
    torch.manual_seed(seed)
    config = CONFIGS[family](n_vocab, n_layers, n_ctx)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()
