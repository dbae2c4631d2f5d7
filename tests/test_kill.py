"""Whatever is killed goes on as if nothing had happened: a training, a series of checkpoints, a benchmark."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import tiny_task
from sweeping import digests

from ivlens.analysis.dynamics import TrackOptions, track
from ivlens.analysis.forgetting import ProbeOptions, probe_series
from ivlens.common.store import Store, collect_garbage, verify
from ivlens.models.checkpoints import checkpoint_series
from ivlens.runs.suites import BenchOptions, Cell, Grid, Suite
from ivlens.tuning import TuneOptions

SCRIPT = """
import sys
import torch
from conftest import byte_level_tokenizer, tiny_task
from families import hf_model
from ivlens import load_model
from ivlens.tuning import IVKL, Along, GuidanceRecipe, HeadConsistency, Rehearse, TuneOptions, finetune, iv_guidance

torch.set_num_threads(1)
model = load_model(hf_model=hf_model("llama"), tokenizer=byte_level_tokenizer())
task, old = tiny_task(), tiny_task("synonym", "Give a synonym.", 2)
plan = GuidanceRecipe((IVKL(), HeadConsistency(weight=1.0), Rehearse()), k=3, n_prompts=4)
guidance = iv_guidance(model, task, plan, earlier=[old])
options = TuneOptions(lr=1e-2, steps=150, batch_size=8, save_every=3, judge_every=10)
finetune(model, task, method="lora", along=Along(sys.argv[1]), options=options, guidance=guidance, watch=[old])
"""


def start(folder: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], env=environment, stderr=subprocess.DEVNULL)


def finish(folder: Path) -> dict[str, torch.Tensor]:
    assert start(folder).wait(timeout=300) == 0
    return safetensors.torch.load_file(folder / "model" / "adapter_model.safetensors")


def kill_in_the_middle(folder: Path, delay: float) -> None:
    """SIGKILL some time after a state has been written."""
    process = start(folder)
    state = folder / "state.safetensors"
    before = state.stat().st_mtime_ns if state.exists() else 0
    while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_three_kills_change_no_bit_of_the_weights(tmp_path):
    draw = random.Random(0)
    for _ in range(3):
        kill_in_the_middle(tmp_path / "killed", draw.uniform(0.0, 0.3))
    assert not (tmp_path / "killed" / "model").exists(), "the training was over before it could be killed"
    killed, whole = finish(tmp_path / "killed"), finish(tmp_path / "whole")
    assert killed.keys() == whole.keys()
    assert all(torch.equal(killed[name], whole[name]) for name in whole)


def jobs(model, models) -> dict[str, Callable[[Path], object]]:
    """Work that is kept in a store: each a function of the store's folder, without what it returns."""
    tasks = (tiny_task("antonym", kind="lexical"), tiny_task("synonym", "Give a synonym.", 2, kind="lexical"))
    series = checkpoint_series({f"step-{number}": one for number, one in enumerate(models)})
    suite = Suite("pocket", tasks, dict.fromkeys(("antonym", "synonym"), "suite_accuracy"), ())
    tune = TuneOptions(lr=1e-2, steps=2, batch_size=4, judge_every=2, n_samples=8, n_prompts=4)

    def grid(folder: Path) -> None:
        assert folder.name == "store"
        cells = Grid(model, lambda order: suite, BenchOptions(tune=tune, few_shots=0), folder.parent)
        assert len(cells.run(Cell("lora", seed=seed) for seed in range(4))) == 4

    return {
        "stages": lambda folder: track(series, tasks, TrackOptions(n_prompts=2, k=2, n_judge_prompts=2), folder=folder),
        "probes": lambda folder: probe_series(series, tasks, ProbeOptions(n_prompts=8, n_clozes=1), folder=folder),
        "cells": grid,
    }


def killed_after(work: Callable[[Path], object], folder: Path, n_kept: int, delay: float) -> bool:
    """Do the work in a fork, and kill it soon after the store has one more result; whether it still ran."""

    def run() -> None:
        torch.set_num_threads(1)  # a fork has none of its parent's other threads
        work(folder)

    process = get_context("fork").Process(target=run)
    process.start()
    entries = folder / "entries"
    while process.is_alive() and len([*entries.glob("*/*")]) <= n_kept:
        time.sleep(0.002)
    process.join(delay)
    was_alive = process.is_alive()
    process.kill()
    process.join()
    assert was_alive or process.exitcode == 0
    return was_alive


@pytest.mark.parametrize("kind", ["stages", "probes", "cells"])
def test_kills_lose_nothing_that_was_kept(kind, new_model, byte_level, tmp_path):
    models = [new_model("llama", byte_level) for _ in range(4)]
    for number, one in enumerate(models):
        with torch.no_grad():
            one.original_model.lm_head.weight[0] += number
    work, draw = jobs(models[0], models)[kind], random.Random(kind)
    whole, folder = tmp_path / "whole" / "store", tmp_path / "killed" / "store"
    for place in (whole, folder):
        place.parent.mkdir()
    work(whole)
    n_kept, n_kills = 0, 0
    # each time it gets a little further: one more result at least
    while n_kept < len(Store(whole).entries()) and killed_after(work, folder, n_kept, draw.uniform(0.0, 0.05)):
        n_kills += 1
        n_whole, findings = verify(Store(folder))
        assert n_whole > n_kept and all(finding.what == "left by a killed process" for finding in findings)
        n_kept = n_whole
    work(folder)
    assert n_kills >= 2, "the work was over before it could be killed"
    collect_garbage(Store(folder))
    assert digests(folder) == digests(whole) and verify(Store(folder)) == (4, [])
