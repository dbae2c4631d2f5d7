"""Hostile input, the quick part: some cases of every target; `python benches/stress.py fuzz` tries thousands."""

import resource
import sys
from pathlib import Path

import pytest
from conftest import byte_level_tokenizer, tiny_task
from families import hf_model
from fuzz_targets import Targets
from fuzzing import NAMES, Sandbox, Tally, attempt, broken, run_cases
from sweeping import write_grid

from ivlens.common.store import Store
from ivlens.models import load_model
from ivlens.runs.suites import BenchOptions, Cell, CellResult, Grid, Suite
from ivlens.runs.suites.keeping import write_cell
from ivlens.runs.sweep import LocalExecutor, make_plan, read_grid, run_sweep
from ivlens.tuning import Learner, TuneOptions
from ivlens.tuning.training.data import training_set

NEW = ("antonym", "synonym")
CURVES = [[{"step": 2, "new": 0.5, "old": 0.25}, {"step": 4, "new": 1.0, "old": 0.25}], []]
GRID = """
tasks = ["antonym"]
[vectors]
n_prompts = 2
n_mean_prompts = 4
[effects]
n_prompts = 2
n_mean_prompts = 4
seeds = [1]
[dynamics]
n_prompts = 2
n_judge_prompts = 2
"""
N = {
    "command line": 60,
    "store, bytes": 15,
    "store, content": 15,
    "store, tricks": 15,
    "checkpoint": 15,
    "adapters": 10,
}
TARGETS = [
    "task file, bytes", "task file, content", "task table, bytes", "task formats, bytes", "task formats, packed",
    "task folder", "task and model names", "vector and effects, bytes", "vector and effects, header",
    "vector and effects, content", "vector and effects, numbers", "grid, bytes", "grid, content", "training state",
    "stage", "kept cell, bytes", "kept cell, content", "suite, bytes", "suite, content", "suite, tricks",
    "store, bytes", "store, content", "store, tricks", "checkpoint", "adapters", "command line",
]  # fmt: skip


def make_targets(folder: Path) -> Targets:
    """A sandbox, with files and a store that ivlens wrote."""
    store = Store(folder / "store")
    executor = LocalExecutor(store)
    run_sweep(make_plan(read_grid(write_grid(folder, GRID)), store, executor), executor)
    store.fail("0" * 64, {"cell": "a cell", "error": "ValueError: no"})
    kinds = {"vector": "vectors", "effects": "effects", "stage": "dynamics"}
    files = {name: store.entries(kind)[0].path(f"{name}.safetensors") for name, kind in kinds.items()}
    hf_model("llama", n_ctx=64).save_pretrained(folder / "model")
    byte_level_tokenizer().save_pretrained(folder / "model")
    model, task = load_model(folder / "model"), tiny_task()
    learner = Learner(model)
    learner.learn(training_set(model, task, task.examples[:4]), TuneOptions(lr=1e-2, steps=2, batch_size=2))
    more = {"adapters": learner.save(folder / "adapters"), "checkpoint": folder / "model"}
    suite = Suite("pocket", (task, tiny_task("synonym", "Give a synonym.", 2)), dict.fromkeys(NEW, "suite_accuracy"))
    grid, cell = Grid(model, lambda order: suite, BenchOptions(), folder / "bench"), Cell("lora")
    general = [{"a": 1.0}, {"a": 0.5}]
    result = CellResult(cell, NEW, [[0.0, 0.25], [1.0, 0.5], [0.75, 1.0]], general, [], CURVES, 1.5)
    grid.store.put(grid.what(cell), lambda place: write_cell(result, place))
    (folder / "sandbox").mkdir()
    return Targets(Sandbox(folder / "sandbox"), store.folder, **files, **more, grid=grid, cell=cell)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Targets:
    return make_targets(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", TARGETS)
def test_hostile(targets: Targets, name: str):
    strategy, case = targets.all()[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run_cases(N.get(name, 80), strategy, case)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown / (2**30 if sys.platform == "darwin" else 2**20) < 1, "grew by more than 1 GB"
    tally = targets.tallies[name]
    assert tally.n >= N.get(name, 80) // 2 and tally.refused.total() > 0


def test_every_target_is_tried(targets: Targets):
    assert list(targets.all()) == TARGETS


def test_what_is_not_ours_is_told_from_what_is(targets: Targets):
    """Of the harness itself: it must see errors of other libraries, hangs, and files outside."""
    import json

    with pytest.raises(AssertionError, match="JSONDecodeError of"):
        attempt(lambda: json.loads("{"), Tally())
    with pytest.raises(AssertionError, match="FileNotFoundError of"):
        attempt(lambda: Path("/nowhere").read_text(), Tally())
    with pytest.raises(KeyError):
        attempt(lambda: {}["x"], Tally())
    with pytest.raises(AssertionError, match="not finished"):
        attempt(lambda: sum(n for n in range(10**10)), Tally())
    outside = targets._sandbox.root / "x"
    outside.write_text("changed")
    with pytest.raises(AssertionError, match="outside"):
        targets._sandbox.check()
    targets._sandbox._around = targets._sandbox._look()


def test_accidents_change_bytes():
    data = bytes(range(100))
    assert broken(data, [("cut", 0.5)]) == data[:50]
    assert broken(data, [("flip", [(0.0, 0)])])[:2] == b"\x01\x01"
    assert broken(data, [("repeat", 3)]) == data * 3
    assert any(len(name) == 1_000_000 for name in NAMES)
