"""Whatever is killed goes on as if nothing had happened: a training, a series of checkpoints, a benchmark."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from killed_stores import until_done
from warm import Warm

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


def start(folder: Path) -> Warm:
    return Warm(["-c", SCRIPT, str(folder)], stderr=subprocess.DEVNULL)


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


@pytest.mark.slow
def test_three_kills_change_no_bit_of_the_weights(tmp_path):
    draw = random.Random(0)
    for _ in range(3):
        kill_in_the_middle(tmp_path / "killed", draw.uniform(0.0, 0.3))
    assert not (tmp_path / "killed" / "model").exists(), "the training was over before it could be killed"
    killed, whole = finish(tmp_path / "killed"), finish(tmp_path / "whole")
    assert killed.keys() == whole.keys()
    assert all(torch.equal(killed[name], whole[name]) for name in whole)


@pytest.mark.parametrize("kind", ["stages", "probes", "cells"])
def test_kills_lose_nothing_that_was_kept(kind, tmp_path):
    n_kills = until_done(kind, tmp_path, random.Random(kind))
    assert n_kills >= 2, "the work was over before it could be killed"
