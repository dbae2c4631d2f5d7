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
_WIDE: dict[str, Any] = {**_GROUPED, "head_dim": 12}
_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}


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


def _renamed(config: str, names: tuple[str, str, str], **options: Any) -> Callable[[int, int, int], Any]:
    """As `_layers`, for the names that older families have for layers, heads and context, and for their width."""

    def make(n_vocab: int, n_layers: int, n_ctx: int) -> Any:
        layers, heads, context = names
        shape = {layers: n_layers, heads: 4, context: n_ctx}
        return getattr(transformers, config)(vocab_size=n_vocab, **shape, **options)

    return make


def _latent(config: str, **options: Any) -> Callable[[int, int, int], Any]:
    ranks = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
    return _layers(config, **_LLAMA, num_key_value_heads=4, **ranks, **options)


def _every_layer(config: str, kind: str, **options: Any) -> Callable[[int, int, int], Any]:
    return lambda n_vocab, n_layers, n_ctx: _layers(config, **options, layer_types=[kind] * n_layers)(
        n_vocab, n_layers, n_ctx
    )


def _hybrid(
    config: str,
    kinds: tuple[str, ...] = ("linear_attention", "full_attention"),
    entry: str = "layer_types",
    **options: Any,
) -> Callable[[int, int, int], Any]:
    """As `_layers`, with layers of these kinds in turn: the second one has attention."""

    def make(n_vocab: int, n_layers: int, n_ctx: int) -> Any:
        types = [kinds[layer % len(kinds)] for layer in range(n_layers)]
        return _layers(config, **options, **{entry: types})(n_vocab, n_layers, n_ctx)

    return make


