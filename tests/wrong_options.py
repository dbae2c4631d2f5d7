"""Every option of every command, given what does not belong there. A harness for the tests and the benches.

    python tests/wrong_options.py [COMMAND ...] [--every N] [--show bad]

Each run has one option wrong and the others right. It must end with status 0, or with 2 and a message: never in an
exception, and never in hours. Commands that would work for minutes get a model that is not there, so that all that
comes before opening it is tried.
"""

import argparse
import collections
import contextlib
import io
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from fuzz_inputs import GRID
from fuzzing import Hang, time_limit
from wrong_values import GROWTH_GB, SECONDS, Things, limited, workplace

from ivlens.cli.main import COMMANDS, build_app, main
from ivlens.common.store import Store
from ivlens.common.store.entries import TABLE

WRONG = [
    "", " ", "-1", "0", "1", "2.5", "nan", "inf", "-inf", "1e999", "99999999999999999999", "no such thing", "plain",
    "none", "None", "true", "auto", "a\nb", "ä\x1b[31m", "\u202e", "x" * 5000, "../x", "/", "/dev/null", "~nobody/x",
    "--", "-", "1,2,,", "[1]", "{}", "a=b", "\ud800", "0x10", "1_000", "\uff11", "%s", "$HOME", "antonym",
    "antonym,antonym", "hf://x", "file:///etc/passwd", "a\x00b",
]  # fmt: skip
NOT_TRIED = {"doctor"}  # has no option but --json
LONG = {
    "evaluate",
    "terse train",
    "terse card",
    "demo",
    "figures",
    "study",
    "bench",
    "lab",
    "pocket train",
    "pocket card",
    "get",
    "sweep",
}


def right(the: Things) -> dict[str, list[str]]:
    """By command: words that let it do its work, little of it."""
    root, few = the.root, ["--n-prompts", "2"]
    model, away = ["--model", str(root / "model")], ["--model", str(root / "away")]
    task, out = ["--task", str(root / "task.json")], ["--out", str(root / "out")]
    vector, tuned = str(root / "vector.safetensors"), ["--checkpoints", str(root / "series")]
    return {
        "tasks show": ["antonym"], "tasks check": [str(root / "task.json")],
        "prompts": [*task, *model, *few, "--shots", "0", "--template", "plain"],
        "effects": [*task, *model, *few, "--corruption", "drop"],
        "attention": [*task, *model, *few, *out],
        "vector": [*task, *model, *few, "--corruption", "drop", "--k", "2"],
        "steer": ["--text", "big", *task, *model, "--vector", vector, "--layer", "0", "--alpha", "1"],
        "export": [
            vector, *model, "--format", "python", "--layer", "0", "--alpha", "1", "--out", str(root / "out.py")
        ],
        "tune": [
            *task, *model, *few, *out, "--steps", "1", "--batch-size", "2", "--n-samples", "2", "--method", "full"
        ],
        "forget": [*tuned, *task, *few, *out, "--figures", "json"],
        "dynamics": [*tuned, *task, *few, *out, "--k", "1", "--n-judge-prompts", "2", "--figures", "json"],
        "transplant": [
            str(root / "model"), str(root / "series"), *task, *few, *out, "--k", "1", "--n-draws", "1",
            "--n-judge-prompts", "2", "--no-splices", "--figures", "json",
        ],
        "figures": ["--from", str(root / "suite"), *out],
        "evaluate": [*task, *away, *out, "--n-shots", "0"],
        "demo": [*away, *out], "study": [*away, *out], "bench": [*away, *out], "lab": [*away, "--no-browser"],
        "terse card": away, "terse train": [*away, *out, "--steps", "1"],
        "pocket card": away, "pocket train": ["--out", "/dev/null/x", "--steps", "1"],
        "sweep": [str(root / "grid.toml"), "--store", str(root / "store"), "--dry-run"],
        "get": ["--list"],
        "store ls": [str(root / "store")], "store verify": [str(root / "store")],
        "store gc": [str(root / "store"), "--dry-run"],
        "store export": [str(root / "store"), "--out", str(root / "all.csv")],
    }  # fmt: skip


