"""Opening models: from memory, a folder or the (mocked) Hub, checked, with their own tokenizer, and told apart."""

import copy
import json
import shutil

import pytest
import torch
import transformers
from conftest import FAMILIES, TOKENIZERS, hf_model
from safetensors.torch import load_file, save_file

from ivlens.models import boot, fingerprint, known, load_model, model_identity, pocket_path

PROBE = torch.tensor([[5, 17, 40, 8, 99, 3]])


@pytest.mark.parametrize("family", [*FAMILIES, "olmo2", "granite"])
def test_logits_are_those_of_the_hugging_face_model(family):
    plain, wrapped = hf_model(family), load_model(hf_model=hf_model(family))
    with torch.no_grad():
        torch.testing.assert_close(wrapped(PROBE), plain(PROBE, use_cache=False).logits, atol=1e-4, rtol=1e-4)
    assert not wrapped.training and not any(parameter.requires_grad for parameter in wrapped.parameters())


def test_a_folder_opens_with_its_tokenizer(checkpoint, byte_level):
    for name in (checkpoint, str(checkpoint)):
        model = load_model(name)
        assert model.tokenizer("Input: big")["input_ids"] == byte_level("Input: big")["input_ids"]
        assert model_identity(model).name == str(checkpoint)
    assert model.tokenizer.pad_token == model.tokenizer.eos_token


def test_dtype_is_as_stored_or_as_asked(checkpoint):
    assert next(load_model(checkpoint).parameters()).dtype == torch.float32
    for dtype in ("bfloat16", torch.bfloat16, "torch.bfloat16"):
        model = load_model(checkpoint, dtype=dtype, device="cpu")
        assert next(model.parameters()).dtype == model.cfg.dtype == torch.bfloat16
    halved = hf_model("llama").half()
    halved.save_pretrained(checkpoint)
    assert next(load_model(checkpoint, device="cpu").parameters()).dtype == torch.float32
    assert next(load_model(hf_model=halved, dtype="float64").parameters()).dtype == torch.float64


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_tokenizer_given_is_kept_as_it_is(kind):
    tokenizer = TOKENIZERS[kind]()
    before = copy.deepcopy(tokenizer)
    model = load_model(hf_model=hf_model("llama"), tokenizer=tokenizer)
    assert model.tokenizer is tokenizer
    assert len(tokenizer) == len(before) and tokenizer.padding_side == before.padding_side
    before.pad_token = before.pad_token or before.eos_token
    assert tokenizer.special_tokens_map == before.special_tokens_map and tokenizer.init_kwargs == before.init_kwargs
    assert tokenizer("big house")["input_ids"] == before("big house")["input_ids"]
    assert model.cfg.d_vocab == 400


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_text_gets_a_bos_where_the_tokenizer_adds_one(kind):
    tokenizer = TOKENIZERS[kind]()
    model = load_model(hf_model=hf_model("llama"), tokenizer=tokenizer)
    ids = tokenizer("Input: big")["input_ids"]
    if tokenizer.eos_token_id == ids[-1]:
        ids = ids[:-1]
    assert model.to_tokens("Input: big")[0].tolist() == ids
    assert isinstance(model.generate("Input: big", max_new_tokens=2, verbose=False), str)


def test_a_model_without_tokenizer():
    model = load_model(hf_model=hf_model("gpt2"))
    assert model.tokenizer is None
    assert model_identity(model).name == "GPT2LMHeadModel"
    assert load_model("mine", hf_model=hf_model("gpt2")).cfg.model_name == "mine"


def test_pocket_opens_from_its_folder(checkpoint, monkeypatch, tmp_path):
    assert pocket_path().parts[-3:] == ("ivlens", "data", "pocket")
    monkeypatch.setattr(known, "pocket_path", lambda: checkpoint)
    assert model_identity(load_model()).name == "pocket"
    monkeypatch.setattr(known, "pocket_path", lambda: tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="model 'pocket'.*train it with `ivlens pocket train`"):
        load_model("pocket")


def test_hub_names_are_downloaded_once_and_without_remote_code(monkeypatch, byte_level):
    calls = []

    def download(name, **options):
        calls.append((name, options))
        return hf_model("llama"), {"missing_keys": set()}

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", download)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name, **options: byte_level)
    model = load_model("someone/some-model", revision="v1", dtype="float32")
    assert model.tokenizer is byte_level
    ((name, options),) = calls
    assert name == "someone/some-model" and options["revision"] == "v1" and options["trust_remote_code"] is False
    identity = model_identity(model)
    assert (identity.name, identity.revision) == ("someone/some-model", "v1")


