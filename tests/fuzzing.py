"""Hostile input: files broken in every way, arguments of every type. For the tests and for benches/stress.py.

Every case must end in a right result or in an error that ivlens itself raises, within five seconds of computing,
without a file outside of the target folder.
"""

import contextlib
import io
import json
import math
import os
import shutil
import signal
import struct
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

SECONDS, PATIENCE = 5.0, 60.0  # of computing, which a busy machine does not change; of the clock, for what waits
PACKAGE = f"{os.sep}ivlens{os.sep}"
NAMES = ["../x", "/etc/passwd", "..", ".", "", "a\0b", "\ud800", "~", "x" * 1_000_000, "C:\\x", "-", "--", "\n", "%s"]
NUMBERS = [0, -1, 2**31, 2**63, 2**64, 10**400, math.nan, math.inf, -math.inf, 1e308, -0.0]
DEEP = "@@deep@@"

fraction = st.floats(0, 1, exclude_max=True)
scalars = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.integers(), st.floats(), st.text(max_size=12),
    st.sampled_from(NAMES), st.just(DEEP),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)),
    max_leaves=8,
)
mutations = st.lists(
    st.one_of(
        st.tuples(st.just("cut"), fraction),
        st.tuples(st.just("flip"), st.lists(st.tuples(fraction, st.integers(0, 7)), min_size=1, max_size=8)),
        st.tuples(st.just("insert"), fraction, st.binary(min_size=1, max_size=40)),
        st.tuples(st.just("copy"), fraction, fraction, fraction),
        st.tuples(st.just("zero"), fraction, fraction),
        st.tuples(st.just("repeat"), st.integers(2, 50)),
        st.tuples(st.just("all"), st.binary(max_size=60)),
    ),
    min_size=1,
    max_size=3,
)
edits = st.lists(
    st.tuples(st.lists(fraction, min_size=1, max_size=5), st.sampled_from(["set", "drop", "rename", "add"]), values),
    min_size=1,
    max_size=3,
)


class Hang(BaseException):
    """A case that took too long."""


def broken(data: bytes, how: Sequence[tuple[Any, ...]]) -> bytes:
    """Bytes after some accidents."""
    for name, *more in how:
        at = [int(part * len(data)) for part in more if isinstance(part, float)]
        if name == "cut":
            data = data[: at[0]]
        elif name == "insert":
            data = data[: at[0]] + more[1] + data[at[0] :]
        elif name == "copy":
            data = data[: at[0]] + data[min(at[1:]) : max(at[1:])] + data[at[0] :]
        elif name == "zero":
            low, high = sorted(at)
            data = data[:low] + bytes(high - low) + data[high:]
        elif name == "repeat":
            data = (data * more[0])[: 2**20]
        elif name == "all":
            data = more[0]
        elif data:
            changed = bytearray(data)
            for place, bit in more[0]:
                changed[int(place * len(data))] ^= 1 << bit
            data = bytes(changed)
    return data


def edited(value: Any, how: Sequence[tuple[list[float], str, Any]]) -> Any:
    """A copy of plain values with some places changed."""
    value = json.loads(json.dumps(value))
    for path, action, new in how:
        holder, key = None, None
        here = value
        for part in path:
            if not isinstance(here, dict | list) or not here:
                break
            keys = list(here) if isinstance(here, dict) else range(len(here))
            holder, key = here, keys[int(part * len(keys))]
            here = holder[key]
        if holder is None:
            value = new
        elif action == "drop":
            del holder[key]
        elif action == "set" or isinstance(holder, list):
            holder[key] = new
        else:
            name = new if isinstance(new, str) else str(new)[:40]
            holder[name] = holder.pop(key) if action == "rename" else new
    return value


def as_json(value: Any) -> bytes:
    """JSON, with NaN, half surrogates, and what is marked as deep really deep."""
    text = json.dumps(value)
    return text.replace(json.dumps(DEEP), "[" * 50_000 + "]" * 50_000).encode()


def safetensors_parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def safetensors_file(header: Any, tensors: bytes) -> bytes:
    """Back into a file."""
    text = as_json(header)
    return struct.pack("<Q", len(text)) + text + tensors


