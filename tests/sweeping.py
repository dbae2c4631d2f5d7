"""Sweeps in other processes, for the tests and for benches/stress.py."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from warm import Warm

from ivlens.cli.main import main
from ivlens.common.store import Store

GRID = """
tasks = ["antonym", "synonym"]
[effects]
n_prompts = [2, 4]
n_mean_prompts = 8
[interventions]
n_prompts = 4
n_mean_prompts = 8
n_draws = 1
n_judge_prompts = 8
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


def start(grid: Path, store: Path, *more: str, warm: bool = True) -> subprocess.Popen[str]:
    """A sweep in a process and session of its own, so that all of it can be killed; `warm`: see there."""
    command = ["-m", "ivlens", "sweep", str(grid), "--store", str(store), *more]
    options: dict[str, Any] = {"text": True, "start_new_session": True}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options["env"] = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return Warm(command, **options) if warm else subprocess.Popen([sys.executable, *command], **options)


class Forked:
    """A sweep in a fork of this process, which has torch imported: it begins at once. Looks like what `start` gives."""

    def __init__(self, grid: Path, store: Path) -> None:
        import peft  # noqa: F401
        import transformer_lens  # noqa: F401

        import ivlens.runs.sweep
        import ivlens.tuning  # noqa: F401

        self._log = store.with_name(store.name + ".log")
        command = ["sweep", str(grid), "--store", str(store)]
        self._process = get_context("fork").Process(target=self._run, args=(command,))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def _run(self, command: list[str]) -> None:
        os.setsid()
        with self._log.open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.exit(main(command))

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("sweep", timeout or 0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self._log.read_text(), ""


def kill_at(job: subprocess.Popen[str] | Forked, seconds: float, number: int = signal.SIGKILL) -> bool:
    """Send a signal after some time; whether the process was still there."""
    try:
        job.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, number)
        job.communicate()
        return True


def kill_in_the_middle(
    grid: Path,
    folder: Path,
    draw: random.Random,
    *,
    until: str = "",
    begin: Callable[[Path, Path], subprocess.Popen[str] | Forked] = start,
) -> bool:
    """SIGKILL at a random moment after the sweep has begun to write (`until`: such a file); whether it still ran."""
    before = fingerprints(folder)
    job = begin(grid, folder)
    limit = time.monotonic() + 120
    while job.poll() is None and time.monotonic() < limit:
        if any(until in name for name in of_cells(folder) - before):
            break
        time.sleep(0.02)
    return kill_at(job, draw.uniform(0.0, 1.5))


def fingerprints(folder: Path) -> set[str]:
    """Names of all that is in a store at this moment."""
    # `rglob` would raise where a folder goes away meanwhile
    return {os.path.join(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files)}


def of_cells(folder: Path) -> set[str]:
    """The same without what a store knows of models, which is written before any cell."""
    return {name for name in fingerprints(folder) if "surveys" not in Path(name).parts}


def digests(folder: Path) -> dict[str, str]:
    """The bytes of every result, by its key."""
    return {entry.key: entry.digest for entry in Store(folder).entries()}
