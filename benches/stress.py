"""What ivlens survives: hostile input by the thousand, and SIGKILL at random moments.

    python benches/stress.py fuzz [--cases 15000]     hostile input; --go-on: targets without numbers alone
    python benches/stress.py tasks [--cases 40000]    hostile task files, folders and tables alone
    python benches/stress.py sweeps [--n 30]          sweeps that are killed
    python benches/stress.py trainings [--n 30]       trainings that are killed
    python benches/stress.py saves [--n 30]           results that are killed while they are written
    python benches/stress.py workers [--n 3]          workers of dask.distributed that are killed
    python benches/stress.py stores [--n 30]          series of checkpoints and benchmarks that are killed
    python benches/stress.py over [--n 400]           saves over older saves that are killed
    python benches/stress.py parameters [--n N]       public names × wrong values, all of them or about N
    python benches/stress.py options [--n N]          options of commands × wrong values, all of them or about N
    python benches/stress.py lines [--n 4000]         commands on bad streams, odd screens, without memory or disk
    python benches/stress.py KIND [--n 1000]          a kind of tests/hostile_kinds.py: identities, unfolding, streams,
                                                      await
    python benches/stress.py inputs --write           all hostile inputs: 45,000 in some 25 minutes of one free core
    python benches/stress.py all --write              all of it, and docs/reliability.md

Every part ends with an error if something was lost, made twice, served damaged, or ended in another library's
traceback. With `--write` its numbers go into docs/reliability.md.
"""

import argparse
import json
import logging
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "common")]

from common import machine_line, table  # noqa: E402
from fuzz_limits import limit_targets  # noqa: E402
from fuzzing import run_cases  # noqa: E402
from killed_saves import run as run_killed_saves  # noqa: E402
from killed_stores import run as run_killed_stores  # noqa: E402
from lines import run as run_lines  # noqa: E402
from sweeping import Forked, digests, kill_in_the_middle, of_cells, start, write_grid  # noqa: E402
from test_hostile import make_targets  # noqa: E402
from test_store import KILLED, fill_with  # noqa: E402

from ivlens.common.store import Store, collect_garbage, verify  # noqa: E402

NUMBERS, PAGE = Path(__file__).parent / "stress.json", ROOT / "docs" / "reliability.md"
SLOW = {"store, bytes": 100, "store, content": 100, "store, tricks": 100}
SLOW |= {"checkpoint": 150, "adapters": 150, "command line": 300}
# kinds that few values make, or that cost seconds each
SLOW |= dict.fromkeys(("limits, configuration", "limits, tokenizers", "limits, patterns", "limits, adapters"), 60)
SLOW["limits, pipes and devices"] = 20
SLOW |= dict.fromkeys(("limits, task files", "limits, chat templates", "limits, prompt templates"), 60)

WAYS = ("", "/scratch/", "state.safetensors", "/entries/")  # a kill comes soon after such a file

TRAINING = """
[[tuning]]
tasks = ["middle_of_three"]
watch = ["antonym"]
guidance = ["none", "heads"]
steps = 60
n_samples = 16
batch_size = 4
save_every = 1
keep_model = true
"""


def keep(part: str, found: dict[str, Any], seed: int) -> None:
    """Put the numbers of one part into the file of numbers, and all of them into the page."""
    numbers = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    numbers[part] = found | {"machine": machine_line(), "seed": seed}
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n")
    write_page(numbers)


