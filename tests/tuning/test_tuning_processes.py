"""Trainings on several processes, started by torchrun as on several GPUs: two on this machine's CPU."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from warm import Warm

from ivlens.tuning import data_parallel
from ivlens.tuning.training.processes import Processes, current

TRAIN = """
import os, signal, sys
from contextlib import nullcontext
from pathlib import Path
import ivlens
from ivlens.tuning import Along, TuneOptions, data_parallel, finetune, guidance_by_name
from ivlens.tuning.training.processes import under_torchrun

out, method, what = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
several = under_torchrun()

def on_step(row):
    if what in ("die", "own_die") and row["step"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)

with data_parallel() if several else nullcontext() as processes:
    model = ivlens.load_model("pocket")
    task, old = ivlens.load_task("middle_of_three"), ivlens.load_task("antonym")
    guidance = guidance_by_name("answers", model, task, earlier=[old])
    if what == "differ" and processes.rank == 1:
        model.blocks[0].attn.q.weight.data[0, 0] += 1
    options = TuneOptions(
        steps=4, batch_size=8, accumulate=1 if several else 2, save_every=1, judge_every=2, n_samples=24, n_prompts=4,
    )
    if what in ("own", "own_die"):
        out /= f"process{processes.rank}"
    result = finetune(
        model, task, method=method, guidance=guidance, options=options, watch=[old],
        along=Along(out, checkpoint_every=2, on_step=on_step),
    )
    if not several or processes.is_first:
        result.log.drop(columns="seconds").to_csv(out / "log.csv", index=False)
        print("told once")
"""


def by_torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Two processes, as users start them."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *launch, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )


def started(*arguments: str, n: int = 2) -> tuple[int, str, str]:
    """Warm processes with the surroundings that torchrun gives its own; it, too, ends all when one has failed.

    Returns:
        The first status that is not 0, and what all wrote on stdout and on stderr.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n), "TORCHELASTIC_RUN_ID": "x"}
    jobs, until = [], time.monotonic() + 300
    for rank in map(str, range(n)):
        given = os.environ | (shared | {"RANK": rank, "LOCAL_RANK": rank} if n > 1 else {})
        pipe = subprocess.PIPE
        jobs.append(Warm(list(arguments), stdout=pipe, stderr=pipe, text=True, env=given))
    while any(job.poll() is None for job in jobs) and not any(job.poll() for job in jobs):
        assert time.monotonic() < until
        time.sleep(0.05)
    status = next((job.returncode for job in jobs if job.returncode), 0)
    time.sleep(1.0 if status else 0.0)  # others may be about to say why they end, too
    for job in jobs:
        job.kill()
    said = [job.communicate() for job in jobs]
    return status, "".join(out for out, _ in said), "".join(err for _, err in said)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a training on one process with two passes, and on two with one pass each."""
    folders = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("shared")
    for n, folder in enumerate(folders, 1):
        status, out, err = started("-c", TRAIN, str(folder), "lora", "go", n=n)
        assert status == 0, err
        assert out == "told once\n"
    return folders


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(both):
    logs = [pd.read_csv(folder / "log.csv") for folder in both]
    pd.testing.assert_frame_equal(*logs, rtol=1e-4)  # sums are rounded in another order
    assert {"lm", "rehearsal", "new", "watched"} <= set(logs[0].columns) and len(logs[0]) == 4
    weights = [load_file(folder / "state.safetensors") for folder in both]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-6)
    names = [sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) for folder in both]
    assert names[0] == names[1] and "step-000004" in names[0]


@pytest.mark.slow
def test_killed_and_resumed(both, tmp_path: Path):
    status, _, _ = started("-c", TRAIN, str(tmp_path), "lora", "die")
    assert status != 0 and (tmp_path / "state.safetensors").exists() and not (tmp_path / "model").exists()
    status, _, err = started("-c", TRAIN, str(tmp_path), "lora", "go")
    assert status == 0, err
    resumed, whole = (folder / "model" / "adapter_model.safetensors" for folder in (tmp_path, both[1]))
    assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_processes_with_different_models_are_refused(tmp_path: Path):
    status, _, err = started("-c", TRAIN, str(tmp_path), "lora", "differ")
    assert status != 0 and "have different models, data or options, expected the same" in err


@pytest.mark.slow
def test_processes_that_do_not_see_one_folder_are_refused(tmp_path: Path):
    assert started("-c", TRAIN, str(tmp_path), "lora", "own_die")[0] != 0
    status, _, err = started("-c", TRAIN, str(tmp_path), "lora", "own")
    assert status != 0 and "different saved states (put the folder on a disk that all share)" in err
    assert not (tmp_path / "process0" / "model").exists()


@pytest.mark.slow
def test_the_command(tmp_path: Path):
    command = ["-m", "ivlens", "tune", "--task", "second_letter", "--watch", "antonym", "--steps", "2"]
    few = [*command, "--n-samples", "8", "--batch-size"]
    job = by_torchrun(*few, "4", "--out", str(tmp_path / "two"))
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("written:") == 1 and len(pd.read_csv(tmp_path / "two" / "log.csv")) == 2
    status, _, err = started(*few, "3", "--out", str(tmp_path / "odd"))
    assert status != 0 and "batch_size is 3, expected a multiple of 2: 2 processes, accumulate 1;" in err


def test_without_torchrun():
    with pytest.raises(ValueError, match="found no RANK, .* use torchrun"), data_parallel():
        pass
    assert current() == Processes(0, 1)


def test_a_share_is_every_so_manieth():
    passes = list(range(5))
    shares = [Processes(rank, 2).share(passes) for rank in range(2)]
    assert shares == [[0, 2, 4], [1, 3]]