@dataclass
class Tally:
    """What became of the cases.

    Attributes:
        results: Cases that gave a result.
        refused: Cases that ivlens refused, by the type of its error.
        slowest: Seconds of computing.
    """

    results: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    @property
    def n(self) -> int:
        """All cases."""
        return self.results + self.refused.total()


@dataclass
class Sandbox:
    """A folder for the target, and a look at everything around it."""

    root: Path

    def __post_init__(self) -> None:
        self.target = self.root / "target"
        self.target.mkdir()
        (self.root / "sentinel").write_text("stays")
        (self.root / "x").write_text("stays too")
        self._around = self._look()

    def _look(self) -> list[tuple[str, int, int]]:
        return sorted(
            (entry.name, entry.stat().st_size, entry.stat().st_mtime_ns)
            for entry in os.scandir(self.root)
            if entry.name != "target"
        )

    def empty(self) -> None:
        """Make the target folder anew."""
        shutil.rmtree(self.target, ignore_errors=True)
        self.target.mkdir()

    def check(self) -> None:
        """Raise AssertionError if something was written outside."""
        assert self._look() == self._around, "something was written outside of the target folder"


def attempt(call: Callable[[], Any], tally: Tally) -> None:
    """Run one case.

    Raises:
        AssertionError: the error came from elsewhere than ivlens, or says nothing, or the case hung.
    """
    import time

    started = time.process_time()
    try:
        with _time_limit(), _silence():
            call()
        tally.results += 1
    except Hang:
        raise AssertionError(f"not finished after {SECONDS} s of computing, or {PATIENCE} s") from None
    except (ValueError, OSError, TypeError) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        is_ours = PACKAGE in frame.filename and "raise " in (frame.line or "")
        assert is_ours, f"{type(error).__name__} of {frame.filename}:{frame.lineno}: {error!s:.300}"
        assert len(str(error)) > 20 and not isinstance(error, UnicodeError), f"says too little: {error!r:.300}"
        tally.refused[type(error).__name__] += 1
    tally.slowest = max(tally.slowest, time.process_time() - started)


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def ring(number: int, frame: Any) -> None:
        raise Hang

    timers = {signal.ITIMER_PROF: (signal.SIGPROF, SECONDS), signal.ITIMER_REAL: (signal.SIGALRM, PATIENCE)}
    before = {number: signal.signal(number, ring) for number, _ in timers.values()}
    for timer, (_, seconds) in timers.items():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer, (number, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def run_cases(
    n: int, strategy: st.SearchStrategy[Any], case: Callable[[Any], None], *, seed: int | None = None
) -> None:
    """Try a case with `n` drawn inputs: always the same ones, or those of a seed."""

    def body(drawn: Any) -> None:
        case(drawn)

    tried = settings(
        max_examples=n,
        deadline=None,
        database=None,
        derandomize=seed is None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
    )(given(strategy)(body))
    if seed is not None:
        from hypothesis import seed as seeded

        tried = seeded(seed)(tried)
    tried()


# --- targets ---------------------------------------------------------------------------------------------------------

RECORDS = [{"input": f"word{n}", "output": [f"answer{n}", "other"]} for n in range(5)]
NATURAL = {
    "Definition": ["Say the opposite."],
    "Positive Examples": [{"input": "big", "output": "small", "explanation": ""}],
    "Negative Examples": [],
    "Instances": [{"id": f"task-{n}", "input": f"in {n}", "output": [f"out {n}"]} for n in range(4)],
}
BANK = {
    "name": "mine", "kind": "rule", "inputs": "words", "in_training": False, "instructions": ["Do it.", "Do it now."],
    "clozes": ["{x} is"], "examples": [{"input": f"w{n}", "output": "x"} for n in range(4)],
}  # fmt: skip
TASK_FILES: dict[str, Any] = {
    "records.json": RECORDS,
    "pairs.json": {"big": "small", "hot": "cold", "a": ["b", "c"]},
    "natural.json": NATURAL,
    "bank.json": BANK,
    "labels.json": [{"label": "yes", "sentence": f"text {n}"} for n in range(4)],
    "prompts.json": [{"prompt": f"Do {n}", "answer": "x"} for n in range(4)],
}
GRID = """models = ["pocket"]
tasks = ["antonym"]
seeds = [0, 1]
threads = 1
[effects]
n_prompts = [4, 8]
score = "prob"
[[interventions]]
alphas = [1.0, 2.0]
layers = [0]
[[tuning]]
watch = ["antonym"]
lr = 1e-3
guidance = "kl"
"""


COMMANDS = [
    ("effects", "--task", "antonym"), ("vector", "vector.safetensors"), ("vector", "--effects", "effects.safetensors"),
    ("steer", "--text", "big", "--vector", "vector.safetensors"), ("tune", "--task", "task.json", "--out", "tuned"),
    ("bench", "--out", "bench"), ("sweep", "grid.toml", "--store", "new", "--dry-run"), ("store", "ls", "store"),
    ("store", "verify", "store"), ("store", "gc", "store"), ("store", "export", "store", "--out", "all.csv"),
    ("figures", "store"), ("pocket",), (),
]  # fmt: skip


class Targets:
    """Everything that reads what others wrote, each as a strategy of inputs and a function that tries one.

    Args:
        sandbox: Where.
        store: A store with some results, copied for every case.
        vector, effects, stage: Files that ivlens wrote.
        checkpoint: Folder of a small model.
    """

    def __init__(
        self, sandbox: Sandbox, store: Path, *, vector: Path, effects: Path, stage: Path, checkpoint: Path
    ) -> None:
        self._sandbox, self._store, self._checkpoint, self._stage = sandbox, store, checkpoint, stage.read_bytes()
        self._safetensors = {"vector": vector.read_bytes(), "effects": effects.read_bytes()}
        self.tallies: dict[str, Tally] = {}

    def all(self) -> dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]]:
        """By name."""
        names = st.sampled_from(sorted(TASK_FILES))
        kinds, numbers = st.sampled_from(sorted(self._safetensors)), st.sampled_from(NUMBERS)
        word = st.one_of(st.sampled_from(self._words()), st.text(max_size=8), st.sampled_from(NAMES))
        words = st.tuples(
            st.one_of(st.sampled_from(COMMANDS), word.map(lambda one: (one,))), st.lists(word, max_size=6)
        )
        files = st.sampled_from(sorted(path.relative_to(self._store).as_posix() for path in _files(self._store)))
        tricks = st.sampled_from(["link", "folder", "gone", "name", "fifo"])
        return {
            "task file, bytes": (st.tuples(names, mutations), self.task_bytes),
            "task file, content": (st.tuples(names, edits), self.task_content),
            "task table, bytes": (st.tuples(st.sampled_from(["csv", "jsonl", "parquet"]), mutations), self.task_table),
            "task folder": (st.tuples(names, mutations, st.booleans(), edits), self.task_folder),
            "task and model names": (st.one_of(st.text(), st.sampled_from(NAMES)), self.names),
            "vector and effects, bytes": (st.tuples(kinds, mutations), self.artefact_bytes),
            "vector and effects, header": (st.tuples(kinds, edits), self.artefact_header),
            "vector and effects, content": (st.tuples(kinds, edits), self.artefact_content),
            "vector and effects, numbers": (st.tuples(kinds, numbers, fraction), self.artefact_numbers),
            "store, bytes": (st.tuples(files, mutations), self.store_bytes),
            "store, content": (st.tuples(files, edits), self.store_content),
            "store, tricks": (st.tuples(files, tricks, st.sampled_from(NAMES)), self.store_tricks),
            "grid, bytes": (mutations, self.grid_bytes),
            "grid, content": (edits, self.grid_content),
            "training state": (st.one_of(mutations, edits), self.training_state),
            "checkpoint": (st.tuples(st.sampled_from(self._parts()), st.one_of(mutations, edits)), self.checkpoint),
            "stage": (st.one_of(mutations, edits), self.stage),
            "command line": (words, self.command_line),
        }

    def _tried(self, name: str, call: Callable[[], Any]) -> None:
        attempt(call, self.tallies.setdefault(name, Tally()))
        self._sandbox.check()

    def _write(self, name: str, data: bytes) -> Path:
        path = self._sandbox.target / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(data)
        return path

    def task_bytes(self, drawn: tuple[str, Any]) -> None:
        path = self._write("task.json", broken(as_json(TASK_FILES[drawn[0]]), drawn[1]))
        self._tried("task file, bytes", lambda: _used_task(path))

    def task_content(self, drawn: tuple[str, Any]) -> None:
        path = self._write("task.json", as_json(edited(TASK_FILES[drawn[0]], drawn[1])))
        self._tried("task file, content", lambda: _used_task(path))

    def task_table(self, drawn: tuple[str, Any]) -> None:
        path = self._write(f"task.{drawn[0]}", broken(_table(drawn[0]), drawn[1]))
        self._tried("task table, bytes", lambda: _used_task(path))

    def task_folder(self, drawn: tuple[str, Any, bool, Any]) -> None:
        self._sandbox.empty()
        good = TASK_FILES[drawn[0]]
        self._write("task/train.json", as_json(good) if drawn[2] else broken(as_json(good), drawn[1]))
        self._write("task/test.json", as_json(edited(good, drawn[3]) if drawn[2] else good))
        self._write("task/labels.json", as_json(["yes", "no"]))
        self._tried("task folder", lambda: _used_task(self._sandbox.target / "task"))

    def names(self, name: str) -> None:
        from ivlens.models import load_model
        from ivlens.tasks import load_task

        self._tried("task and model names", lambda: load_task(name))
        if name != "pocket":
            self._tried("task and model names", lambda: load_model(name))

    def artefact_bytes(self, drawn: tuple[str, Any]) -> None:
        self._artefact("vector and effects, bytes", drawn[0], broken(self._safetensors[drawn[0]], drawn[1]))

    def artefact_header(self, drawn: tuple[str, Any]) -> None:
        header, tensors = safetensors_parts(self._safetensors[drawn[0]])
        self._artefact("vector and effects, header", drawn[0], safetensors_file(edited(header, drawn[1]), tensors))

    def artefact_content(self, drawn: tuple[str, Any]) -> None:
        header, tensors = safetensors_parts(self._safetensors[drawn[0]])
        about = edited(json.loads(header["__metadata__"]["ivlens"]), drawn[1])
        header["__metadata__"]["ivlens"] = as_json(about).decode()
        self._artefact("vector and effects, content", drawn[0], safetensors_file(header, tensors))

    def artefact_numbers(self, drawn: tuple[str, Any, float]) -> None:
        header, tensors = safetensors_parts(self._safetensors[drawn[0]])
        try:
            number = struct.pack("<f", float(drawn[1]))
        except OverflowError:
            number = struct.pack("<f", math.inf)
        at = int(drawn[2] * len(tensors)) // 4 * 4
        data = tensors[:at] + number + tensors[at + 4 :]
        self._artefact("vector and effects, numbers", drawn[0], safetensors_file(header, data))

    def _artefact(self, name: str, kind: str, data: bytes) -> None:
        from ivlens.effects import HeadEffects
        from ivlens.vectors import InstructionVector

        path = self._write(f"{kind}.safetensors", data)

        def use() -> None:
            if kind == "vector":
                made = InstructionVector.load(path)
                made.save(self._sandbox.target / "again.safetensors")
                repr((2.0 * made, made.norm, made.random_like(0)))
            else:
                found = HeadEffects.load(path)
                repr((found, found.to_frame()))

        self._tried(name, use)

    def store_bytes(self, drawn: tuple[str, Any]) -> None:
        path = self._copied_store() / drawn[0]
        path.write_bytes(broken(path.read_bytes(), drawn[1]))
        self._used_store("store, bytes")

    def store_content(self, drawn: tuple[str, Any]) -> None:
        from ivlens.store.entries import _seal

        path = self._copied_store() / drawn[0]
        manifest = path.parent / "manifest.json"
        if not manifest.exists():
            path.write_bytes(as_json(edited(json.loads(path.read_text()), drawn[1])))
        else:
            about = edited(json.loads(manifest.read_text()), drawn[1])
            if isinstance(about, dict):
                about.pop("seal", None)
                with contextlib.suppress(ValueError):
                    about["seal"] = _seal(about)  # as someone would who knows how
            manifest.write_bytes(as_json(about))
        self._used_store("store, content")

    def store_tricks(self, drawn: tuple[str, str, str]) -> None:
        path = self._copied_store() / drawn[0]
        name, trick, other = drawn
        path.unlink()
        with contextlib.suppress(OSError, ValueError):
            if trick == "link":
                path.symlink_to(self._sandbox.root / "sentinel")
            elif trick == "folder":
                path.mkdir()
            elif trick == "fifo":
                os.mkfifo(path)
            elif trick == "name":
                (path.parent / other).write_text("x")
        self._used_store("store, tricks")

    def _copied_store(self) -> Path:
        self._sandbox.empty()
        return Path(shutil.copytree(self._store, self._sandbox.target / "store"))

    def _used_store(self, name: str) -> None:
        from ivlens.store import Store, collect_garbage, verify

        good = {path.name for path in (self._store / "entries").glob("*/*")}

        def use() -> None:
            store = Store(self._sandbox.target / "store")
            whole, findings = verify(store)
            assert whole + sum(finding.what.startswith("damaged") for finding in findings) == len(store.places())
            served = {entry.key for entry in store.entries()}
            store.frame()
            store.failures()
            collect_garbage(store)
            assert verify(store) == (len(served), []) and len(good & served) >= len(good) - 1

        self._tried(name, use)

    def grid_bytes(self, drawn: Any) -> None:
        from ivlens.sweep import read_grid

        path = self._write("grid.toml", broken(GRID.encode(), drawn))
        self._tried("grid, bytes", lambda: read_grid(path))

    def grid_content(self, drawn: Any) -> None:
        import tomllib

        from ivlens.sweep import read_grid

        value = edited(tomllib.loads(GRID), drawn)
        path = self._write(
            "grid.toml", _toml(value if isinstance(value, dict) else {"x": value}).encode("utf-8", "replace")
        )
        self._tried("grid, content", lambda: read_grid(path))

    def training_state(self, drawn: Any) -> None:
        import torch

        from ivlens.tuning.state import TrainingState

        self._sandbox.empty()
        weight = torch.nn.Parameter(torch.ones(3, 2))
        optimizer = torch.optim.AdamW([weight])
        weight.grad = torch.ones(3, 2)
        optimizer.step()
        state = TrainingState(self._sandbox.target, {"seed": 0}, {"w": weight}, optimizer)
        state.save([{"step": 1, "loss": 0.5}])
        path = self._sandbox.target / "state.safetensors"
        data = path.read_bytes()
        if isinstance(drawn[0][0], str):
            path.write_bytes(broken(data, drawn))
        else:
            header, tensors = safetensors_parts(data)
            header["__metadata__"]["ivlens"] = as_json(
                edited(json.loads(header["__metadata__"]["ivlens"]), drawn)
            ).decode()
            path.write_bytes(safetensors_file(header, tensors))
        self._tried("training state", state.restore)

    def _parts(self) -> list[str]:
        return sorted(path.name for path in self._checkpoint.iterdir())

    def checkpoint(self, drawn: tuple[str, Any]) -> None:
        import warnings

        from ivlens.models import load_model

        self._sandbox.empty()
        folder = Path(shutil.copytree(self._checkpoint, self._sandbox.target / "model"))
        path = folder / drawn[0]
        if isinstance(drawn[1][0][0], str):
            path.write_bytes(broken(path.read_bytes(), drawn[1]))
        elif path.suffix == ".json":
            path.write_bytes(as_json(edited(json.loads(path.read_bytes()), drawn[1])))
        else:
            header, tensors = safetensors_parts(path.read_bytes())
            path.write_bytes(safetensors_file(edited(header, drawn[1]), tensors))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._tried("checkpoint", lambda: load_model(folder))

    def stage(self, drawn: Any) -> None:
        from ivlens.dynamics import Stage

        if isinstance(drawn[0][0], str):
            data = broken(self._stage, drawn)
        else:
            header, tensors = safetensors_parts(self._stage)
            about = edited(json.loads(header["__metadata__"]["ivlens"]), drawn)
            header["__metadata__"]["ivlens"] = as_json(about).decode()
            data = safetensors_file(header, tensors)
        path = self._write("stage.safetensors", data)
        self._tried("stage", lambda: [Stage.load(path)[0].vector(name) for name in Stage.load(path)[0].tasks])

    def _words(self) -> list[str]:
        here = self._sandbox.target
        files = [str(here / name) for name in ("task.json", "vector.safetensors", "grid.toml", "store", "nowhere")]
        options = [
            "--task", "--model", "--out", "--store", "--json", "--k", "--n-prompts", "--score", "--layer", "--alpha",
            "--kind", "--dry-run", "--method", "--guidance", "--seed", "--help", "--version", "--debug", "--lr=nan",
            "--effects", "--vector", "--text", "--workers", "--scheduler", "--suite", "--data", "--top", "-1", "1e999",
        ]  # fmt: skip
        # a model that is not there: nothing is computed, all that is before that is reached
        return [*files, *options, str(here / "no-model"), "./no-model", "antonym"]

    def command_line(self, words: tuple[tuple[str, ...], list[str]]) -> None:
        from ivlens.cli.main import main

        self._copied_store()
        self._write("task.json", as_json(RECORDS))
        self._write("grid.toml", GRID.encode())
        self._write("vector.safetensors", self._safetensors["vector"])
        self._write("effects.safetensors", self._safetensors["effects"])
        command = [
            word for word in (*words[0], *words[1]) if word not in ("doctor", "--debug", "demo", "train", "card")
        ]
        if command[:1] in (["effects"], ["steer"], ["tune"], ["bench"]) or "--effects" in command:
            command += ["--model", str(self._sandbox.target / "no-model")]

        def use() -> None:
            os.chdir(self._sandbox.target)
            status = main(command)
            assert status in (0, 1, 2), f"status {status}"
            if status:
                raise ValueError(f"status {status} of the command line")

        here = Path.cwd()
        try:
            self._tried_command(use)
        finally:
            os.chdir(here)

    def _tried_command(self, use: Callable[[], None]) -> None:
        """As `_tried`; an error that gets out of `main` is a fault whoever raises it."""
        tally = self.tallies.setdefault("command line", Tally())
        try:
            with _time_limit(), _silence():
                use()
            tally.results += 1
        except Hang:
            raise AssertionError(f"not finished after {SECONDS} s of computing, or {PATIENCE} s") from None
        except ValueError as error:
            assert "of the command line" in str(error), f"{error!r:.300}"
            tally.refused["status"] += 1
        self._sandbox.check()


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]