def fuzz(n: int, seed: int, write: bool = False, go_on: bool = False, only: str = "") -> dict[str, Any]:
    """At least `n` cases over all targets; `go_on` keeps the numbers of those that have been tried.

    Args:
        only: What the names of the targets begin with.
    """
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = True
    logging.getLogger("ivlens").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        kinds = []
        for name, make in (("files", make_targets), ("limits", limit_targets)):
            (Path(folder) / name).mkdir()
            kinds.append(make(Path(folder) / name))
        every = {name: (one, *found) for one in kinds for name, found in one.all().items() if name.startswith(only)}
        quick = [name for name in every if name not in SLOW]
        each = -(-max(0, n - sum(SLOW[name] for name in every if name in SLOW)) // len(quick))
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        last = json.loads(NUMBERS.read_text())["fuzz"] if go_on else {"targets": {}, "grown_gb": 0, "seconds": 0}
        rows: dict[str, Any] = last["targets"]
        for name, (targets, strategy, case) in every.items():
            if name in rows:
                continue
            tally = None
            wanted = SLOW.get(name, each)
            for more in range(20):  # hypothesis leaves out inputs that it has had
                if tally is not None and tally.n >= wanted:
                    break
                run_cases(wanted, strategy, case, seed=seed + more)
                tally = targets.tallies[name]
            assert tally is not None
            rows[name] = {"cases": tally.n, "results": tally.results, "refused": tally.refused.total()}
            rows[name]["slowest"] = round(tally.slowest, 2)
            print(name, rows[name], flush=True)
            if write:  # hours of an interrupted run are not lost
                keep("fuzz", _summed(rows, last, before, started), seed)
    found = _summed(rows, last, before, started)
    assert found["cases"] >= n and found["grown_gb"] < 2, f"{found['cases']} cases, {found['grown_gb']} GB more"
    return found


def tasks(n: int, seed: int) -> dict[str, Any]:
    """At least `n` cases of what reads tasks."""
    return fuzz(n, seed, only="task")


def _summed(rows: dict[str, Any], last: dict[str, Any], before: int, started: float) -> dict[str, Any]:
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    return {
        "targets": rows,
        "cases": sum(row["cases"] for row in rows.values()),
        "grown_gb": max(round(grown, 2), last["grown_gb"]),
        "seconds": round(time.perf_counter() - started + last["seconds"], 1),
    }


def killed_sweeps(
    n: int, seed: int, grid_text: str | None = None, ways: tuple[str, ...] = WAYS, begin: Callable[..., Any] = start
) -> dict[str, Any]:
    """Kill sweeps `n` times; each that comes to its end is compared with one that was left alone."""
    draw, started = random.Random(seed), time.perf_counter()
    n_killed = n_ends = n_damaged = 0
    with tempfile.TemporaryDirectory() as folder:
        grid = write_grid(Path(folder)) if grid_text is None else write_grid(Path(folder), grid_text)
        whole, number = _finished(grid, Path(folder) / "whole"), 0
        while n_killed < n:
            number += 1
            store = Path(folder) / f"store-{number}"
            killed_here = 0
            while (
                n_killed < n
                and killed_here < 6
                and kill_in_the_middle(grid, store, draw, until=draw.choice(ways), begin=begin)
            ):
                n_killed, killed_here = n_killed + 1, killed_here + 1
                n_damaged += sum(finding.what.startswith("damaged") for finding in verify(Store(store))[1])
                print(f"killed {n_killed} of {n}, {len(Store(store).places())} results kept", flush=True)
            assert _finished(grid, store) == whole, "a resumed sweep ended with other results"
            n_ends += 1
    assert n_damaged == 0
    seconds = time.perf_counter() - started
    return {
        "killed": n_killed,
        "resumed_equal": n_ends,
        "damaged": n_damaged,
        "results": len(whole),
        "seconds": seconds,
    }


def killed_trainings(n: int, seed: int) -> dict[str, Any]:
    """The same with nothing but trainings, which keep their state after every step.

    What is killed is a fork, so that most of the time goes into training; what resumes it in the end is a new process.
    """
    return killed_sweeps(n, seed, TRAINING, ("", "state.safetensors", "state.safetensors"), Forked)


def killed_saves(n: int, seed: int) -> dict[str, Any]:
    """Kill processes that write a result, at moments drawn over the whole of it and a little past its end."""
    draw, started, n_kept = random.Random(seed), time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        # what a save takes is looked at again and again: it is another time on a machine that others use as well
        took = [_save(store, number) for number in range(3)]
        for number in range(3, n + 3):
            took[number % 3] = _save(Store(Path(folder) / "other"), number)
            _save(store, number, kill_after=draw.uniform(0, 1.25 * statistics.median(took)))
            whole, findings = verify(store)
            n_kept += whole > number
            assert all(finding.what == "left by a killed process" for finding in findings), findings
            collect_garbage(store)
            store.put({"kind": "numbers", "n": number}, fill_with())
            assert verify(store) == (number + 1, [])
    assert n < 10 or 0 < n_kept < n, f"{n_kept} of {n} kept: all kills fell on one side"
    return {"killed": n, "kept": n_kept, "damaged": 0, "seconds": time.perf_counter() - started}


def _save(store: Store, number: int, kill_after: float | None = None) -> float:
    """Let another process write a result, and kill it after so many seconds, or at its end; seconds that it took."""
    command = [sys.executable, "-c", KILLED, str(store.folder), str(number)]
    pipe = subprocess.PIPE
    job = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, cwd=ROOT)
    assert job.stdin and job.stdout and job.stdout.readline() == b"up\n"
    begun = time.perf_counter()
    job.stdin.write(b"\n")
    job.stdin.flush()
    if kill_after is None:
        assert job.stdout.readline() == b"done\n"
    else:
        time.sleep(kill_after)
    seconds = time.perf_counter() - begun
    assert job.poll() is None, "over before it could be killed"
    job.send_signal(signal.SIGKILL)
    job.wait()
    return seconds