_GPT = ("n_layer", "n_head", "n_positions")
_MARKED = {"bos_token_id": 1, "eos_token_id": 2}
_ROUTED = {"num_experts": 4, "num_experts_per_tok": 2}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
_DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_DEEP = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}

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
    "openai_gpt": _renamed("OpenAIGPTConfig", _GPT, n_embd=32),
    "codegen": _renamed("CodeGenConfig", _GPT, n_embd=32, rotary_dim=4, **_MARKED),
    "gpt_bigcode": _renamed("GPTBigCodeConfig", _GPT, n_embd=32, **_MARKED),
    "xglm": _renamed(
        "XGLMConfig",
        ("num_layers", "attention_heads", "max_position_embeddings"),
        d_model=32,
        ffn_dim=48,
        **_MARKS,
    ),
    "starcoder2": _layers("Starcoder2Config", **_GROUPED),
    "olmo": _layers("OlmoConfig", **_GROUPED),
    "olmo3": _layers("Olmo3Config", **_GROUPED, sliding_window=WINDOW),
    "olmoe": _layers("OlmoeConfig", **_GROUPED, **_ROUTED),
    "flex_olmo": _layers("FlexOlmoConfig", **_GROUPED, **_ROUTED),
    "smollm3": _layers("SmolLM3Config", **_GROUPED),
    "qwen2_moe": _layers(
        "Qwen2MoeConfig", **_GROUPED, **_ROUTED, moe_intermediate_size=24, shared_expert_intermediate_size=24
    ),
    "glm": _layers("GlmConfig", **_WIDE),
    "glm4": _layers("Glm4Config", **_WIDE),
    "glm4_moe": _layers("Glm4MoeConfig", **_WIDE, **_DEEP),
    "exaone4": _layers("Exaone4Config", **_WIDE, sliding_window=WINDOW, sliding_window_pattern=3),
    "nemotron": _layers("NemotronConfig", **_WIDE),
    "granite_moe": _layers("GraniteMoeConfig", **_GROUPED, **_EXPERTS, residual_multiplier=0.3, logits_scaling=2.0),
    "cohere2": _layers("Cohere2Config", **_WIDE, sliding_window=WINDOW, logit_scale=1.0),
    "ministral3": _layers("Ministral3Config", **_WIDE),
    "llama4_text": lambda n_vocab, n_layers, n_ctx: _layers(
        "Llama4TextConfig",
        **_WIDE,
        **_EXPERTS | {"num_experts_per_tok": 1},
        intermediate_size_mlp=48,
        attention_chunk_size=WINDOW,
        no_rope_layers=[int(layer + 1 < n_layers) for layer in range(n_layers)],
    )(n_vocab, n_layers, n_ctx),
    "apertus": _layers("ApertusConfig", **_GROUPED),
    "seed_oss": _layers("SeedOssConfig", **_WIDE),
    "hunyuan": _layers("HunYuanDenseV1Config", **_WIDE),
    "ernie4_5": _layers("Ernie4_5Config", **_WIDE),
    "ernie4_5_moe": _layers(
        "Ernie4_5_MoeConfig",
        **_GROUPED,
        moe_num_experts=4,
        moe_k=2,
        moe_intermediate_size=24,
        moe_num_shared_experts=1,
        moe_layer_start_index=1,
    ),
    "arcee": _layers("ArceeConfig", **_GROUPED),
    "bitnet": _layers("BitNetConfig", **_GROUPED),
    "jais2": _layers("Jais2Config", **_GROUPED),
    "nanochat": _layers("NanoChatConfig", **_GROUPED),
    "minimax_m2": _layers("MiniMaxM2Config", **_WIDE, **_EXPERTS),
    "afmoe": _layers(
        "AfmoeConfig", **_WIDE, **_ROUTED, moe_intermediate_size=24, num_dense_layers=1, sliding_window=WINDOW
    ),
    "vaultgemma": _layers("VaultGemmaConfig", **_WIDE, sliding_window=WINDOW),
    "falcon_h1": _layers(
        "FalconH1Config",
        **_WIDE,
        **_MAMBA | {"mamba_n_heads": 6},
        mamba_d_ssm=48,
        attention_out_multiplier=0.3,
        ssm_out_multiplier=0.6,
    ),
    "deepseek_v2": _latent("DeepseekV2Config", **_DEEP),
    "deepseek_v3": _latent("DeepseekV3Config", **_DEEP, n_group=1, topk_group=1),
    "youtu": _latent("YoutuConfig"),
    "qwen3_next": _hybrid(
        "Qwen3NextConfig",
        **_WIDE,
        **_ROUTED,
        **_DELTA,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
    ),
    "qwen3_5": _hybrid("Qwen3_5TextConfig", **_WIDE, **_DELTA),
    "qwen3_5_moe": _hybrid(
        "Qwen3_5MoeTextConfig",
        **_WIDE,
        **_ROUTED,
        **_DELTA,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
    ),
    "olmo_hybrid": _hybrid(
        "OlmoHybridConfig",
        **_GROUPED,
        **_DELTA | {"linear_num_key_heads": 4, "linear_value_head_dim": 12},
    ),
    "nemotron_h": _hybrid(
        "NemotronHConfig",
        ("mamba", "attention", "mlp"),
        "layers_block_type",
        **_WIDE,
        mamba_num_heads=8,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=1,
    ),
    "bamba": _layers("BambaConfig", **_GROUPED, **_MAMBA, attn_layer_indices=[1]),
    "granite_hybrid": _hybrid(
        "GraniteMoeHybridConfig",
        ("mamba", "attention"),
        **_GROUPED,
        **_MAMBA,
        **_EXPERTS,
        shared_intermediate_size=48,
        residual_multiplier=0.3,
        attention_multiplier=0.3,
        position_embedding_type="rope",
    ),
    "granite_hybrid_dense": _hybrid(  # without a type of positions, as in Granite 4's small models
        "GraniteMoeHybridConfig",
        ("mamba", "attention"),
        **_GROUPED,
        **_MAMBA,
        num_local_experts=0,
        shared_intermediate_size=48,
        residual_multiplier=0.3,
    ),
    "granite_attention": _hybrid(
        "GraniteMoeHybridConfig",
        ("attention",),
        **_GROUPED,
        **_MAMBA,
        num_local_experts=0,
        shared_intermediate_size=48,
        residual_multiplier=0.3,
    ),
    "jamba": _layers(
        "JambaConfig", **_GROUPED, **_ROUTED, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False
    ),
    "lfm2": _hybrid("Lfm2Config", ("conv", "full_attention"), **_GROUPED, block_auto_adjust_ff_dim=False),
    "lfm2_moe": _hybrid(
        "Lfm2MoeConfig", ("conv", "full_attention"), **_GROUPED, **_ROUTED, moe_intermediate_size=24, num_dense_layers=1
    ),
    "zamba2": lambda n_vocab, n_layers, n_ctx: _layers(
        "Zamba2Config",
        **_GROUPED,
        mamba_d_state=8,
        mamba_headdim=8,
        n_mamba_heads=8,
        mamba_ngroups=1,
        layers_block_type=["mamba", "hybrid", "hybrid"][:n_layers],
        attention_head_dim=32,
        num_mem_blocks=1,
    )(n_vocab, n_layers, n_ctx),
}

