"""Work that is kept in a store, killed again and again: a series of checkpoints, a benchmark.

For the tests and for benches/stress.py: `run(n, seed)` gives counts, and fails where anything that was kept is lost,
damaged, or not what it is without kills.
"""

import random
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from conftest import byte_level_tokenizer, tiny_task
from families import hf_model
from sweeping import digests

from ivlens import load_model
from ivlens.analysis.dynamics import TrackOptions, track
from ivlens.analysis.forgetting import ProbeOptions, probe_series
from ivlens.common.store import Store, collect_garbage, verify
from ivlens.models.boot import TransformerBridge
from ivlens.models.checkpoints import checkpoint_series
from ivlens.runs.suites import BenchOptions, Cell, Grid, Suite
from ivlens.tuning import TuneOptions

N_RESULTS = 4


@lru_cache(maxsize=1)
def models() -> list[TransformerBridge]:
    """A first model and what became of it."""
    made = [load_model(hf_model=hf_model("llama"), tokenizer=byte_level_tokenizer()) for _ in range(N_RESULTS)]
    for number, one in enumerate(made):
        with torch.no_grad():
            one.original_model.lm_head.weight[0] += number
    return made


def stages(store: Path) -> None:
    """What `ivlens dynamics` keeps."""
    options = TrackOptions(n_prompts=2, k=2, n_judge_prompts=2)
    track(_series(), [tiny_task("antonym")], options, folder=store)


def probes(store: Path) -> None:
    """What `ivlens forget` keeps."""
    probe_series(_series(), [tiny_task("antonym")], ProbeOptions(n_prompts=8, n_clozes=1), folder=store)


def cells(store: Path) -> None:
    """What `ivlens bench` keeps."""
    assert store.name == "store"
    tasks = (tiny_task("antonym", kind="lexical"), tiny_task("synonym", "Give a synonym.", 2, kind="lexical"))
    suite = Suite("pocket", tasks, dict.fromkeys(("antonym", "synonym"), "suite_accuracy"), ())
    tune = TuneOptions(lr=1e-2, steps=2, batch_size=4, judge_every=2, n_samples=8, n_prompts=4)
    grid = Grid(models()[0], lambda order: suite, BenchOptions(tune=tune, few_shots=0), store.parent)
    assert len(grid.run(Cell("lora", seed=seed) for seed in range(N_RESULTS))) == N_RESULTS


def _series() -> Any:
    return checkpoint_series({f"step-{number}": one for number, one in enumerate(models())})


WORK: dict[str, Callable[[Path], None]] = {"stages": stages, "probes": probes, "cells": cells}


def killed_after(work: Callable[[Path], None], store: Path, n_kept: int, delay: float) -> bool:
    """Do the work in a fork, and kill it soon after the store has one more result; whether it still ran."""

    def run() -> None:
        torch.set_num_threads(1)  # a fork has none of its parent's other threads
        work(store)

    process = get_context("fork").Process(target=run)
    process.start()
    while process.is_alive() and len([*(store / "entries").glob("*/*")]) <= n_kept:
        time.sleep(0.002)
    process.join(delay)
    was_alive = process.is_alive()
    process.kill()
    process.join()
    assert was_alive or process.exitcode == 0
    return was_alive


def until_done(kind: str, folder: Path, draw: random.Random) -> int:
    """Do one kind of work, killed again and again, each time with one more result at least; the number of kills."""
    work, whole, killed = WORK[kind], folder / "whole" / "store", folder / "killed" / "store"
    for place in (whole, killed):
        place.parent.mkdir()
    work(whole)
    n_kept = n_kills = 0
    while n_kept < N_RESULTS and killed_after(work, killed, n_kept, draw.uniform(0.0, 0.05)):
        n_kills += 1
        n_whole, findings = verify(Store(killed))
        assert n_whole > n_kept and all(finding.what == "left by a killed process" for finding in findings), findings
        n_kept = n_whole
    work(killed)
    collect_garbage(Store(killed))
    assert digests(killed) == digests(whole) and verify(Store(killed)) == (N_RESULTS, [])
    return n_kills


def run(n: int, seed: int) -> dict[str, Any]:
    """At least `n` kills, over all kinds of work in turn."""
    draw, n_kills, n_ends = random.Random(seed), 0, 0
    while n_kills < n:
        for kind in WORK:
            with tempfile.TemporaryDirectory() as folder:
                n_kills, n_ends = n_kills + until_done(kind, Path(folder), draw), n_ends + 1
    return {"killed": n_kills, "resumed_equal": n_ends, "damaged": 0}