def _table(kind: str) -> bytes:
    import pandas as pd

    frame = pd.DataFrame({"input": [f"w{n}" for n in range(6)], "output": [f"a, {n}" for n in range(6)]})
    if kind == "csv":
        return frame.to_csv(index=False).encode()
    if kind == "jsonl":
        return frame.to_json(orient="records", lines=True).encode()
    return frame.to_parquet(index=False)


def _used_task(path: Path) -> None:
    from ivlens.tasks import load_task

    task = load_task(path)
    repr((task, task.content_hash()))
    assert all(example.answers and example.input.strip() for example in task.examples)


def _toml(values: dict[str, Any]) -> str:
    """Plain values as TOML, as far as it can hold them."""
    plain, tables = [], []
    for key, value in values.items():
        name = json.dumps(key)
        if isinstance(value, dict):
            tables.append(f"[{name}]\n{_toml({k: v for k, v in value.items() if not isinstance(v, dict)})}")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            tables += [f"[[{name}]]\n{_toml(item)}" for item in value]
        else:
            plain.append(f"{name} = {_toml_value(value)}")
    return "\n".join([*plain, *tables]) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "nan", "inf": "inf", "-inf": "-inf"}[str(value)]
    if value == DEEP:
        return "[" * 5000 + "]" * 5000
    return '""' if value is None else json.dumps(value)
