"""Sweeps in other processes, for the tests and for benches/stress.py."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from ivlens.store import Store

GRID = """
tasks = ["antonym", "synonym"]
[effects]
n_prompts = [2, 4]
n_mean_prompts = 8
[interventions]
n_prompts = 4
n_mean_prompts = 8
n_draws = 1
n_judged = 8
layers = [0, 1]
alphas = [2.0]
[[tuning]]
tasks = ["middle_of_three"]
watch = ["antonym"]
guidance = ["none", "heads"]
steps = 12
n_samples = 16
batch_size = 4
save_every = 2
keep_model = true
"""


def write_grid(folder: Path, text: str = GRID) -> Path:
    path = folder / "grid.toml"
    path.write_text(text)
    return path


def start(grid: Path, store: Path, *more: str) -> subprocess.Popen[str]:
    """A sweep in a process of its own, in a session of its own, so that all of it can be killed."""
    command = [sys.executable, "-m", "ivlens", "sweep", str(grid), "--store", str(store), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )


def kill_at(job: subprocess.Popen[str], seconds: float, number: int = signal.SIGKILL) -> bool:
    """Send a signal after some time; whether the process was still there."""
    try:
        job.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, number)
        job.communicate()
        return True


def kill_in_the_middle(grid: Path, folder: Path, draw: random.Random, *, until: str = "") -> bool:
    """SIGKILL at a random moment after the sweep has begun to write (`until`: such a file); whether it still ran."""
    job = start(grid, folder)
    before = fingerprints(folder)
    limit = time.monotonic() + 120
    while job.poll() is None and time.monotonic() < limit:
        if any(until in name for name in fingerprints(folder) - before):
            break
        time.sleep(0.02)
    return kill_at(job, draw.uniform(0.0, 1.5))


def fingerprints(folder: Path) -> set[str]:
    """Names of all that is in a store at this moment."""
    # `rglob` would raise where a folder goes away meanwhile
    return {os.path.join(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files)}


def digests(folder: Path) -> dict[str, str]:
    """The bytes of every result, by its key."""
    return {entry.key: entry.digest for entry in Store(folder).entries()}
