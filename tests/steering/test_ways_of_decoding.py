"""However a text is decoded, steering gives what a loop by hand gives on the plain model; or it is refused."""

import copy
import threading
from contextlib import contextmanager
from functools import cache

import pytest
import torch
import transformers
from conftest import random_prompts
from families import hf_model
from test_steering import vector_for
from transformers import cache_utils

from ivlens.effects.measure import head_effects
from ivlens.models import load_model, pocket_path
from ivlens.steering.steer import steer
from ivlens.tasks import load_task
from ivlens.vectors import InstructionVector

N_NEW = 7
LAYER = 1
POSITIONS = ("prompt", "every", "all", slice(2, 5))
BEGUN = {"all": slice(4, None), str(slice(2, 5)): slice(4, 5)}  # what is left to steer behind four cached tokens
MASK = torch.rand(4, 9, generator=torch.Generator().manual_seed(2)) < 0.4  # for `random_prompts()`
GREEDY = {"max_new_tokens": N_NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module", params=("llama", "gpt2", "gemma2"))
def pair(request, new_model, byte_level):
    """A bridge, and the plain model it was made of; Gemma 2 has a window shorter than the prompts."""
    return new_model(request.param, byte_level), hf_model(request.param)


def blocks(plain):
    return next(module for module in plain.modules() if isinstance(module, torch.nn.ModuleList))


@contextmanager
def steered_plainly(plain, iv, n_prompt, positions):
    """The vector by a plain hook of PyTorch, in passes that hold the whole sequence."""

    places = {"prompt": slice(n_prompt - 1, n_prompt), "every": slice(n_prompt - 1, None), "all": slice(None)}

    def hook(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(positions, torch.Tensor):  # beams repeat each row
            mask = positions.repeat_interleave(len(hidden) // len(positions), 0)
            hidden[:, : mask.shape[1]] += mask[..., None] * iv.theta
        else:
            hidden[:, places[positions] if isinstance(positions, str) else positions] += iv.theta

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


@cache
def prompt():
    """One prompt of nine tokens, the last of which stand in it before, so that prompt lookup finds something."""
    tokens, _ = random_prompts((9,))
    tokens[0, -2:] = tokens[0, :2]
    return tokens


@pytest.mark.parametrize("way", WAYS)
def test_one_prompt_is_written_as_by_hand(pair, way):
    bridge, plain = pair
    iv = vector_for(bridge)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), prompt()], 1)
    mask = (torch.arange(12) >= 3).long()[None]
    if "early exit" in way and bridge.cfg.architecture == "GPT2LMHeadModel":
        with pytest.raises(ValueError, match="does not exit early"), steer(bridge, iv, layer=LAYER):
            write(bridge, prompt(), **WAYS[way](bridge, prompt()))
        assert bridge.original_model.config.num_hidden_layers == 3
        return
    unsteered = by_hand(plain, prompt(), 0 * iv, "prompt")
    for positions in POSITIONS:
        expected = by_hand(plain, prompt(), iv, BEGUN.get(str(positions), positions) if "begun" in way else positions)
        assert isinstance(positions, slice) or not torch.equal(expected, unsteered)  # GPT-2 hardly looks back here
        options = WAYS[way](bridge, prompt())
        with steer(bridge, iv, layer=LAYER, positions=positions):
            assert torch.equal(write(bridge, prompt(), **options), expected)
        if "begun" not in way:
            options = WAYS[way](bridge, padded)
            with steer(bridge, iv, layer=LAYER, positions=positions):
                assert torch.equal(write(bridge, padded, attention_mask=mask, **options)[:, 3:], expected)


@pytest.mark.parametrize("way", ["assistant", "prompt lookup", "chunks of 3", "static", "begun cache"])
def test_heads_are_replaced_where_the_vector_would_be_added(llama, way):
    iv = vector_for(llama)
    for positions in POSITIONS[:2] if "begun" in way else POSITIONS:
        options = WAYS[way](llama, prompt())
        with steer(llama, iv, mode="heads", positions=positions):
            expected = write(llama, prompt(), use_past_kv_cache=False, use_cache=False)
            assert torch.equal(write(llama, prompt(), **options), expected)


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
    "forced and biased tokens": {"sequence_bias": [[[5], 0.5]], "bad_words_ids": [[7]], "forced_eos_token_id": 9},
}


