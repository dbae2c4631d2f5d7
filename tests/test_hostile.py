"""Hostile input, the quick part: some cases of every target; `python benches/stress.py fuzz` tries thousands."""

import resource
import sys
from pathlib import Path

import pytest
from conftest import byte_level_tokenizer
from families import hf_model
from fuzzing import NAMES, Sandbox, Tally, Targets, attempt, broken, run_cases
from sweeping import write_grid

from ivlens.store import Store
from ivlens.sweep import LocalExecutor, make_plan, read_grid, run_sweep

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
n_scored = 2
"""
N = {"command line": 150, "store, bytes": 40, "store, content": 40, "store, tricks": 40, "checkpoint": 40}
TARGETS = [
    "task file, bytes", "task file, content", "task table, bytes", "task folder", "task and model names",
    "vector and effects, bytes", "vector and effects, header", "vector and effects, content",
    "vector and effects, numbers", "store, bytes", "store, content", "store, tricks", "grid, bytes", "grid, content",
    "training state", "checkpoint", "stage", "command line",
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
    (folder / "sandbox").mkdir()
    return Targets(Sandbox(folder / "sandbox"), store.folder, **files, checkpoint=folder / "model")


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
