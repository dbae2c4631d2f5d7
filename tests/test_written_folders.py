"""Every folder that ivlens writes is one that ivlens opens; what cannot open it says what it is.

A folder with a model opens with the same logits and the same tokens.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_level_tokenizer, tiny_task
from families import hf_model
from lines import all_commands, options_of
from tiny_training import TINY

import ivlens
from ivlens.cli.main import main
from ivlens.common.store import Store, verify
from ivlens.common.store.written import kind_of
from ivlens.models import model_identity
from ivlens.models.checkpoints import Checkpoint, checkpoint_series
from ivlens.models.gguf import write_checkpoint
from ivlens.out import export_vector
from ivlens.pocket.train import Trainer
from ivlens.tuning import Along, Learner, TuneOptions, finetune
from ivlens.tuning.training.data import training_set

PACKAGE = Path(ivlens.__file__).parent
TASK, OTHER = tiny_task(), tiny_task("synonym", "Give a synonym.", 2)
QUICK = TuneOptions(lr=1e-2, steps=2, batch_size=2, n_samples=4, judge_every=1, n_prompts=2)
METHODS = ["full", "inclora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "ewc", "olora", "lwf"))]
TEXT = "Input: big\nOutput:"
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
# the modules that write a model, each tried below
WRITERS = {"tuning/learner.py", "pocket/train.py", "models/gguf.py", "out/folding.py"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    hf_model("llama", n_ctx=256).save_pretrained(folder)
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def ids_of(model: Any) -> list[int]:
    return model.tokenizer(TEXT)["input_ids"]


def logits_of(model: Any) -> torch.Tensor:
    return model(torch.tensor([ids_of(model)]))


def same(opened: Any, want: Any) -> None:
    assert ids_of(opened) == ids_of(want) and opened.tokenizer.chat_template == want.tokenizer.chat_template
    assert torch.allclose(logits_of(opened), logits_of(want), atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_learner_saves(base: Path, tmp_path: Path, name: str) -> None:
    from ivlens.tuning import new_method

    first = ivlens.load_model(base)
    learner = Learner(first, new_method(name))
    for task in (TASK, OTHER):  # some methods have an adapter for each
        learner.learn(training_set(first, task, task.examples[:4]), QUICK)
    tuned, plain = learner.bridge(), logits_of(ivlens.load_model(base))
    assert not torch.allclose(logits_of(tuned), plain, atol=1e-4), "nothing was learned"
    same(ivlens.load_model(learner.save(tmp_path / "saved")), tuned)


@pytest.mark.parametrize("name", ["full", "lora"])
def test_the_folders_of_a_training(base: Path, tmp_path: Path, name: str) -> None:
    """The folder itself stands for the model in it; every step is a checkpoint; all of them are a series."""
    out = tmp_path / "out"
    result = finetune(
        ivlens.load_model(base), TASK, method=name, options=QUICK, along=Along(folder=out, checkpoint_every=1)
    )
    for folder in (out, out / "model", out / "step-000002", str(out)):
        same(ivlens.load_model(folder), result.model)
    assert not torch.allclose(logits_of(ivlens.load_model(out / "step-000001")), logits_of(result.model), atol=1e-4)
    series = checkpoint_series(out, first=base)
    assert [one.name for one in series] == ["before", "step-000001", "step-000002", "model"]
    assert Checkpoint("out", out).key() == Checkpoint("model", out / "model").key()
    same(Checkpoint("out", out).open(), result.model)


@pytest.mark.parametrize("name", ["full", "lora"])
def test_what_the_command_writes(base: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, few = tmp_path / "out", ["--steps", "1", "--batch-size", "2", "--n-samples", "2", "--n-prompts", "2"]
    words = ["tune", "--task", "antonym", "--model", str(base), "--method", name, "--out", str(out), *few]
    assert main([*words, "--template", "plain"]) == 0
    # and so opens every command that takes a model
    words = ["steer", "--model", str(out), "--task", "antonym", "--text", "big", "--layer", "0", "--alpha", "1"]
    assert main([*words, "--template", "plain", "--n-prompts", "2", "--k", "1", "--max-new-tokens", "2"]) == 0
    same(ivlens.load_model(out), ivlens.load_model(out / "model"))
    capsys.readouterr()


def test_the_folder_of_the_built_in_models_training(tmp_path: Path) -> None:
    folder = Trainer(TINY, tmp_path / "out").run()
    same(ivlens.load_model(tmp_path / "out"), ivlens.load_model(folder))


def test_a_gguf_file_as_a_folder(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from ggufs import write_llama

    path = write_llama(tmp_path / "model.gguf", hf_model("llama", n_ctx=64), byte_level_tokenizer())
    (tmp_path / "folder").mkdir()
    write_checkpoint(path, tmp_path / "folder")
    opened, want = ivlens.load_model(tmp_path / "folder"), ivlens.load_model(path)
    assert ids_of(opened) == ids_of(want) and torch.allclose(logits_of(opened), logits_of(want), atol=1e-5)


def test_a_folder_with_a_vector_inside(base: Path, tmp_path: Path) -> None:
    model = ivlens.load_model(base)
    theta, none = torch.randn(model.cfg.d_model), torch.zeros(0, model.cfg.d_head)
    iv = ivlens.InstructionVector(theta, (), none, "antonym", model_identity(model), {})
    at = ivlens.Setting(0, 1.0, "resid_post")
    folder = export_vector(model, iv, tmp_path / "folder", format="checkpoint", at=at)
    opened = ivlens.load_model(folder)
    with ivlens.steer(model, iv, at=at, positions="all"):
        same(opened, model)
    assert not torch.allclose(logits_of(opened), logits_of(model), atol=1e-3)


def test_models_that_a_sweep_keeps(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = f"""
models = ["{base}"]
tasks = ["antonym"]
[[tuning]]
watch = ["synonym"]
guidance = "none"
steps = 1
n_samples = 2
batch_size = 2
n_prompts = 2
keep_model = true
"""
    (tmp_path / "grid.toml").write_text(grid)
    assert main(["sweep", str(tmp_path / "grid.toml"), "--store", str(tmp_path / "store")]) == 0
    store = Store(tmp_path / "store")
    (entry,) = store.entries("tuning")
    same(ivlens.load_model(entry.folder / "model"), ivlens.load_model(entry.folder))
    whole, findings = verify(store)
    assert whole == len(store.places()) and not findings
    assert main(["store", "ls", str(tmp_path / "store")]) == 0
    capsys.readouterr()


def test_a_folder_that_only_looks_like_a_training(base: Path, tmp_path: Path) -> None:
    """`model/` of somebody else is not opened for the folder around it: the error names it."""
    import shutil

    shutil.copytree(base, tmp_path / "theirs" / "model")
    with pytest.raises(FileNotFoundError, match="is a folder without config.json.*pass one of the checkpoints in it"):
        ivlens.load_model(tmp_path / "theirs")


def test_every_module_that_writes_a_model_is_walked() -> None:
    """By the calls by which models are written: a new one needs a case above."""
    texts = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert {name for name, text in texts.items() if re.search(r"\.save_pretrained\(", text)} == WRITERS


# --- folders of results ----------------------------------------------------------------------------------------------

# by command: what its folder is called, and what opens it; everything else of READERS says what it is
OPENED = {
    "tune": ("the folder of a training", {"model", "series", "figures"}),
    "forget": ("a result of ivlens forget", {"store", "figures"}),
    "dynamics": ("a result of ivlens dynamics", {"store", "figures"}),
    "attention": ("a result of ivlens attention", {"figures"}),
    "evaluate": ("a result of ivlens evaluate", {"store", "figures"}),
    "demo": ("a result of ivlens demo", {"figures"}),
    "sweep": ("a store of results", {"store", "figures"}),
    "figures": ("a folder of figures for a paper", set()),
    "bench": ("a result of ivlens bench", {"store", "figures"}),
    "study": ("a result of ivlens study", {"figures"}),
    "transplant": ("a result of ivlens transplant", {"store", "figures"}),
    "terse train": ("the folder of a training", {"model", "series"}),
}
SLOW = {"dynamics", "evaluate", "demo", "bench", "study", "terse train"}
OTHERS = {
    "effects",
    "vector",
    "store export",
    "pocket train",
    "pocket card",
    "export",
    "terse card",
}  # files; walked above; texts


def main_of(*words: object) -> None:
    assert main([str(word) for word in words]) == 0, words


def store_of(folder: Path) -> None:
    main_of("store", "ls", folder)


def figures_of(folder: Path) -> None:
    main_of("figures", "--from", folder, "--out", folder.parent / "drawn", "--format", "json")


READERS = {
    "model": ivlens.load_model, "task": ivlens.load_task, "series": checkpoint_series, "store": store_of,
    "figures": figures_of, "vector": ivlens.InstructionVector.load, "effects": ivlens.HeadEffects.load,
}  # fmt: skip


@pytest.fixture(scope="module")
def series(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "out"
    few = ["--steps", 2, "--batch-size", 2, "--n-samples", 2, "--n-prompts", 2, "--checkpoint-every", 1]
    main_of("tune", "--task", "antonym", "--model", base, "--out", out, *few, "--template", "plain")
    return out


def write(command: str, out: Path, base: Path, series: Path) -> None:
    """Let a command write its folder, with as little work as it takes."""
    few, drawn = ["--n-prompts", 2, "--template", "plain"], ["--figures", "json"]
    asked = ["--model", base, "--task", "antonym", *few]
    if command == "sweep":
        out.mkdir()
        (out / "grid.toml").write_text(f'models = ["{base}"]\ntasks = ["antonym"]\n[effects]\nn_prompts = 2\n')
        main_of("sweep", out / "grid.toml", "--store", out / "store")
        (out / "grid.toml").unlink()
        (out / "store").rename(out.parent / "store")
        out.rmdir()
        (out.parent / "store").rename(out)
        return
    main_of(*command.split(), *{
        "forget": [series, "--task", "antonym", *few, *drawn],
        "dynamics": [series, "--task", "antonym", *few, "--k", 1, "--n-judge-prompts", 2, *drawn],
        "attention": asked,
        "evaluate": [*asked, "--rows", "none", "--n-draws", 1, "--n-judge-prompts", 2, "--k", 1, *drawn],
        "demo": [*asked, "--task", "synonym", "--k", 1],
        "figures": ["--from", series, "--format", "json"],
        "bench": [*asked[:2], *few, "--tasks", "middle_of_three,second_letter", "--methods", "full", "--guidance",
                  "none", "--steps", 1, "--batch-size", 2, "--n-samples", 2],
        "study": [*asked[:2], *few, "--earlier", "antonym", "--earlier", "synonym", "--new", "second_letter", "--steps",
                  1, "--batch-size", 2, "--n-records", 1, "--n-judge-prompts", 2, "--n-draws", 1, "--k", 1, *drawn],
        "transplant": [base, series, "--task", "antonym", *few, "--n-judge-prompts", 2, "--n-draws", 1, "--k", 1,
                       *drawn],
        "terse train": [*asked[:2], "--steps", 1, "--batch-size", 16, "--rank", 1],
    }[command], "--out", out)  # fmt: skip


@pytest.mark.parametrize("command", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in OPENED])
def test_what_opens_the_folder_of_a_command(
    base: Path, series: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = series if command == "tune" else tmp_path / "out"
    if command != "tune":
        write(command, folder, base, series)
    kind = kind_of(folder)
    assert kind is not None and kind.what == OPENED[command][0]
    opened, said = set(), {}
    for name, read in READERS.items():
        capsys.readouterr()
        try:
            read(folder)
            opened.add(name)
        except (ValueError, FileNotFoundError, AssertionError) as error:
            said[name] = f"{error} {capsys.readouterr().err}"
    assert opened == OPENED[command][1]
    for name, text in said.items():
        assert kind.what in text and kind.by in text, (name, text)


def test_every_command_that_writes_a_folder_is_walked() -> None:
    """By its options: one that writes a folder needs a line above."""
    writes = {name for name in all_commands() if {"--out", "--store"} & {one.name for one in options_of(name)}}
    assert writes == OPENED.keys() | OTHERS


def test_folders_with_one_json_file_that_is_no_task(tmp_path: Path) -> None:
    for name, said in {
        "adapter_config.json": "an adapter of peft, opened by --model",
        "store.json": "a store of results",
    }.items():
        (tmp_path / name).write_text('{"format": "x"}')
        with pytest.raises(ValueError, match=f"is {said}"):
            ivlens.load_task(tmp_path)
        (tmp_path / "train.json").write_text('{"a": "b"}')  # a task beside it is one
        assert len(ivlens.load_task(tmp_path)) == 1
        (tmp_path / "train.json").unlink()
        (tmp_path / name).unlink()