def test_weights_that_are_not_there_are_not_made_up(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.0.mlp.other.weight"] = weights.pop("model.layers.0.mlp.up_proj.weight")
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights \(model.layers.0.mlp.up_proj.weight"):
        load_model(checkpoint)


@pytest.mark.parametrize(
    ("name", "value"), [("num_hidden_layers", 10**9), ("vocab_size", 2**40), ("hidden_size", -1), ("vocab_size", "9")]
)
def test_impossible_sizes_cost_no_memory(checkpoint, name, value):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(ValueError, match="config.json|cannot be opened by transformers"):
        load_model(checkpoint)


@pytest.mark.parametrize("name", ["", "x" * 1_000_000, "a\0b", "ĺ" * 200, "a/" + "b" * 256])
def test_no_names(name):
    with pytest.raises(ValueError, match="expected a checkpoint folder, a Hub name"):
        load_model(name)


@pytest.mark.parametrize("name", ["someone/some-model", "some-model"])
def test_hub_names_offline_are_one_clear_error(name, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("ivlens.common.hub.hub_answers", lambda timeout=3.0: False)
    with pytest.raises(ConnectionError, match=f"model '{name}' is no folder here, and could not be fetched") as caught:
        load_model(name)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "runs/one/step5"])
def test_missing_paths(name):
    with pytest.raises(FileNotFoundError, match=f"model '{name}': .* is no folder, expected a checkpoint folder"):
        load_model(name)


def test_folders_that_hold_no_model_or_no_tokenizer(checkpoint, tmp_path, words):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="is a folder without config.json"):
        load_model(tmp_path / "empty")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(checkpoint / name, bare / name)
    with pytest.raises(
        FileNotFoundError, match="has no tokenizer beside its weights .*; save one there, or pass tokenizer="
    ):
        load_model(bare)
    assert load_model(bare, tokenizer=words).tokenizer is words


def test_models_without_attention_heads():
    config = transformers.MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4)
    with pytest.raises(ValueError, match=r"MambaForCausalLM.*: no layer has attention heads \(layer 0 has MambaMixer"):
        load_model(hf_model=transformers.MambaForCausalLM(config))


def test_encoder_decoders(tmp_path):
    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    model = transformers.T5ForConditionalGeneration(config)
    with pytest.raises(ValueError, match=r"is an encoder-decoder \(t5\), expected a decoder-only"):
        load_model(hf_model=model)
    model.save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match=r"is an encoder-decoder \(t5\), expected a decoder-only"):
        load_model(tmp_path / "t5")


def test_a_hub_name_that_is_no_causal_model(monkeypatch):
    def refuse(name, **options):
        raise ValueError("Unrecognized configuration class <class 'T5Config'> for this kind of AutoModel.\nMany lines.")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    with pytest.raises(ValueError, match="model 'a/b' is no decoder-only language model") as caught:
        load_model("a/b")
    assert "Many lines" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value):
    broken = hf_model("llama")
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[3, 4] = value
    with pytest.raises(ValueError, match=r"weights that are not finite .* in model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(hf_model=broken)


def test_falcons_new_architecture_is_refused():
    config = transformers.FalconConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, new_decoder_architecture=True
    )
    with pytest.raises(ValueError, match="Falcon's new decoder architecture"):
        load_model(hf_model=transformers.FalconForCausalLM(config))


def test_the_self_check_finds_a_model_that_wrapping_changes(monkeypatch):
    faithful = boot._stand_in

    def damage(tokenizer):  # called between the two passes that are compared
        with torch.no_grad():
            plain.lm_head.weight.add_(0.1)
        return faithful(tokenizer)

    plain = hf_model("llama")
    monkeypatch.setattr(boot, "_stand_in", damage)
    with pytest.raises(
        ValueError, match=r"failed the self-check: wrapped, it gives other logits on padded prompts, off by [0-9.]+"
    ):
        load_model(hf_model=plain)


def with_adapters():
    peft = pytest.importorskip("peft")
    made = peft.get_peft_model(hf_model("llama"), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter))
    return made


def test_adapters_stay_trainable_and_nothing_else_is():
    tuned = with_adapters()
    model = load_model(hf_model=tuned.get_base_model())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    model(PROBE).sum().backward()
    assert all(parameter.grad is not None for parameter in tuned.parameters() if parameter.requires_grad)
    frozen = with_adapters().requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in load_model(hf_model=frozen.get_base_model()).parameters())