def options() -> dict[str, list[str]]:
    """By command: the names of its options."""
    found: dict[str, list[str]] = {}
    for name in COMMANDS:
        app = build_app(name)[name]
        inner = [each for each in app if not each.startswith("-")]
        for sub in inner or [None]:
            of = app if sub is None else app[sub]
            given = [argument.names[0] for argument in of.assemble_argument_collection()]
            found[name if sub is None else f"{name} {sub}"] = [each for each in given if each.startswith("--")]
    return found


def make_store(root: Path) -> None:
    """A store of one result, and a grid."""
    import pandas as pd

    table = pd.DataFrame({"x": [1]})
    Store(root / "store").put({"kind": "numbers"}, lambda folder: table.to_parquet(folder / TABLE))
    (root / "grid.toml").write_text(GRID)


@dataclass(frozen=True)
class Ended:
    """How one run ended: `result`, `refused`, `unclear` or `foreign`, and what it said."""

    kind: str
    said: str
    seconds: float
    grown_gb: float

    @property
    def is_bad(self) -> bool:
        return self.kind in ("unclear", "foreign") or self.seconds > SECONDS or self.grown_gb > GROWTH_GB


def ended(words: list[str]) -> Ended:
    """Run one command here, and judge how it ended."""
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out, err = io.StringIO(), io.StringIO()

    def judged(kind: str, said: str) -> Ended:
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return Ended(kind, said, time.process_time() - started, grown / (2**30 if sys.platform == "darwin" else 2**20))

    try:
        with time_limit(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words)
    except Hang:
        return judged("foreign", "not finished in time")
    except BaseException as error:
        return judged("foreign", f"{type(error).__name__}: {error!s:.200}")
    said = err.getvalue().strip()
    if status == 0:
        return judged("result", "")
    last = said.splitlines()[-1:]
    ours = [line for line in last if line.startswith("ivlens: ")]  # before it stands what was done
    boxed = "╭" in said or "Error" in said  # cyclopts' own, which names the option in a box
    return judged("refused" if status in (1, 2) and (len(ours) == 1 or boxed) else "unclear", said[-300:])


def runs(
    the: Things, only: list[str], every: int = 1, start: int = 0
) -> Iterator[tuple[str, str, str, Callable[[], Ended]]]:
    """Yield command, option, value, and what runs it; of all of them each `every`-th."""
    words, number = right(the), start
    known = options()
    assert known.keys() - NOT_TRIED == words.keys(), known.keys() ^ words.keys()
    for command, names in known.items():
        if command in NOT_TRIED or (only and command not in only):
            continue
        for option in names:
            if (command, option) == ("pocket train", "--out"):
                continue  # a folder is all that it asks for, and then it trains for an hour
            for value in WRONG:
                if (option, value) == ("--dry-run", "0"):
                    continue  # "no", so that it does all of the work
                number += 1
                if number % every == 0:
                    shutil.rmtree(the.root / "out", ignore_errors=True)
                    line = [*command.split(), *_without(words[command], option), f"{option}={value}"]
                    yield command, option, value, lambda line=line: ended(line)


def _without(words: list[str], option: str) -> list[str]:
    """Words without an option and its value, so that it stands there but once."""
    if option not in words:
        return words
    at = words.index(option)
    return words[:at] + words[at + (1 if option == "--dry-run" else 2) :]


def count() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--show", choices=["bad", "result", "all", "none"], default="bad")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    counts: collections.Counter[str] = collections.Counter()
    n_bad, slowest, grown = 0, 0.0, 0.0
    with workplace() as things:
        limited()
        make_store(things.root)
        for command, words in right(things).items():
            first = ended([*command.split(), *words])
            assert command in LONG or first.kind == "result", (command, first.said)
        for command, option, value, run in runs(things, asked.commands, asked.every, asked.start):
            found = run()
            counts[found.kind] += 1
            n_bad += found.is_bad
            slowest, grown = max(slowest, found.seconds), max(grown, found.grown_gb)
            shown = {"bad": found.is_bad, "all": True, "result": found.kind == "result", "none": False}[asked.show]
            if shown:
                print(
                    f"{command} {option}={value!r:.30}: {found.kind}, {found.seconds:.1f} s: {found.said!r}", flush=True
                )
    print(json.dumps({"all": counts, "bad": n_bad, "slowest_s": round(slowest, 2), "grown_gb": round(grown, 2)}))


if __name__ == "__main__":
    count()
