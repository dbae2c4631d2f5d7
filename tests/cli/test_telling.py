"""What commands say while they work: whether the model can do it, first; bars; and how they end when interrupted."""

import json
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from subprocess import Popen

import psutil
import pytest
from warm import Warm

from ivlens.cli import _output
from ivlens.cli.main import main
from ivlens.common import progress
from ivlens.steering import evaluate
from ivlens.steering.search import Grid


def test_accuracies_come_first_and_are_in_json(capsys):
    assert main(["effects", "--task", "antonym", "--n-prompts", "4"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("ivlens: antonym: clean accuracy 1.00") and len(err.splitlines()) == 1
    assert "clean accuracy 1.00" in out and "clean minus corrupted score" in out
    assert main(["effects", "--task", "antonym", "--n-prompts", "4", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["clean_accuracy"] == 1.0 > found["bare_accuracy"] and found["warnings"] == [] and err == ""
    assert found["taken"]["low"] > 0 and found["taken"]["share"] > 0.9


def test_one_warning_before_and_plain_words_after_where_nothing_can_work(capsys):
    words = ["--task", "antonym", "--instruction", "Qqq.", "--n-prompts", "4"]
    assert main(["steer", *words, "--text", "big", "--layer", "0", "--site", "attn_out"]) == 0
    out, err = capsys.readouterr()
    assert err.count("no vector can carry") == 1 and "ivlens prompts --model pocket --task antonym" in err
    assert "No setting of the search makes this vector work: on 48 select inputs the best one gets" in out
    assert "The model itself cannot do the task: clean accuracy" in out


def test_bars_while_judging(capsys, monkeypatch):
    monkeypatch.setattr(_output, "shows_progress", lambda as_json: True)
    monkeypatch.setattr(progress, "DELAY", 0.0)
    few = partial(evaluate.evaluate_intervention, at=Grid(layers=[1], alphas=(1.0, 2.0)), n_prompts=4)
    monkeypatch.setattr(evaluate, "evaluate_intervention", few)
    monkeypatch.setattr("ivlens.cli.vector.N_DRAWS", 1)
    words = ["vector", "--task", "antonym", "--judge", "--n-prompts", "4"]
    assert main(words) == 0
    err = capsys.readouterr().err
    for what in ("loading pocket", "antonym: heads", "other tasks' vectors", "trying settings"):
        assert what in err, what
    assert not progress.is_showing()


@pytest.mark.parametrize("wait, warm", [(0.0, False), (0.7, True)])
def test_ctrl_c_while_measuring(wait, warm):
    hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    words = ["-m", "ivlens", "effects", "--task", "antonym", "--method", "reference", "--n-prompts", "4000"]
    options, before = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}, _of_children()
    with Warm(words, **options) if warm else Popen([sys.executable, *words], preexec_fn=hear, **options) as job:
        assert job.stderr and "clean accuracy" in job.stderr.readline()  # measuring begins
        time.sleep(wait)
        used = psutil.Process(job.pid).cpu_times()
        job.send_signal(signal.SIGINT)
        out, err = job.communicate(timeout=20)
    seconds = job.seconds if warm else _of_children() - before
    assert (job.returncode, out, err.strip()) == (130, "", "ivlens: interrupted")
    assert seconds - used.user - used.system < 2, "of computing, after the signal"


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