@pytest.mark.parametrize("way", BATCH_WAYS)
def test_a_padded_batch_is_written_as_by_the_plain_model_without_cache(pair, way):
    bridge, plain = pair
    tokens, mask = random_prompts()
    iv = vector_for(bridge)
    options = {**GREEDY, "attention_mask": mask, **BATCH_WAYS[way]}
    reference = {name: value for name, value in options.items() if "cache" not in name and "chunk" not in name}

    def plainly(iv, positions):
        torch.manual_seed(5)
        with steered_plainly(plain, iv, tokens.shape[1], positions):
            return plain.generate(tokens, **reference, use_cache=False)

    unsteered = plainly(0 * iv, "prompt")
    first_three = torch.cumsum(mask, 1).le(3) & mask.bool()  # of each row's own tokens
    for positions in (*POSITIONS[:3], MASK, slice(3)):
        expected = plainly(iv, first_three if isinstance(positions, slice) else positions)
        assert isinstance(positions, slice) or not torch.equal(expected, unsteered)
        torch.manual_seed(5)
        with steer(bridge, iv, layer=LAYER, positions=positions):
            assert torch.equal(bridge.original_model.generate(tokens, **options), expected)


DRAFTS = {
    "assistant": lambda bridge, tokenizer: {"assistant_model": small(bridge)},
    "early exit": lambda bridge, tokenizer: {"assistant_early_exit": 2},
    "prompt lookup": lambda bridge, tokenizer: {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1},
    "assistant with its own tokenizer": lambda bridge, tokenizer: {
        "assistant_model": hf_model("llama", n_vocab=len(tokenizer), n_layers=1),
        "tokenizer": bridge.tokenizer,
        "assistant_tokenizer": copy.deepcopy(tokenizer),  # transformers keeps assistants by their tokenizers
    },
}


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("way", DRAFTS)
def test_drafted_tokens_are_judged_by_the_steered_model(llama, metaspace, way, positions):
    """Sampled drafts draw other numbers than a plain loop, so the distributions they were judged by are compared."""
    iv, plain = vector_for(llama), hf_model("llama")
    with steer(llama, iv, layer=LAYER, positions=positions):
        torch.manual_seed(3)
        found = llama.original_model.generate(
            prompt(),
            **{**GREEDY, "do_sample": True},
            output_logits=True,
            return_dict_in_generate=True,
            **DRAFTS[way](llama, metaspace),
        )
        greedy = llama.original_model.generate(prompt(), **GREEDY, **DRAFTS[way](llama, metaspace))
    expected = logits_by_hand(plain, found.sequences, 9, iv, positions)[:, 8:-1]
    torch.testing.assert_close(torch.stack(found.logits, 1), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(greedy, by_hand(plain, prompt(), iv, positions))


def test_an_assistant_made_of_the_same_blocks_is_steered_or_refused(llama):
    iv, expected = vector_for(llama), by_hand(hf_model("llama"), prompt(), vector_for(llama), "prompt")
    body, blocks_only = (transformers.LlamaForCausalLM(llama.original_model.config).eval() for _ in range(2))
    body.model = llama.original_model.model
    blocks_only.model.layers = llama.original_model.model.layers
    with steer(llama, iv, layer=LAYER):
        assert torch.equal(llama.original_model.generate(prompt(), assistant_model=body, **GREEDY), expected)
        with pytest.raises(RuntimeError, match="must not share its blocks"):
            llama.original_model.generate(prompt(), assistant_model=blocks_only, **GREEDY)


def test_the_built_in_model_answers_alike_whoever_drafts():
    """Greedy steered text, whoever drafts it: unsteered text came back once."""
    bridge = load_model("pocket")
    iv = InstructionVector.from_effects(head_effects(bridge, load_task("antonym"), n_prompts=8))
    assistant = transformers.AutoModelForCausalLM.from_pretrained(str(pocket_path()), dtype=torch.float32).eval()
    tokens = torch.tensor([bridge.tokenizer("Input: hot\nOutput:")["input_ids"]])
    ways = {"assistant_model": assistant}, {"prompt_lookup_num_tokens": 2}, {"prefill_chunk_size": 3}
    options = {"max_new_tokens": 2, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
    plain = bridge.hf_generate(tokens, **options)
    with steer(bridge, iv, layer=1, alpha=4, site="attn_out"):
        expected = bridge.generate(tokens, max_new_tokens=2, do_sample=False, use_past_kv_cache=False, verbose=False)
        assert not torch.equal(expected, plain)
        for way in ways:
            assert torch.equal(bridge.hf_generate(tokens, **options, **way), expected)


def cached_loop(model, head=lambda output: output.logits, cache=None):
    """A loop by hand that calls the model, or a part of it, with a cache."""
    tokens = following = prompt()
    for _ in range(N_NEW):
        with torch.no_grad():
            output = model(following, past_key_values=cache, use_cache=True)
            following = head(output)[:, -1:].argmax(-1)
        cache, tokens = output.past_key_values, torch.cat([tokens, following], 1)
    return tokens


@pytest.mark.parametrize("positions", POSITIONS)
def test_loops_written_by_hand(llama, positions):
    iv, wrapped = vector_for(llama), llama.original_model
    expected = by_hand(hf_model("llama"), prompt(), iv, positions)
    with steer(llama, iv, layer=LAYER, positions=positions):
        assert torch.equal(cached_loop(wrapped), expected)
        assert torch.equal(cached_loop(wrapped, cache=static_cache(llama, prompt())), expected)
        body, head = wrapped.base_model, wrapped.lm_head
        assert torch.equal(cached_loop(body, lambda output: head(output.last_hidden_state)), expected)


CUSTOM = """
import torch
def generate(model, inputs=None, max_new_tokens=1, **options):
    for _ in range(max_new_tokens):
        inputs = torch.cat([inputs, model(inputs, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return inputs
"""


def test_custom_generate_from_a_folder(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (tmp_path / "custom_generate").mkdir()
    (tmp_path / "custom_generate" / "generate.py").write_text(CUSTOM)
    iv = vector_for(llama)
    with steer(llama, iv, layer=LAYER):
        found = llama.original_model.generate(
            prompt(), custom_generate=str(tmp_path), trust_remote_code=True, max_new_tokens=N_NEW
        )
    assert torch.equal(found, by_hand(hf_model("llama"), prompt(), iv, "prompt"))


def test_streamers_and_pipelines(llama):
    iv = vector_for(llama)
    expected = by_hand(hf_model("llama"), prompt(), iv, "prompt")
    written = []
    streamer = transformers.TextIteratorStreamer(llama.tokenizer)
    with steer(llama, iv, layer=LAYER):
        thread = threading.Thread(
            target=lambda: written.append(llama.original_model.generate(prompt(), streamer=streamer, **GREEDY))
        )
        thread.start()
        text = "".join(streamer)
        thread.join(60)
    assert torch.equal(written[0], expected) and text == llama.tokenizer.decode(expected[0])
    text = "Instruction: Give the big"
    tokens = llama.tokenizer(text, return_tensors="pt").input_ids
    pipeline = transformers.pipeline("text-generation", model=llama.original_model, tokenizer=llama.tokenizer)
    with steer(llama, iv, layer=LAYER):
        (found,) = pipeline(text, return_tensors=True, max_new_tokens=N_NEW, do_sample=False, eos_token_id=None)
    expected = by_hand(hf_model("llama"), tokens, iv, "prompt")
    assert found["generated_token_ids"] == expected[0].tolist()


def test_a_second_turn_keeps_what_the_first_one_added(llama):
    iv, plain, wrapped = vector_for(llama), hf_model("llama"), llama.original_model
    said = torch.tensor([[17, 33, 52]])
    with steer(llama, iv, layer=LAYER):
        first = wrapped.generate(prompt(), return_dict_in_generate=True, **GREEDY)
        both = torch.cat([first.sequences, said], 1)
        second = wrapped.generate(both, past_key_values=first.past_key_values, **GREEDY)
    expected = torch.cat([by_hand(plain, prompt(), iv, "prompt"), said], 1)
    assert torch.equal(both, expected)
    with steered_plainly(plain, iv, prompt().shape[1], "prompt"):
        assert torch.equal(second, by_hand(plain, expected, iv, "prompt"))


def test_only_the_new_tokens_beside_a_begun_cache(llama):
    iv, wrapped = vector_for(llama), llama.original_model
    expected = by_hand(hf_model("llama"), prompt(), iv, "prompt")
    whole = torch.ones_like(prompt())
    for chunks in (None, 2):
        cache = begun_cache(llama, prompt())
        with steer(llama, iv, layer=LAYER):
            found = wrapped.generate(
                prompt()[:, 4:], attention_mask=whole, past_key_values=cache, prefill_chunk_size=chunks, **GREEDY
            )
        assert torch.equal(found[:, 5:], expected[:, 9:])


def test_embeddings_alone_and_no_prompt_at_all(llama):
    iv, plain, wrapped = vector_for(llama), hf_model("llama"), llama.original_model
    embeds = wrapped.get_input_embeddings()(prompt())
    expected = by_hand(plain, prompt(), iv, "prompt")[:, 9:]
    with steer(llama, iv, layer=LAYER):
        assert torch.equal(wrapped.generate(inputs_embeds=embeds, **GREEDY), expected)
        assert torch.equal(wrapped.generate(inputs_embeds=embeds, cache_implementation="static", **GREEDY), expected)
        for cached in (True, False):
            options = {"do_sample": False, "stop_at_eos": False, "verbose": False, "use_past_kv_cache": cached}
            assert torch.equal(llama.generate(embeds, max_new_tokens=N_NEW, **options), expected)
        begun = wrapped.generate(**GREEDY, bos_token_id=1)
    assert torch.equal(begun, by_hand(plain, torch.tensor([[1]]), iv, "prompt"))


def test_the_cache_that_generate_returns_is_that_of_the_steered_text(llama):
    iv = vector_for(llama)
    with steer(llama, iv, layer=LAYER):
        text, kept = llama.generate(
            prompt(), max_new_tokens=N_NEW, do_sample=False, stop_at_eos=False, verbose=False, return_cache=True
        )
    _, plain = llama.run_with_cache(text)
    moved = kept[f"blocks.{LAYER}.hook_out"] - plain[f"blocks.{LAYER}.hook_out"]
    assert torch.equal(moved.abs().amax(-1)[0] > 1e-3, torch.arange(text.shape[1]) == 8)


def test_a_static_cache_does_not_compile_while_steered(llama):
    iv, wrapped = vector_for(llama), llama.original_model
    compiling = transformers.CompileConfig(backend="eager")
    compiling._compile_all_devices = True  # as on a GPU
    with steer(llama, iv, layer=LAYER):
        found = wrapped.generate(prompt(), cache_implementation="static", compile_config=compiling, **GREEDY)
    assert torch.equal(found, by_hand(hf_model("llama"), prompt(), iv, "prompt"))
    assert "_valid_auto_compile_criteria" not in wrapped.__dict__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": 1.5}, "guidance_scale .1.5.: .*without condition"),
        ({"generation_config": transformers.GenerationConfig(guidance_scale=2.0)}, "guidance_scale"),
        ({"guidance_scale": 1.0, "negative_prompt_ids": torch.tensor([[5]])}, "negative prompt"),
        ({"token_healing": True}, "rewrites the prompt's last token"),
        ({"assistant_ensemble_weight": 0.5, "prompt_lookup_num_tokens": 2}, "lets the assistant"),
        ({"use_mtp": True}, "not tried"),
        ({"cache_implementation": "paged"}, "continuous batching"),
        ({"cache_implementation": "offloaded"}, "needs a GPU"),
        ({"cache_implementation": "offloaded_static"}, "needs a GPU"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "trust_remote_code"),  # these four left transformers for the hub
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, "trust_remote_code"),
        ({"num_beams": 3, "force_words_ids": [[5]]}, "trust_remote_code"),
        ({"dola_layers": "low"}, "trust_remote_code"),
        ({"attention_mask": torch.ones(1, 1, 9, 9)}, "expected .batch, pos."),
        ({"attention_mask": torch.ones(1, 7)}, "prompt's end is unknown"),
        ({"past_key_values": ()}, "expected a Cache"),
        ({"inputs": torch.ones(1, 0, dtype=torch.long)}, "without a token"),
        ({"inputs_embeds": torch.ones(1, 7, 32)}, "expected equally many"),
        ({"inputs_embeds": torch.ones(1, 9, 32), "prefill_chunk_size": 2}, "in chunks"),
        ({"inputs_embeds": torch.ones(1, 9, 32), "prompt_lookup_num_tokens": 2}, "loses drafted tokens"),
    ],
)
def test_ways_that_cannot_be_followed_are_refused(llama, options, message):
    wrapped, n_passes = llama.original_model, []
    handle = wrapped.register_forward_pre_hook(lambda *_: n_passes.append(1))
    try:
        with pytest.raises(ValueError, match=message), steer(llama, vector_for(llama), layer=LAYER):
            wrapped.generate(**{"inputs": prompt(), **GREEDY, **options})
    finally:
        handle.remove()
    assert not n_passes