def killed_workers(n: int, seed: int) -> dict[str, Any]:
    """Kill one of two workers in the middle of a cell."""
    import psutil

    draw, started = random.Random(seed), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        grid = write_grid(Path(folder))
        whole = _finished(grid, Path(folder) / "whole")
        for number in range(n):
            store = Path(folder) / f"store-{number}"
            job = start(grid, store, "--workers", "2")
            limit = time.monotonic() + 200
            while not any("/scratch/" in path for path in of_cells(store)) and time.monotonic() < limit:
                time.sleep(0.02)
            children = psutil.Process(job.pid).children(recursive=True)
            workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
            draw.choice(workers).kill()
            out, err = job.communicate(timeout=500)
            assert job.returncode == 0 and digests(store) == whole, err
            print(f"worker {number + 1} of {n}: {out.splitlines()[0]}", flush=True)
    return {"killed": n, "resumed_equal": n, "seconds": time.perf_counter() - started}


def _finished(grid: Path, store: Path) -> dict[str, str]:
    job = start(grid, store)
    _, err = job.communicate(timeout=900)
    assert job.returncode == 0, err
    found = Store(store)
    assert verify(found)[0] == len(found.places()), "a damaged result"
    return digests(store)


def killed_over(n: int, seed: int) -> dict[str, Any]:
    """Kill saves that replace an older one: the old one or the new one is read, never some files of each."""
    started, found = time.perf_counter(), run_killed_saves(n, seed)
    return found | {"damaged": found["mixed"], "seconds": time.perf_counter() - started}


def killed_stores(n: int, seed: int) -> dict[str, Any]:
    """Kill series of checkpoints and benchmarks; in the end their stores have the same bytes as without kills."""
    started, found = time.perf_counter(), run_killed_stores(n, seed)
    return found | {"seconds": time.perf_counter() - started}


def harness(script: str, *arguments: str) -> dict[str, Any]:
    """What a harness of the tests counted in a process of its own, with memory and arguments as users have them."""
    started = time.perf_counter()
    command = [sys.executable, str(ROOT / "tests" / script), *arguments]
    surroundings = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=surroundings)
    *said, last = done.stdout.splitlines() or [""]
    print(*said, sep="\n", flush=True)
    assert done.returncode == 0, f"{script} ended with status {done.returncode}"
    return json.loads(last) | {"seconds": time.perf_counter() - started}


