"""However a text is decoded, steering gives what a loop by hand gives on the plain model; or it is refused."""

import copy
import threading
from contextlib import contextmanager

import pytest
import torch
import transformers
from conftest import random_prompts
from families import hf_model
from test_steering import vector_for
from transformers import cache_utils

from ivlens.steering.steer import steer

N_NEW = 7
LAYER = 1
POSITIONS = ("prompt", "every")


@pytest.fixture(scope="module", params=("llama", "gpt2", "gemma2"))
def pair(request, new_model, byte_level):
    """A bridge, and the plain model it was made of; Gemma 2 has a window shorter than the prompts."""
    return new_model(request.param, byte_level), hf_model(request.param)


def blocks(plain):
    return next(module for module in plain.modules() if isinstance(module, torch.nn.ModuleList))


@contextmanager
def steered_plainly(plain, iv, n_prompt, positions):
    """The vector by a plain hook of PyTorch, in passes that hold the whole sequence."""

    def hook(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden[:, n_prompt - 1 : n_prompt if positions == "prompt" else None] += iv.theta

    handle = blocks(plain)[LAYER].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def logits_by_hand(plain, tokens, n_prompt, iv, positions):
    """Logits at every position, in one pass without a cache."""
    with steered_plainly(plain, iv, n_prompt, positions), torch.no_grad():
        return plain(tokens, use_cache=False).logits


def by_hand(plain, tokens, iv, positions, n=N_NEW):
    """Greedy decoding of one prompt, one pass over the whole text for each token."""
    n_prompt = tokens.shape[1]
    for _ in range(n):
        following = logits_by_hand(plain, tokens, n_prompt, iv, positions)[:, -1:].argmax(-1)
        tokens = torch.cat([tokens, following], 1)
    return tokens


def write(bridge, tokens, **options):
    options = {"max_new_tokens": N_NEW, "do_sample": False, "stop_at_eos": False, **options}
    return bridge.hf_generate(tokens, **options)


def small(bridge):
    return hf_model("llama", n_layers=1, seed=3)


def twin(bridge):
    return hf_model(bridge.original_model.config.model_type)


def rounded_cache(bridge, tokens):
    """A quantised cache whose numbers are kept as they are, so that only its counting differs."""

    class Layer(cache_utils.QuantizedLayer):
        def __init__(self):
            super().__init__(nbits=4, axis_key=0, axis_value=0, q_group_size=16, residual_length=4)

        def _quantize(self, tensor, axis):
            return tensor

        def _dequantize(self, tensor):
            return tensor

    return cache_utils.Cache(layers=[Layer() for _ in range(bridge.cfg.n_layers)])


def static_cache(bridge, tokens):
    return transformers.StaticCache(config=bridge.original_model.config, max_cache_len=tokens.shape[1] + N_NEW + 5)


def begun_cache(bridge, tokens, n=4):
    """The prompt's first tokens, read before steering began."""
    cache = transformers.DynamicCache(config=bridge.original_model.config)
    with torch.no_grad():
        bridge.original_model(tokens[:, :n], past_key_values=cache)
    return cache


WAYS = {
    "greedy": lambda bridge, tokens: {},
    "no cache": lambda bridge, tokens: {"use_past_kv_cache": False, "use_cache": False},
    "assistant": lambda bridge, tokens: {"assistant_model": small(bridge)},
    "assistant that agrees": lambda bridge, tokens: {"assistant_model": twin(bridge)},
    "itself as assistant": lambda bridge, tokens: {"assistant_model": bridge.original_model},
    "early exit": lambda bridge, tokens: {"assistant_early_exit": 2},
    "early exit below the vector": lambda bridge, tokens: {"assistant_early_exit": 1},
    "prompt lookup": lambda bridge, tokens: {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1},
    "chunks of 3": lambda bridge, tokens: {"prefill_chunk_size": 3},
    "chunks of 1": lambda bridge, tokens: {"prefill_chunk_size": 1},
    "chunks of exactly the prompt": lambda bridge, tokens: {"prefill_chunk_size": tokens.shape[1]},
    "static": lambda bridge, tokens: {"cache_implementation": "static"},
    "static, made by hand": lambda bridge, tokens: {"past_key_values": static_cache(bridge, tokens)},
    "static in chunks": lambda bridge, tokens: {"cache_implementation": "static", "prefill_chunk_size": 2},
    "dynamic, made by hand": lambda bridge, tokens: {"past_key_values": transformers.DynamicCache()},
    "quantised": lambda bridge, tokens: {"past_key_values": rounded_cache(bridge, tokens)},
    "quantised in chunks": lambda bridge, tokens: {
        "past_key_values": rounded_cache(bridge, tokens),
        "prefill_chunk_size": 3,
    },
    "begun cache": lambda bridge, tokens: {"past_key_values": begun_cache(bridge, tokens)},
    "begun cache in chunks": lambda bridge, tokens: {
        "past_key_values": begun_cache(bridge, tokens),
        "prefill_chunk_size": 2,
    },
    "one beam of sampling at top 1": lambda bridge, tokens: {"do_sample": True, "top_k": 1},
    "embeddings": lambda bridge, tokens: {"inputs_embeds": bridge.original_model.get_input_embeddings()(tokens)},
}


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("way", WAYS)
def test_one_prompt_is_written_as_by_hand(pair, way, positions):
    bridge, plain = pair
    tokens, _ = random_prompts((9,))
    tokens[0, -2:] = tokens[0, :2]  # something that prompt lookup finds
    iv = vector_for(bridge)
    options = WAYS[way](bridge, tokens)
    if "early exit" in way and bridge.cfg.architecture == "GPT2LMHeadModel":
        with pytest.raises(ValueError, match="does not exit early"), steer(bridge, iv, layer=LAYER):
            write(bridge, tokens, **options)
        assert bridge.original_model.config.num_hidden_layers == 3
        return
    expected = by_hand(plain, tokens, iv, positions)
    assert not torch.equal(by_hand(plain, tokens, 0 * iv, positions), expected)
    with steer(bridge, iv, layer=LAYER, positions=positions):
        assert torch.equal(write(bridge, tokens, **options), expected)


BATCH_WAYS = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "sampling": {"do_sample": True},
    "sampling, three of each": {"do_sample": True, "num_return_sequences": 3},
    "sampling at the nucleus": {"do_sample": True, "top_p": 0.9, "temperature": 0.7},
    "beams": {"num_beams": 3},
    "beams, two of each": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.0},
    "beams of sampling": {"num_beams": 3, "do_sample": True},
    "chunks": {"prefill_chunk_size": 4},
    "chunks and beams": {"prefill_chunk_size": 4, "num_beams": 3},
    "static": {"cache_implementation": "static"},
    "static and beams": {"cache_implementation": "static", "num_beams": 3},
    "static, beams and chunks": {"cache_implementation": "static", "num_beams": 2, "prefill_chunk_size": 5},
    "penalties": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
    "allowed tokens": {"prefix_allowed_tokens_fn": lambda row, ids: list(range(40 * row, 40 * row + 60))},
    "forced and biased tokens": {"sequence_bias": [[[5], 3.0]], "bad_words_ids": [[7]], "forced_eos_token_id": 9},
}


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("way", BATCH_WAYS)
def test_a_padded_batch_is_written_as_by_the_plain_model_without_cache(pair, way, positions):
    bridge, plain = pair
    tokens, mask = random_prompts()
    iv = vector_for(bridge)
    options = {"max_new_tokens": N_NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **BATCH_WAYS[way]}
    uncached = {name: value for name, value in options.items() if name not in ("cache_implementation", "prefill_chunk_size")}
    with steered_plainly(plain, iv, tokens.shape[1], positions):
        torch.manual_seed(5)
        expected = plain.generate(tokens, attention_mask=mask, **{**uncached, "use_cache": False})
    torch.manual_seed(5)
    with steer(bridge, iv, layer=LAYER, positions=positions):
        found = bridge.original_model.generate(tokens, attention_mask=mask, **options)
    assert torch.equal(found, expected)