def test_caches_that_transformers_itself_misreads_are_refused(llama):
    wrapped = llama.original_model
    for tokens, n, more, message in (
        (None, 9, {"bos_token_id": 1}, "prompt's end is unknown"),
        (prompt(), 9, {}, "prompt's end is unknown"),  # nothing is left to read
        (prompt()[:, 6:], 6, {}, "prompt's end is unknown"),  # the new tokens alone, without the whole mask
        (prompt(), 4, {"assistant_model": small(llama)}, "a second time"),
        (prompt(), 4, {"prompt_lookup_num_tokens": 2}, "a second time"),
    ):
        cache = begun_cache(llama, prompt(), n)
        with pytest.raises(ValueError, match=message), steer(llama, vector_for(llama), layer=LAYER):
            wrapped.generate(tokens, past_key_values=cache, **GREEDY, **more)


def test_padding_on_the_right_is_refused_by_every_generate(llama):
    tokens, mask = random_prompts(side="right")
    options = {"max_new_tokens": 2, "do_sample": False}
    quiet = {**options, "verbose": False}
    wrapped = llama.original_model
    for run in (
        lambda: wrapped.generate(tokens, attention_mask=mask, **GREEDY),
        lambda: wrapped.generate(tokens, attention_mask=mask.bool(), **GREEDY),
        lambda: wrapped.generate(tokens, **GREEDY),
        lambda: wrapped.generate(tokens[1:2], **GREEDY),
        lambda: wrapped.generate(inputs_embeds=torch.ones(4, 9, 32), attention_mask=mask, **GREEDY),
        lambda: llama.hf_generate(tokens, attention_mask=mask, **options),
        lambda: llama.hf_generate(tokens, **options),
        lambda: llama.generate(tokens, attention_mask=mask, **quiet),
        lambda: llama.generate(tokens, padding_side="right", **quiet),
        lambda: llama.generate(tokens, **quiet),
        lambda: list(llama.generate_stream(tokens, attention_mask=mask, **quiet)),
    ):
        with pytest.raises(ValueError, match="on the right|last prompt token"):
            with steer(llama, vector_for(llama), layer=LAYER):
                run()