def test_the_hash_tells_whether_adapters_are_on(monkeypatch):
    tuned = with_adapters()
    model = load_model(hf_model=tuned.get_base_model())
    for threshold in (fingerprint._ALWAYS_HASHED, 10):
        monkeypatch.setattr(fingerprint, "_ALWAYS_HASHED", threshold)
        on = model_identity(model).weights_hash
        with tuned.disable_adapter():
            off = model_identity(model).weights_hash
        assert on == model_identity(model).weights_hash != off


def test_things_that_are_no_model_and_models_wrapped_already(llama):
    with pytest.raises(TypeError, match="hf_model is dict, expected a transformers model"):
        load_model(hf_model={})
    with pytest.raises(ValueError, match="is wrapped already; use the bridge load_model returned"):
        load_model(hf_model=llama.original_model)


def test_architectures_that_are_not_supported():
    plain = hf_model("llama")
    plain.config.architectures = ["NobodyForCausalLM"]
    plain.config.model_type = "nobody"
    with pytest.raises(ValueError, match="cannot be wrapped by transformer_lens"):
        load_model(hf_model=plain)


def test_dtypes_and_devices_that_do_not_exist(checkpoint):
    for dtype in ("float33", "int64", "nn"):
        with pytest.raises(ValueError, match=f"dtype is '{dtype}', expected 'auto'"):
            load_model(checkpoint, dtype=dtype)
    with pytest.raises(ValueError, match="device is 'gpu', expected 'auto', 'cpu'"):
        load_model(checkpoint, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no GPU here; use device='cpu'"):
            load_model(checkpoint, device="cuda")


def test_identity_of_the_same_and_of_other_weights(checkpoint):
    first, second = load_model(checkpoint), load_model(checkpoint)
    identity = model_identity(first)
    assert identity == model_identity(second)
    assert (identity.n_layers, identity.n_heads, identity.d_model, identity.d_head, identity.d_vocab) == (
        3,
        4,
        32,
        12,
        400,
    )
    assert identity.architecture == "LlamaForCausalLM" and str(identity).startswith(str(checkpoint))
    with torch.no_grad():
        second.original_model.model.norm.weight[0] += 1e-6
    assert model_identity(second).weights_hash != identity.weights_hash
    assert model_identity(load_model(checkpoint, dtype="bfloat16")).weights_hash != identity.weights_hash


def test_the_hash_sees_order_and_every_element_of_every_size():
    from ivlens.models.fingerprint import weights_hash

    class One(torch.nn.Module):
        def __init__(self, values):
            super().__init__()
            self.weight = torch.nn.Parameter(values)

    for n in (1, 3, 8, 17):
        values = torch.randn(n).bfloat16()
        seen = {weights_hash(One(values.clone()))}
        for i in range(n):
            changed = values.clone()
            changed[i] += 1
            seen.add(weights_hash(One(changed)))
        assert len(seen) == n + 1
    assert weights_hash(One(torch.tensor([1.0, 2.0, 3.0, 4.0]))) != weights_hash(
        One(torch.tensor([3.0, 4.0, 1.0, 2.0]))
    )
    assert weights_hash(One(torch.zeros(0))) != weights_hash(One(torch.zeros(0, 2)))
    sliced = torch.randn(5, 3)
    assert weights_hash(One(sliced[1:])) == weights_hash(One(sliced[1:].clone()))


def test_the_hash_of_a_large_model_is_kept_until_it_changes(monkeypatch):
    monkeypatch.setattr(fingerprint, "_ALWAYS_HASHED", 10)
    model = torch.nn.Linear(8, 8)
    first = fingerprint.weights_hash(model)
    monkeypatch.setattr(fingerprint, "_checksums", lambda parameter: pytest.fail("hashed again"))
    assert fingerprint.weights_hash(model) == first
    monkeypatch.undo()
    with torch.no_grad():
        model.weight[0, 0] += 1
    second = fingerprint.weights_hash(model)
    assert second != first
    model.weight.data += 1e-3  # as merging an adapter does it: no version is counted
    assert fingerprint.weights_hash(model) not in (first, second)


def test_identity_of_what_is_no_bridge():
    with pytest.raises(TypeError, match="model is LlamaForCausalLM, expected the TransformerBridge"):
        model_identity(hf_model("llama"))
