"""Adapters and whole models from disk, in order, and each the model that was saved."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_task
from safetensors.torch import load_file, save_file

from ivlens import load_model
from ivlens.common import digests
from ivlens.models import model_identity
from ivlens.models.adapters import adapter_folders, named_base
from ivlens.models.checkpoints import Checkpoint, checkpoint_series
from ivlens.tuning import Along, Learner, TuneOptions, finetune
from ivlens.tuning.training.data import training_set

OPTIONS = TuneOptions(lr=1e-2, steps=4, batch_size=4, judge_every=4)
PROBE = torch.arange(8)[None] + 5


def logits(model):
    with torch.no_grad():
        return model(PROBE, use_cache=False)


@pytest.fixture(scope="module", params=["lora", "inclora", "full"])
def tuned(request, llama, tmp_path_factory):
    """A training that wrote its model twice: (folder, final bridge, base)."""
    folder = tmp_path_factory.mktemp(request.param)
    task = tiny_task()
    result = finetune(llama, task, method=request.param, options=OPTIONS, along=Along(folder, checkpoint_every=2))
    return folder, result.model, llama


def test_what_was_saved_is_what_is_loaded(tuned):
    folder, final, base = tuned
    is_adapter = bool(adapter_folders(folder / "model"))
    loaded = load_model(folder / "model", **({"base": base} if is_adapter else {}))
    torch.testing.assert_close(logits(loaded), logits(final), atol=2e-5, rtol=1e-4)
    assert (logits(loaded) - logits(base)).abs().max() > 1e-3, "the training changed nothing"
    found, kept = model_identity(loaded), model_identity(final)
    assert (found.config_hash, found.tokenizer_hash) == (kept.config_hash, kept.tokenizer_hash)
    assert loaded.tokenizer("big house")["input_ids"] == base.tokenizer("big house")["input_ids"]


def test_a_folder_in_the_order_of_its_steps(tuned):
    folder, final, base = tuned
    series = checkpoint_series(folder, first=base, base=base)
    assert [(one.name, one.step) for one in series] == [
        ("before", 0), ("step-000002", 2), ("step-000004", 4), ("model", None),
    ]  # fmt: skip
    assert series.first.open() is base
    torch.testing.assert_close(logits(series.later[-1].open()), logits(final), atol=2e-5, rtol=1e-4)


def test_adapters_of_every_task_are_one_model(llama, tmp_path):
    learner = Learner(llama, "inclora")
    for shift in (1, 2):
        task = tiny_task(shift=shift)
        learner.learn(training_set(llama, task, task.examples[:8]), OPTIONS)
    folder = learner.save(tmp_path / "both")
    assert list(adapter_folders(folder)) == ["task0", "task1"]
    loaded = load_model(folder, base=llama)
    torch.testing.assert_close(logits(loaded), logits(learner.bridge()), atol=2e-5, rtol=1e-4)
    shutil.rmtree(folder / "task1")
    assert (logits(load_model(folder, base=llama)) - logits(learner.bridge())).abs().max() > 1e-3


def test_adapters_name_the_built_in_model(tmp_path):
    model = load_model("pocket")
    folder = Learner(model)
    folder._begin(0)
    saved = folder.save(tmp_path / "step-1")
    assert (load_model("pocket")(PROBE) - load_model(saved)(PROBE)).abs().max() < 1e-4
    assert named_base(saved).endswith("pocket")
    series = checkpoint_series(tmp_path)
    assert [one.name for one in series] == ["before", "step-1"]


def test_a_copy_is_the_same_model_and_other_weights_are_not(checkpoint, tmp_path):
    copied = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    key = Checkpoint("one", checkpoint).key()
    assert Checkpoint("two", copied).key() == key
    (copied / "checkpoint-5").mkdir()  # of another moment, as trainers leave them inside
    shutil.copy(copied / "model.safetensors", copied / "checkpoint-5")
    assert Checkpoint("two", copied).key() == key
    for name in ("model.safetensors", "config.json"):
        before = (copied / name).read_bytes()
        (copied / name).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert Checkpoint("two", copied).key() != key, name
        (copied / name).write_bytes(before)


def rewritten(path: Path) -> None:
    """Other content of the same size, at the same time."""
    about, content = path.stat(), bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "pytorch_model.bin", "model-00002-of-00002.safetensors", "config.json", "tokenizer.json",
     "tokenizer_config.json", "chat_template.jinja", "vocab.txt", "tokenizer.model"],
)  # fmt: skip
@pytest.mark.parametrize("is_large", [False, True])
def test_a_key_covers_every_file_that_makes_the_model(checkpoint, name, is_large, monkeypatch):
    if is_large:
        monkeypatch.setattr(digests, "_SMALL", 0)
        monkeypatch.setattr(digests, "_TICK", 0)
    path = checkpoint / name
    if not path.exists():
        path.write_bytes(b"something" * 100)
    key = Checkpoint("one", checkpoint).key()
    assert Checkpoint("one", checkpoint).key() == key
    rewritten(path)
    assert Checkpoint("one", checkpoint).key() != key
    for beside in ("optimizer.pt", "training_args.bin", "trainer_state.json", "README.md"):
        (checkpoint / beside).write_bytes(b"x")
    changed = Checkpoint("one", checkpoint).key()
    (checkpoint / "training_args.bin").write_bytes(b"y")
    assert Checkpoint("one", checkpoint).key() == changed


def test_large_files_are_read_once(checkpoint, monkeypatch):
    monkeypatch.setattr(digests, "_SMALL", 0)
    monkeypatch.setattr(digests, "_TICK", 0)
    key = Checkpoint("one", checkpoint).key()
    monkeypatch.setattr(digests, "_KNOWN", {})  # another process
    monkeypatch.setattr(digests, "file_digest", lambda *given: pytest.fail("read again"))
    assert Checkpoint("one", checkpoint).key() == key


def test_adapters_are_told_apart_by_their_base_as_well(llama, new_model, byte_level, tmp_path):
    learner = Learner(llama)
    learner._begin(0)
    saved = learner.save(tmp_path / "adapters")
    other = new_model("llama", byte_level, n_layers=2)
    assert Checkpoint("one", saved, base=llama).key() == Checkpoint("two", saved, base=llama).key()
    assert Checkpoint("one", saved, base=llama).key() != Checkpoint("one", saved, base=other).key()


def test_models_in_memory(llama, new_model):
    other = new_model("llama")
    series = checkpoint_series({"before": llama, "after": other})
    assert [one.open() for one in series] == [llama, other]
    assert len(checkpoint_series([llama, other])) == 2


def test_what_is_no_series(llama, tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        checkpoint_series(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no checkpoints, expected subfolders"):
        checkpoint_series(tmp_path)
    with pytest.raises(ValueError, match="expected two or more with distinct names"):
        checkpoint_series({"one": llama})
    with pytest.raises(TypeError, match="expected the TransformerBridge"):
        checkpoint_series({"one": llama, "two": 5})
    with pytest.raises(ValueError, match="no folder of adapters; leave base out"):
        load_model("pocket", base=llama)


def test_adapters_that_do_not_fit(llama, new_model, byte_level, tmp_path):
    learner = Learner(llama)
    learner._begin(0)
    folder = learner.save(tmp_path / "adapters")
    with pytest.raises(ValueError, match="do not fit the model"):
        load_model(folder, base=new_model("gpt2", byte_level))
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load_model(folder)


@pytest.fixture
def adapters(llama, tmp_path):
    learner = Learner(llama)
    learner.learn(training_set(llama, tiny_task(), tiny_task().examples[:8]), OPTIONS)
    return learner.save(tmp_path / "adapters")


def test_adapters_that_are_not_whole(llama, adapters):
    """peft makes up the weights that a file lacks, and only warns."""
    path = adapters / "adapter_model.safetensors"
    weights = load_file(path)
    first = next(iter(weights))
    for change, message in (
        ({first: None}, "1 weights are missing and 0 belong nowhere"),
        ({first: None, first + "s": weights[first]}, "1 weights are missing and 1 belong nowhere"),
        ({first: weights[first] * float("nan")}, "are NaN, infinite or integers"),
        ({first: weights[first].to(torch.int32)}, "are NaN, infinite or integers"),
    ):
        save_file({name: one for name, one in {**weights, **change}.items() if one is not None}, path)
        with pytest.raises(ValueError, match=message):
            load_model(adapters, base=llama)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"cannot be read \(SafetensorError"):
        load_model(adapters, base=llama)
    path.unlink()
    with pytest.raises(ValueError, match="holds neither adapter_model.safetensors nor adapter_model.bin"):
        load_model(adapters, base=llama)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 2**40}, "says r is .1099511627776., expected 1 to"),
        ({"rank_pattern": {"q_proj": 2**40}}, "says r is"),
        ({"r": True}, "says r is .True."),
        ({"lora_alpha": None}, "lacks lora_alpha, expected all that peft writes"),
        ({"target_modules": ["nowhere"]}, "do not fit the model"),
        ({"alora_invocation_tokens": [1]}, "do not fit the model .*does not support merging"),
    ],
)
def test_adapters_that_are_described_wrongly(llama, adapters, change, message):
    path = adapters / "adapter_config.json"
    about = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: value for name, value in about.items() if name not in change or value}))
    with pytest.raises(ValueError, match=message):
        load_model(adapters, base=llama)