def test_a_pass_of_another_prompt_inside_generate_is_refused(llama):
    wrapped = llama.original_model
    guidance = transformers.UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, wrapped)

    def asks(tokens, scores):
        wrapped(tokens.flip(1))
        return scores

    for processor in (guidance, asks):
        with pytest.raises(ValueError, match="another prompt"), steer(llama, vector_for(llama), layer=LAYER):
            wrapped.generate(prompt(), logits_processor=transformers.LogitsProcessorList([processor]), **GREEDY)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_virtual_tokens_before_the_prompt_are_refused(new_model, byte_level, kind):
    """They move the prompt to other columns than the call of `generate` says."""
    peft = pytest.importorskip("peft")
    bridge = new_model("llama", byte_level)
    adapted = peft.get_peft_model(
        bridge.original_model, getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    for cached in (True, False):
        with pytest.raises(ValueError, match="virtual tokens"), steer(bridge, vector_for(bridge), layer=LAYER):
            adapted.generate(input_ids=prompt(), attention_mask=torch.ones_like(prompt()), use_cache=cached, **GREEDY)


def test_what_goes_past_the_watched_methods_is_refused(llama):
    wrapped = llama.original_model
    before, own, stream = wrapped.generate, llama.generate, llama.generate_stream
    for run in (
        lambda: before(prompt(), **GREEDY),
        lambda: type(wrapped).generate(wrapped, prompt(), **GREEDY),
        lambda: own(prompt(), max_new_tokens=2, verbose=False),
        lambda: list(stream(prompt(), max_new_tokens=2, verbose=False)),
        lambda: llama.blocks[LAYER](torch.ones(1, 4, 32)),
    ):
        with pytest.raises(RuntimeError, match="taken from the model before|outside a forward pass"):
            with steer(llama, vector_for(llama), layer=LAYER):
                run()
    for run in (
        lambda: wrapped.generate_batch(prompt().tolist()),
        lambda: wrapped.init_continuous_batching(),
        lambda: wrapped(prompt(), cu_seq_lens_q=torch.tensor([0, 4, 9], dtype=torch.int32)),
    ):
        with pytest.raises(ValueError, match="in(to)? one row"), steer(llama, vector_for(llama), layer=LAYER):
            run()
    with pytest.raises(ValueError, match="original_model"), steer(llama, vector_for(llama), layer=LAYER):
        wrapped.generate(prompt(), assistant_model=llama, **GREEDY)


def test_a_mask_given_by_position_is_seen(llama):
    tokens, mask = random_prompts(side="right")
    with steer(llama, vector_for(llama), layer=LAYER), torch.no_grad():
        assert torch.equal(
            llama.original_model(tokens, mask).logits, llama.original_model(tokens, attention_mask=mask).logits
        )
