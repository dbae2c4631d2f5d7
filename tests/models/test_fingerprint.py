"""A model's identity: another one wherever numbers may be, the same one wherever they cannot."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import TOKENIZERS, byte_level_tokenizer, tiny_task
from families import hf_model
from tokenizers import normalizers
from transformers import PreTrainedTokenizer

from ivlens import InstructionVector, head_effects, steer
from ivlens.effects.results import HeadEffects
from ivlens.models import fingerprint, load_model, model_identity
from ivlens.models.fingerprint import is_built_in
from ivlens.models.settings import tokenizer_hash

PROBE = torch.tensor([[5, 17, 40, 8]])


def identity(folder, **how):
    return model_identity(load_model(folder, **how))


def change(path, **values):
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | values))


CONFIGS = {
    "rope": {"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}},
    "activation": {"hidden_act": "relu"},
    "norm": {"rms_norm_eps": 0.5},
    "heads": {"num_key_value_heads": 2, "num_attention_heads": 4, "attention_bias": False, "rms_norm_eps": 1e-3},
}
IRRELEVANT = {
    "_name_or_path": "elsewhere",
    "transformers_version": "4.0.0",
    "use_cache": False,
    "eos_token_id": 7,
    "pad_token_id": None,
    "architectures": None,
}


@pytest.mark.parametrize("what", ["rope", "activation", "norm"])
def test_another_configuration_is_another_model(checkpoint, what):
    before = identity(checkpoint)
    change(checkpoint / "config.json", **CONFIGS[what])
    after = identity(checkpoint)
    assert after.weights_hash == before.weights_hash and after.tokenizer_hash == before.tokenizer_hash
    assert after.key != before.key and after.differs(before) == "another configuration"


@pytest.mark.parametrize("name", IRRELEVANT)
def test_what_changes_no_number_is_no_other_model(checkpoint, name):
    before = identity(checkpoint)
    change(checkpoint / "config.json", **{name: IRRELEVANT[name]})
    assert identity(checkpoint) == before


def normaliser(about):
    about["normalizer"] = {"type": "Lowercase"}


def merges(about):
    about["model"]["merges"] = about["model"]["merges"][:-1]


def words(about):
    first, second = list(about["model"]["vocab"])[-2:]
    vocab = about["model"]["vocab"]
    vocab[first], vocab[second] = vocab[second], vocab[first]


def start(about):
    about["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }


@pytest.mark.parametrize("edit", [normaliser, merges, words, start])
def test_another_tokenizer_is_another_model(checkpoint, edit):
    before = identity(checkpoint)
    about = json.loads((checkpoint / "tokenizer.json").read_text())
    edit(about)
    (checkpoint / "tokenizer.json").write_text(json.dumps(about))
    after = identity(checkpoint)
    assert after.key != before.key and after.differs(before) == "another tokenizer or chat template"


def test_another_chat_template_and_other_special_tokens(checkpoint):
    seen = [identity(checkpoint)]
    (checkpoint / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    seen.append(identity(checkpoint))
    change(checkpoint / "tokenizer_config.json", bos_token="Input")
    seen.append(identity(checkpoint))
    assert len({one.key for one in seen}) == 3 and len({one.weights_hash for one in seen}) == 1


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_calls_padding_and_saving_leave_a_tokenizer_as_it_is(kind, tmp_path):
    tokenizer = TOKENIZERS[kind]()
    before = tokenizer_hash(tokenizer)
    tokenizer(["big", "big house"], padding=True, truncation=True, max_length=4, return_tensors=None) if (
        tokenizer.pad_token
    ) else tokenizer(["big", "big house"], truncation=True, max_length=4)
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
    assert tokenizer_hash(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_hash(type(tokenizer).from_pretrained(tmp_path)) == before
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()  # in place
    changed = tokenizer_hash(tokenizer)
    assert changed != before
    tokenizer.chat_template = "{{ messages }}"
    assert tokenizer_hash(tokenizer) not in (before, changed)


class Letters(PreTrainedTokenizer):
    """A tokenizer in Python, one token for each letter."""

    def __init__(self, letters: str = "abc", **more) -> None:
        self.letters = letters
        super().__init__(eos_token="<e>", **more)

    @property
    def vocab_size(self) -> int:
        return len(self.letters)

    def get_vocab(self) -> dict[str, int]:
        return {letter: number for number, letter in enumerate(self.letters)} | self.added_tokens_encoder

    def _tokenize(self, text, **more):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.letters.find(token)

    def _convert_id_to_token(self, index):
        return self.letters[index]


def test_tokenizers_in_python():
    assert tokenizer_hash(Letters()) == tokenizer_hash(Letters()) != tokenizer_hash(Letters("acb"))
    assert tokenizer_hash(None) == ""


def test_models_in_memory_are_told_apart_alike(checkpoint):
    from_folder = identity(checkpoint)
    plain = hf_model("llama")
    assert model_identity(load_model(hf_model=plain, tokenizer=byte_level_tokenizer())).key == from_folder.key
    other = hf_model("llama")
    other.config.rope_parameters["rope_theta"] = 3.0
    turned = type(other)(other.config)
    turned.load_state_dict(hf_model("llama").state_dict())
    found = model_identity(load_model(hf_model=turned, tokenizer=byte_level_tokenizer()))
    assert found.differs(from_folder) == "another configuration"


def test_lasting_buffers_count():
    made = hf_model("llama")
    made.model.layers[0].mlp.register_buffer("bias_of_a_router", torch.zeros(3))
    model = load_model(hf_model=made)
    before = model_identity(model)
    made.model.layers[0].mlp.bias_of_a_router[1] = 1.0
    assert model_identity(model).differs(before) == "another configuration"


def test_the_built_in_model_by_its_weights_and_not_by_its_name():
    model = load_model("pocket")
    assert is_built_in(model) and is_built_in(load_model("pocket", dtype="bfloat16"))
    assert model_identity(model) == model_identity(load_model("pocket"))
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3  # trained in place
    assert model_identity(model).name == "pocket" and not is_built_in(model)


@pytest.fixture
def made(checkpoint, tmp_path):
    """Effects and a vector of a checkpoint, in files."""
    model = load_model(checkpoint)
    effects = head_effects(model, tiny_task(), n_prompts=3, corruption="drop")
    vector = InstructionVector.from_effects(effects, k=2)
    return effects.save(tmp_path / "e.safetensors"), vector.save(tmp_path / "v.safetensors"), vector


@pytest.mark.parametrize("what", ["config", "tokenizer"])
def test_results_of_a_changed_model_are_refused(checkpoint, made, what):
    effects, vector, held = made
    if what == "config":
        change(checkpoint / "config.json", **CONFIGS["rope"])
    else:
        change(checkpoint / "tokenizer.json", normalizer={"type": "Lowercase"})
    model = load_model(checkpoint)
    said = "another configuration" if what == "config" else "another tokenizer"
    with pytest.raises(ValueError, match=f"which has {said}"):
        InstructionVector.load(vector, model)
    with pytest.raises(ValueError, match=f"which has {said}"):
        HeadEffects.load(effects, model)
    with pytest.raises(ValueError, match=f"which has {said}"), steer(model, held, layer=1, alpha=1.0):
        model(PROBE)
    with pytest.raises(ValueError, match=f"has {said}"):
        InstructionVector.from_effects(HeadEffects.load(effects), k=2, model=model)
    with steer(model, held.for_model(model), layer=1, alpha=1.0):
        model(PROBE)  # on purpose
    with steer(model, InstructionVector.load(vector, model, allow_other_weights=True), layer=1, alpha=1.0):
        model(PROBE)


def test_files_of_older_versions_are_taken_with_a_warning(checkpoint, made, caplog, monkeypatch):
    """They record the weights alone; a change of the weights is refused as ever."""
    _, path, vector = made
    older = replace(vector, model=replace(vector.model, config_hash="", tokenizer_hash=""))
    older.save(path)
    data = path.read_bytes()
    for name in (b', \\"config_hash\\": \\"\\"', b', \\"tokenizer_hash\\": \\"\\"', b'\\"config_hash\\": \\"\\", '):
        shorter = data.replace(name, b"")
        size = int.from_bytes(data[:8], "little") - (len(data) - len(shorter))
        data = size.to_bytes(8, "little") + shorter[8:]
    assert b"config_hash" not in data and b"tokenizer_hash" not in data
    path.write_bytes(data)
    monkeypatch.setattr(fingerprint, "_WARNED", set())
    model = load_model(checkpoint)
    loaded = InstructionVector.load(path, model)
    assert loaded.model.config_hash == "" and caplog.text.count("was made by an older ivlens") == 1
    with steer(model, loaded, layer=1, alpha=1.0):
        model(PROBE)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    with pytest.raises(ValueError, match="which has other weights"):
        InstructionVector.load(path, model)


def test_a_model_without_tokenizer_takes_vectors_of_one_with_it(made):
    """Nothing can be asked of it in text, and tokens mean the same to it."""
    model = load_model(hf_model=hf_model("llama"))
    with steer(model, made[2], layer=1, alpha=1.0):
        model(PROBE)
