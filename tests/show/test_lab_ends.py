"""Ctrl-C ends a lab that computes: with one line, and never with an abort of the process."""

import os
import signal
import subprocess
import sys
import time

import pytest
import warm
from warm import Warm

pytest.importorskip("panel")

# a lab that is at work from the beginning, in blocks of this many seconds in which no Python runs
SCRIPT = """
import sys, time, torch
import ivlens.show.lab.server as server
from ivlens.cli.main import main
from ivlens.show.lab.view import Lab

seconds, server.MOST_SECONDS, waits = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "waits"
opened, big = server.open_server, torch.randn(700, 700)

def slow(block, given, out):
    print("at work", flush=True)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        torch.linalg.svd(big)

def open_server(engines, state, **options):
    found = opened(engines, state, **options)
    for block in engines[0].model.blocks:
        block.register_forward_hook(slow)
    lab = Lab(engines, state, page=True)
    if waits:
        found.pages.append(lab)
    lab.session.refresh()
    return found

server.open_server = open_server
sys.exit(main(["lab", "--no-browser", "--task", "antonym"]))
"""


@pytest.mark.parametrize(
    ("seconds", "most", "n_signals"), [(0.3, 20.0, 1), (8.0, 1.0, 1), (8.0, 60.0, 2)], ids=["stops", "is left", "twice"]
)
def test_ctrl_c_while_the_lab_computes(seconds, most, n_signals):
    command = ["-c", SCRIPT, str(seconds), str(most), "waits"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    if most == 1.0:  # the one that could abort at its end, in a process of its own
        job = subprocess.Popen([sys.executable, *command], env=os.environ | {"OMP_NUM_THREADS": "1"}, **options)
    else:
        job = Warm(command, **options)
    with job:
        try:
            assert job.stdout is not None and any("at work" in line for line in job.stdout)
            began = time.monotonic()
            for _ in range(n_signals):
                job.send_signal(signal.SIGINT)
                time.sleep(1.0)
            _, complaint = job.communicate(timeout=60)
        finally:
            job.kill()
    assert job.returncode == 130 and complaint.rstrip().endswith("ivlens: interrupted"), complaint
    assert "terminate called" not in complaint and "Fatal" not in complaint and "Traceback" not in complaint
    assert time.monotonic() - began < 30


LEFT_OPEN = """
import time, ivlens
from ivlens.show.lab.measures import EngineOptions
from ivlens.show.lab.opening import open_engines
from ivlens.show.lab.session import Session

opened = open_engines(ivlens.load_model("pocket"), ["antonym"], None, (), EngineOptions(n_prompts=64, n_search=16))
session = Session(opened.engines, opened.state(text="big", max_new_tokens=3), lambda channel, value: None)
session.refresh()
time.sleep(0.2)
print("at work" if not session.wait(0) else "done")
"""


def test_a_program_that_ends_while_its_lab_computes_ends_well():
    done = warm.run(["-c", LEFT_OPEN], timeout=120)
    assert done.stdout.strip() == "at work" and done.returncode == 0, done.stderr
    assert "terminate called" not in done.stderr and "Traceback" not in done.stderr