# of three layers only the second has attention
HYBRIDS = (
    "qwen3_next", "qwen3_5", "qwen3_5_moe", "olmo_hybrid", "nemotron_h", "bamba", "granite_hybrid",
    "granite_hybrid_dense", "jamba", "lfm2", "lfm2_moe",
)  # fmt: skip

# what load_model refuses, with its reason
REFUSED: dict[str, Callable[[int, int, int], Any]] = {
    "falcon_new": _renamed(
        "FalconConfig",
        ("num_hidden_layers", "num_attention_heads", "max_position_embeddings"),
        hidden_size=32,
        new_decoder_architecture=True,
        num_kv_heads=2,
    ),
    "gpt_bigcode_heads": _renamed("GPTBigCodeConfig", _GPT, n_embd=32, multi_query=False, **_MARKED),
    "gemma3n": lambda n_vocab, n_layers, n_ctx: _every_layer(
        "Gemma3nTextConfig",
        "full_attention",
        **_WIDE,
        vocab_size_per_layer_input=n_vocab,
        hidden_size_per_layer_input=8,
        laurel_rank=8,
        num_kv_shared_layers=0,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.0] * n_layers,
    )(n_vocab, n_layers, n_ctx),
    "gemma4_text": _layers("Gemma4TextConfig", **_WIDE),
    "jetmoe": _layers(
        "JetMoeConfig",
        hidden_size=32,
        intermediate_size=48,
        num_key_value_heads=2,
        kv_channels=12,
        **_MARKS,
        **_EXPERTS,
    ),
    "hrm_text": _layers("HrmTextConfig", **_GROUPED),
    "mamba2": lambda n_vocab, n_layers, n_ctx: transformers.Mamba2Config(
        vocab_size=n_vocab,
        num_hidden_layers=n_layers,
        hidden_size=32,
        num_heads=8,
        head_dim=8,
        state_size=8,
        n_groups=1,
    ),
    "recurrent_gemma": _layers(
        "RecurrentGemmaConfig",
        **_GROUPED,
        attention_window_size=64,
        lru_width=32,
        block_types=["recurrent", "attention"],
    ),
    "phimoe": _layers("PhimoeConfig", **_GROUPED, **_EXPERTS),
    "opt_post_norm": _layers(
        "OPTConfig",
        hidden_size=32,
        ffn_dim=48,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        do_layer_norm_before=False,
        **_MARKS,
    ),
    "persimmon": _layers("PersimmonConfig", **_LLAMA),
}


def hf_model(family: str, *, n_vocab: int = N_WORDS, n_layers: int = 3, seed: int = 0, n_ctx: int = 128) -> Any:
    """A tiny random model in float32, its weights scaled up so that what heads do shows in the logits.

    d_model 32; 4 heads, of which the grouped families share 2 keys and values, some with `d_head` 12 and not 32 / 4.
    """
    torch.manual_seed(seed)
    config = (CONFIGS | REFUSED)[family](n_vocab, n_layers, n_ctx)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()
