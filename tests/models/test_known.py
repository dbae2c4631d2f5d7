"""Known models: one table, their names before anything else, and what is said where one is missing."""

import re
import shutil
import warnings
from dataclasses import replace

import pytest
import real
import torch
import transformers
from families import hf_model

from ivlens.cli.main import main
from ivlens.models import known, load_model, model_identity, pocket_path
from ivlens.models.adapters import adapter_folders, named_base
from ivlens.models.checkpoints import Checkpoint, checkpoint_series
from ivlens.models.getting import get_model
from ivlens.models.known import KNOWN, known_model, label_of, source_of
from ivlens.runs.sweep.grid import _beside
from ivlens.tuning import Learner


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IVLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def here(cache, byte_level):
    """A stand-in where the real model would lie."""
    folder = KNOWN["smollm2"].folder
    hf_model("llama").save_pretrained(folder)
    byte_level.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model", KNOWN.values(), ids=KNOWN)
def test_the_table_says_all_there_is_to_know(model):
    assert known_model(model.name) is model and model.about and model.licence and model.n_bytes > 0
    if model.packaged is not None:
        hashes = (model.packaged.wheel_hash, model.packaged.member_hash)
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes)
        assert 0 < model.packaged.wheel_bytes and 0 < model.packaged.member_bytes
    elif model.base is None:
        assert model.is_here()
    else:  # what comes with ivlens is there; what it belongs to may have to be fetched
        assert (model.folder / "adapter_model.safetensors").is_file() and model.fetched == KNOWN[model.base].packaged
        assert named_base(model.folder) == model.base
        assert sum(path.stat().st_size for path in model.folder.iterdir()) == pytest.approx(model.n_bytes, rel=0.1)


def test_what_pocket_takes_is_what_the_table_says():
    assert sum(path.stat().st_size for path in pocket_path().iterdir()) == pytest.approx(
        KNOWN["pocket"].n_bytes, rel=0.1
    )


def test_a_known_model_opens_by_its_name_from_the_cache(here, cache):
    assert here.is_relative_to(cache) and source_of("smollm2") == here
    model = load_model("smollm2")
    assert model_identity(model).name == model.cfg.model_name == "smollm2"


@pytest.fixture
def taught(here, tmp_path, monkeypatch):
    """A stand-in for the adapter that comes with ivlens, of the stand-in for the model."""
    peft = pytest.importorskip("peft")
    plain = transformers.AutoModelForCausalLM.from_pretrained(here)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inside = peft.get_peft_model(plain, peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"]))
        inside.peft_config["default"].base_model_name_or_path = "smollm2"
        inside.save_pretrained(tmp_path / "terse", save_embedding_layers=False)
    monkeypatch.setitem(KNOWN, "smollm2-terse", replace(KNOWN["smollm2-terse"], inside=str(tmp_path / "terse")))
    return inside.merge_and_unload()


def test_a_known_adapter_opens_on_the_model_it_belongs_to(taught, here):
    model = load_model("smollm2-terse")
    assert model_identity(model).name == "smollm2-terse" and model.tokenizer is not None
    tokens = torch.arange(4)[None]
    assert torch.allclose(model(tokens), taught(tokens).logits, atol=1e-5)
    assert not torch.allclose(model(tokens), load_model("smollm2")(tokens), atol=1e-5)
    key = Checkpoint("taught", "smollm2-terse").key()
    assert key["base"] == Checkpoint("first", "smollm2").key() and key["files"]


def test_a_known_adapter_without_its_model_says_what_to_get(taught, here):
    shutil.rmtree(here)
    assert not KNOWN["smollm2-terse"].is_here()
    with pytest.raises(FileNotFoundError, match="get it with `ivlens get smollm2`"):
        load_model("smollm2-terse")


@pytest.mark.parametrize("lost", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_known_adapter_without_its_own_files_cannot_be_fetched(taught, lost):
    known = KNOWN["smollm2-terse"]
    (known.folder / lost).unlink()
    assert not known.is_here() and "install ivlens again" in known.remedy
    with pytest.raises(FileNotFoundError, match="model 'smollm2-terse' .* is not in .*install ivlens again"):
        get_model("smollm2-terse")
    with pytest.raises((FileNotFoundError, ValueError), match="install ivlens again|holds neither adapter_model"):
        load_model("smollm2-terse")


@pytest.mark.parametrize("n_bytes", [0, 100])
def test_a_known_adapter_whose_file_is_cut_is_refused(taught, n_bytes):
    weights = KNOWN["smollm2-terse"].folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:n_bytes])
    with pytest.raises(ValueError, match="adapter_model.safetensors' cannot be read .*it is no whole safetensors file"):
        load_model("smollm2-terse")


