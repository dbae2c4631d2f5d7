"""Wrong values for every parameter of every public name, and for every option of every command: a sample, and all.

The harnesses run in processes of their own: arguments and memory are there as users have them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def tried(harness: str, *arguments: str, timeout: int = 900) -> dict[str, Any]:
    """What a harness counted in its last line, with what it said on the way."""
    command = [sys.executable, str(HERE / harness), *arguments]
    surroundings = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=surroundings)
    assert done.returncode == 0, done.stderr[-2000:]
    *said, last = done.stdout.splitlines()
    return json.loads(last) | {"said": "\n".join(said)}


def parameters(every: int, start: int = 0) -> None:
    found = tried("wrong_values.py", "--every", str(every), "--start", str(start))
    assert found["bad"] == 0, found["said"]
    assert sum(found["all"].values()) > 10_000 / every
    assert found["all"]["clear"] > 3 * found["all"]["result"] > 0


def options(every: int, start: int = 0) -> None:
    found = tried("wrong_options.py", "--every", str(every), "--start", str(start))
    assert found["bad"] == 0, found["said"]
    assert sum(found["all"].values()) > 4_000 / every
    assert found["all"]["refused"] > 0 and found["all"]["result"] > 0


def test_parameters():
    parameters(41)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_all_parameters(part: int):
    parameters(2, part)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_a_quarter_of_all_options(part: int):
    """Another quarter by `python tests/wrong_options.py --every 8 --start 2`, and so on."""
    options(8, part)


def test_what_is_bad_is_seen():
    """Of the harness: a foreign error, one that says too little, and one that is right."""
    code = """
import json
from wrong_values import outcome
def says(text):
    from ivlens.common.arguments import fitted
    return fitted(text, None, int)
calls = [lambda: json.loads('{'), lambda: says('other'), lambda: says('seed'), lambda: 1]
print([outcome(call, 'seed').kind for call in calls])
"""
    surroundings = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=surroundings)
    assert done.stdout.strip() == "['foreign', 'unclear', 'clear', 'result']", done.stderr