def wrong(script: str, most: int) -> Callable[[int, int], dict[str, Any]]:
    """Wrong values for everything that takes values: about `n` of the `most` that there are, 0 for all."""

    def run(n: int, seed: int) -> dict[str, Any]:
        found = harness(script, "--every", str(max(1, most // n) if n else 1))
        kinds = found.pop("all")
        refused = kinds.get("clear", 0) + kinds.get("refused", 0)
        counts = {"cases": sum(kinds.values()), "results": kinds.get("result", 0), "refused": refused}
        return counts | {"else": found["bad"]} | found

    return run


def kind(name: str) -> Callable[[int, int], dict[str, Any]]:
    """`n` cases of a kind of tests/hostile_kinds.py."""

    def run(n: int, seed: int) -> dict[str, Any]:
        found = harness("hostile_kinds.py", name, str(n), str(seed))
        return {"cases": found["results"] + found["refused"]} | found

    return run


def command_lines(n: int, seed: int) -> dict[str, Any]:
    """`n` of the commands' wrong values, bad streams, odd screens and shortages of memory or disk."""
    started, found = time.perf_counter(), run_lines(n, seed)
    return found | {"seconds": time.perf_counter() - started}


INPUTS = {  # parts that are rows of the table of inputs
    "parameters": "public names, wrong values",
    "options": "command options, wrong values",
    "lines": "commands, bad streams, no memory or disk",
    "identities": "checkpoint, changed in place",
    "unfolding": "files that unfold",
    "streams": "closed streams",
    "await": "steering across await",
}
PARTS: dict[str, tuple[Callable[..., dict[str, Any]], int]] = {
    "fuzz": (fuzz, 15_000),
    "tasks": (tasks, 40_000),
    "sweeps": (killed_sweeps, 30),
    "trainings": (killed_trainings, 30),
    "saves": (killed_saves, 30),
    "workers": (killed_workers, 3),
    "stores": (killed_stores, 30),
    "over": (killed_over, 400),
    "parameters": (wrong("wrong_values.py", 15_500), 0),
    "options": (wrong("wrong_options.py", 9_900), 0),
    "lines": (command_lines, 4_000),
    "identities": (kind("identities"), 1_500),
    "unfolding": (kind("files that unfold"), 400),
    "streams": (kind("closed streams"), 1_000),
    "await": (kind("steering across await"), 1_000),
}


def page(numbers: dict[str, Any]) -> str:
    """The measured part of docs/reliability.md."""
    lines = []
    inputs = {name: row for name, row in numbers.get("fuzz", {}).get("targets", {}).items()}
    inputs |= numbers.get("tasks", {}).get("targets", {})  # more of them than in the rest
    inputs |= {name: numbers[part] for part, name in INPUTS.items() if part in numbers}
    if inputs:
        tried = [numbers[part] for part in ("fuzz", "tasks", *INPUTS) if part in numbers]
        total, grown = sum(row["cases"] for row in inputs.values()), max(part.get("grown_gb", 0) for part in tried)
        lines += [f"{total:,} hostile inputs, memory grown by {grown} GB ({tried[0]['machine']})", ""]
        rows = [
            [name, f"{row['cases']:,}", f"{row['results']:,}", f"{row['refused']:,}", f"{row.get('else', 0):,}"]
            for name, row in inputs.items()
        ]
        head = ["input", "cases", "right result", "refused in one sentence, or set aside", "anything else"]
        lines += [table(head, rows)]
    killed = {
        "sweeps": "sweep",
        "trainings": "training, state kept after every step",
        "stores": "series of checkpoints, benchmark",
        "saves": "while a result is written",
        "over": "while a save of several files replaces an older one",
    }
    if "saves" in numbers:
        n, kept = numbers["saves"]["killed"], numbers["saves"]["kept"]
        killed["saves"] += f" ({n - kept} times before it was kept, {kept} times after)"
    killed["workers"] = "one of two dask workers"
    rows = []
    for part, what in killed.items():
        if part in numbers:
            found = numbers[part]
            ends = str(found.get("resumed_equal", "–"))
            rows.append([what, str(found["killed"]), ends, str(found.get("damaged", "–"))])
    head = ["SIGKILL at a random moment", "times", "resumed, all bytes equal", "damaged results served"]
    return "\n".join([*lines, *([table(head, rows)] if rows else [])])


def write_page(numbers: dict[str, Any]) -> None:
    """Put the measured part between its marks."""
    begin, end = "<!-- measured -->", "<!-- end of measured -->"
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(begin)
    PAGE.write_text(f"{head}{begin}\n{page(numbers).strip()}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "all", "inputs", "page"])
    parser.add_argument("--cases", type=int)
    parser.add_argument("--n", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--go-on", action="store_true")
    options = parser.parse_args()
    several: dict[str, list[str]] = {"all": list(PARTS), "inputs": ["fuzz", "tasks", *INPUTS], "page": []}
    for part in several.get(options.part, [options.part]):
        run, default = PARTS[part]
        wanted = (options.cases if part in ("fuzz", "tasks") else options.n) or default
        more = {"write": options.write, "go_on": options.go_on} if part == "fuzz" else {}
        found = run(wanted, options.seed, **more)
        print(part, json.dumps(found))
        if options.write:
            keep(part, found, options.seed)
    if options.part == "page":
        write_page(json.loads(NUMBERS.read_text()))


if __name__ == "__main__":
    main()