def test_one_that_is_missing_names_the_command(cache):
    with pytest.raises(FileNotFoundError, match=r"model 'smollm2' .*Apache-2.0.*get it with `ivlens get smollm2`"):
        load_model("smollm2")
    assert not cache.exists()


def test_a_folder_of_that_name_is_dot_slash(here, byte_level, tmp_path, monkeypatch):
    other = tmp_path / "elsewhere"
    hf_model("gpt2").save_pretrained(other / "smollm2")
    byte_level.save_pretrained(other / "smollm2")
    monkeypatch.chdir(other)
    assert model_identity(load_model("smollm2")).architecture == "LlamaForCausalLM"
    for name in ("./smollm2", other / "smollm2", known.Path("smollm2")):
        identity = model_identity(load_model(name))
        assert identity.architecture == "GPT2LMHeadModel" and identity.name != "smollm2"
    assert label_of(known.Path("smollm2")) == "./smollm2"


def test_adapters_in_a_folder_of_that_name_do_not_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "smollm2" / "adapter_config.json").write_text("{}")
    assert not adapter_folders("smollm2") and adapter_folders("./smollm2")


def test_adapters_find_the_known_model_they_belong_to(here, tmp_path):
    pytest.importorskip("peft")
    learner = Learner(load_model("smollm2"))
    assert learner.trained.name_or_path == str(here)  # which plain peft opens, too


def test_a_series_of_a_known_adapter_begins_with_the_model_it_belongs_to():
    series = checkpoint_series("smollm2-terse")
    assert [(one.name, one.source, one.step) for one in series] == [
        ("before", "smollm2", 0), ("smollm2-terse", "smollm2-terse", None)
    ]  # fmt: skip


@pytest.mark.parametrize("words", [["forget"], ["dynamics"], ["transplant", "smollm2"]])
def test_commands_take_a_known_model_as_the_tuned_one(words, tmp_path, monkeypatch, capsys):
    def looked_for(source, **_):
        raise ValueError(f"looked for {source!r}")  # a Path here would be a folder, and never a known model

    monkeypatch.setattr("ivlens.models.checkpoints.checkpoint_series", looked_for)
    assert main([*words, "smollm2-terse", "--task", "antonym", "--out", str(tmp_path / "out")]) == 2
    assert "looked for 'smollm2-terse'" in capsys.readouterr().err


def test_a_series_takes_known_names(here, cache):
    series = checkpoint_series("smollm2", first="pocket")
    assert [(one.name, one.step) for one in series] == [("before", 0), ("smollm2", None)]
    keys = [one.key() for one in series]
    assert all("model.safetensors" in str(key["files"]) for key in keys) and keys[0] != keys[1]
    assert [one.step for one in checkpoint_series(["pocket", "smollm2"])] == [None, None]
    shutil.rmtree(here)
    assert series.later[0].key() == {"source": "smollm2"}


def test_a_grid_leaves_known_names_alone(tmp_path):
    (tmp_path / "smollm2").mkdir()
    assert _beside("smollm2", tmp_path / "grid.toml") == "smollm2"
    assert _beside("./smollm2", tmp_path / "grid.toml") == str(tmp_path / "smollm2")


def test_a_misspelt_name_is_told_from_a_hub_name(monkeypatch):
    monkeypatch.setattr("ivlens.common.hub.hub_answers", lambda timeout=3.0: False)
    with pytest.raises(ConnectionError, match="did you mean 'smollm2'"):
        load_model("smolm2")
    with pytest.raises(ConnectionError, match="known: 'pocket', 'smollm2', 'smollm2-terse'"):
        load_model("someone/some-model")


def test_real_tests_skip_and_name_the_command_unless_they_are_required(cache, monkeypatch):
    monkeypatch.setattr("ivlens.models.getting._check_pip", lambda: (_ for _ in ()).throw(ImportError("no pip")))
    monkeypatch.delenv(real.REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no pip; get it with `ivlens get smollm2`"):
        real.smollm2()
    monkeypatch.setenv(real.REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match="is set, but the real model cannot be had: no pip"):
        real.smollm2()
