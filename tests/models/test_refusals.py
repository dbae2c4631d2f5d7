"""What cannot be measured is refused at load, in one short sentence that names the true reason."""

import json
import shutil
import tempfile

import pytest
import torch
import transformers
from conftest import word_tokenizer
from families import CONFIGS, REFUSED, hf_model
from safetensors import safe_open

from ivlens.models import load_model, pocket_path

REASONS = {
    "falcon_new": "has Falcon's new decoder architecture, which transformer_lens wraps with wrong logits",
    "gpt_bigcode_heads": "GPTBigCodeArchitectureAdapter only supports multi_query=True model",
    "gemma3n": r"keeps several residual streams \(AltUp\)",
    "gemma4_text": "heads of another size than the model's",
    "jetmoe": r"attention in layer 0 has no output projection of its own \(W_O\)",
    "hrm_text": "it has no plain stack of layers",
    "mamba2": r"no layer has attention heads \(layer 0 has Mamba2Mixer\)",
    "recurrent_gemma": "reads padding as text and keeps its state outside the cache",
    "phimoe": "it has no adapter for this architecture",
    "persimmon": "it has no adapter for this architecture",
    "opt_post_norm": r"failed the self-check: wrapped, it fails \(RuntimeError",
}
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}


def check(error, reason, label):
    text = str(error.value)
    assert error.match(reason)
    assert len(text.replace(label, "")) <= 170 and "Available architectures" not in text and "again" not in text


@pytest.mark.parametrize("family", REFUSED)
def test_the_true_reason_in_one_short_sentence(family):
    plain = hf_model(family)
    with pytest.raises(ValueError) as error:
        load_model(hf_model=plain)
    check(error, REASONS[family], "")


@pytest.mark.parametrize("family", ["gemma3n", "gemma4_text", "jetmoe", "phimoe"])
def test_the_same_from_a_folder(family, tmp_path):
    hf_model(family).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError) as error:
        load_model(tmp_path)
    check(error, REASONS[family], str(tmp_path))


def test_one_attention_in_two_layers():
    """A hook on it would edit both layers."""
    plain = hf_model("zamba2")
    plain.model.layers[2].shared_transformer = plain.model.layers[1].shared_transformer
    with pytest.raises(ValueError, match="the layers 1, 2 share one attention; use another model"):
        load_model(hf_model=plain)


def test_models_that_see_are_refused_before_anything_is_asked_of_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", lambda *_, **__: pytest.fail("asked the hub"))
    text = {"model_type": "mistral", "vocab_size": 400, "num_hidden_layers": 2, "num_key_value_heads": 2, **SMALL}
    image = {"model_type": "pixtral", "num_hidden_layers": 1, "image_size": 28, "patch_size": 14, **SMALL}
    config = transformers.Mistral3Config(text_config=text, vision_config=image, image_token_index=10)
    plain = transformers.Mistral3ForConditionalGeneration(config)
    plain.save_pretrained(tmp_path)
    with pytest.raises(ValueError) as error:
        load_model(tmp_path)
    check(error, r"\(mistral3\) takes more than text, expected a language model alone", str(tmp_path))


@pytest.mark.parametrize("positions", [None, "rope", "nope"])
def test_an_attention_only_hybrid_opens_whatever_its_positions(positions):
    given = {} if positions is None else {"position_embedding_type": positions}
    config = transformers.GraniteMoeHybridConfig(
        vocab_size=400,
        num_hidden_layers=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=24,
        layer_types=["attention"] * 2,
        mamba_n_heads=8,
        mamba_d_head=8,
        **SMALL,
        **given,
    )
    torch.manual_seed(0)
    plain = transformers.AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.tensor([[5, 17, 40, 8]])
    with torch.no_grad():
        want = plain(tokens, use_cache=False).logits
        torch.testing.assert_close(load_model(hf_model=plain)(tokens, use_cache=False), want, atol=1e-5, rtol=0)


def test_weights_that_are_not_in_memory():
    with torch.device("meta"):
        plain = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"](400, 2, 64))
    with pytest.raises(ValueError) as error:
        load_model(hf_model=plain)
    check(error, r"has weights on the disk \(meta tensors\), expected all of them in memory", "")


def test_weights_that_accelerate_put_on_the_disk():
    pytest.importorskip("accelerate")
    with tempfile.TemporaryDirectory() as folder:
        hf_model("llama").save_pretrained(folder)
        places = {
            "model.embed_tokens": "cpu",
            "model.layers.0": "cpu",
            "model.layers.1": "disk",
            "model.layers.2": "cpu",
        }
        places |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
        plain = transformers.AutoModelForCausalLM.from_pretrained(
            folder, device_map=places, offload_folder=f"{folder}/offloaded"
        )
        with pytest.raises(ValueError, match="has weights on the disk"):
            load_model(hf_model=plain)


# ---- no path in a file is followed


@pytest.mark.parametrize(
    "name", ["../elsewhere/model.safetensors", "inner/model.safetensors", "", "..", 5, ["a"], "a\0b"]
)
def test_an_index_that_leads_elsewhere(tmp_path, name):
    folder = shutil.copytree(pocket_path(), tmp_path / "model")
    for place in (tmp_path / "elsewhere", folder / "inner"):
        place.mkdir()
        shutil.copy(folder / "model.safetensors", place)
    with safe_open(folder / "model.safetensors", "pt") as opened:
        names = list(opened.keys())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, name)}))
    with pytest.raises(ValueError, match=r"index.json' names .*, expected names of files directly in its folder"):
        load_model(folder)
    for text in ("[]", "{", '{"weight_map": 3}'):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ValueError, match="index.json is no index"):
            load_model(folder)


def test_adapters_that_name_others(tmp_path):
    about = {"peft_type": "XLORA", "base_model_name_or_path": "pocket", "adapters": {"a": "/elsewhere"}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="names adapters that lie elsewhere, expected adapters of its own"):
        load_model(tmp_path)


def test_a_tokenizer_without_its_vocabulary(tmp_path):
    """transformers opens it as one that makes no tokens of any text."""
    folder = shutil.copytree(pocket_path(), tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    about = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(about | {"tokenizer_class": "GPT2Tokenizer"}))
    with pytest.raises(FileNotFoundError, match="it makes no tokens of a text"):
        load_model(folder)
