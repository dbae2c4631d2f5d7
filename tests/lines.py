"""The command line, walked: every command and option with wrong values, on bad streams, short of disk and memory.

Each case must end in a result or in one line on stderr that begins with `ivlens: `, with status 0, 1 or 2, within ten
seconds. `run(n, seed)` tries `n` of them; what does not end so is an AssertionError that names the command.
"""

import contextlib
import errno
import io
import json
import os
import pkgutil
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from unittest.mock import patch

from fuzzing import Hang, time_limit

from ivlens.cli.main import COMMANDS, build_app, main

SECONDS = 10.0
NO_NUMBERS = ["x", "", " ", "nan", "--", "1,5", "0x", "½", "1_", "None?", "1" * 5000]
NOT_WHOLE = ["2.5", "1.0", "inf", "-inf", "1e3", "1e999", "9" * 20, "-" + "9" * 20, str(2**53), "0.1", ".5", "2."]
NOT_FINITE = ["inf", "-inf", "1e999", "-1e999"]
TEXTS = ["", " ", "\n", "\udcff", "\x1b[2J", "../x", "%s", "{x}", "a" * 5000, "nan", "-", "☃", "/dev/full", "0"]
SIGNED = {"--seed", "--layer", "--sign"}
REACHED = "the model was reached"
STREAMS = [
    "stdout closed", "stderr closed", "stdin closed", "all closed", "stdout full", "stderr full", "reader gone",
    "stderr's reader gone", "stdout ascii", "both ascii", "stdout latin-1",
]  # fmt: skip
DISK = [getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO", "EFBIG", "EMFILE")]


@dataclass(frozen=True)
class Option:
    """One option or argument of a command."""

    name: str
    kinds: frozenset[Any]
    choices: tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """A command line, and what is wrong around it."""

    words: tuple[str, ...]
    stream: str = ""
    must_fail: bool = True

    def __str__(self) -> str:
        return " ".join(word if len(word) < 80 else f"{word[:40]}...({len(word)})" for word in self.words) + self.stream


@dataclass
class Ends:
    """How cases ended."""

    results: int = 0
    refused: int = 0
    slowest: float = 0.0
    by: Counter[str] = field(default_factory=Counter)

    def counts(self) -> dict[str, Any]:
        """For a table."""
        n = self.results + self.refused
        return {"cases": n, "results": self.results, "refused": self.refused, "slowest": round(self.slowest, 2)}


def options_of(command: str) -> list[Option]:
    """All that a command takes ("store ls"), as its own parser says."""
    app = build_app(command.split()[0])
    for word in command.split():
        app = app[word]
    found = []
    for argument in app.assemble_argument_collection():
        if not argument.names or argument.names[0] == "*" or not argument.parse:
            continue
        kinds = frozenset(_parts(argument.hint))
        found.append(Option(next(iter(argument.names)), kinds, tuple(each for each in kinds if isinstance(each, str))))
    return [one for one in found if one.name not in ("--help", "--version")]


def _parts(hint: Any) -> Iterator[Any]:
    """The types in a type, and the values of its literals."""
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    elif get_args(hint):
        for inner in get_args(hint):
            yield from _parts(inner)
    else:
        yield hint


def all_commands() -> list[str]:
    """Every command, those inside of others as well."""
    found = []
    for name, command in COMMANDS.items():
        if command.target.endswith(":app"):
            app = build_app(name)[name]
            found += [f"{name} {inner}" for inner in app if not inner.startswith("-")]
        else:
            found.append(name)
    return found


class Lines:
    """Files for good commands, and all the cases that are made from them.

    Args:
        folder: An empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.ends = folder, Ends()
        (folder / "folder").mkdir()
        (folder / "file").write_text("x")
        (folder / "link").symlink_to(folder / "nowhere")
        pairs = {f"in {number}": f"out {number}" for number in range(40)}
        (folder / "task.json").write_text(json.dumps(pairs))
        (folder / "grid.toml").write_text('tasks = ["antonym"]\n[effects]\n')
        for number in (1, 2):
            (folder / "series" / f"step-{number}").mkdir(parents=True)
        from ivlens.common.store.store import Store

        Store(folder / "store")
        for command in all_commands():  # what a command imports takes its time once
            self._here(Case(tuple(self.good(command))))

    def good(self, command: str) -> list[str]:
        """A command line that would reach its work."""
        at, out = self.folder, str(self.folder / "new" / "out")
        task = ["--task", str(at / "task.json")]
        return {
            "demo": ["demo", "--out", out],
            "tasks show": ["tasks", "show", "antonym"],
            "tasks check": ["tasks", "check", str(at / "task.json")],
            "prompts": ["prompts", *task],
            "effects": ["effects", *task],
            "attention": ["attention", *task, "--out", out],
            "vector": ["vector", *task],
            "evaluate": ["evaluate", *task, "--out", out],
            "steer": ["steer", *task, "--text", "big"],
            "export": [
                *("export", str(at / "file"), "--format", "python", "--layer", "1", "--alpha", "1"),
                *("--out", str(at / "new" / "x.py")),
            ],
            "lab": ["lab", "--no-browser"],
            "tune": ["tune", *task, "--out", out, "--guidance", "iv"],
            "bench": ["bench", "--out", out],
            "sweep": ["sweep", str(at / "grid.toml"), "--store", out],
            "figures": ["figures", "--from", str(at / "folder"), "--out", out],
            "store ls": ["store", "ls", str(at / "store")],
            "store verify": ["store", "verify", str(at / "store")],
            "store gc": ["store", "gc", str(at / "store")],
            "store export": ["store", "export", str(at / "store"), "--out", str(at / "all.csv")],
            "forget": ["forget", str(at / "series"), *task, "--out", out],
            "dynamics": ["dynamics", str(at / "series"), *task, "--out", out],
            "transplant": ["transplant", str(at / "model"), str(at / "series"), *task, "--out", out],
            "study": ["study", "--out", out],
            "get": ["get", "--list"],
            "pocket train": ["pocket", "train", "--out", out],
            "pocket card": ["pocket", "card"],
            "terse train": ["terse", "train", "--out", out],
            "terse card": ["terse", "card"],
            "doctor": ["doctor"],
        }[command]

    def values(self, option: Option) -> list[tuple[str, bool]]:
        """Values to try, each with whether it must be refused whatever the model."""
        at = self.folder
        if option.name in ("--out", "--store"):
            places = [at / "file" / "x", Path("/dev/full"), Path("/dev/null"), Path("/proc/x/y"), Path("/dev/full/x")]
            places += [at / ("n" * 300), at / "file" / "x" / "y.csv"]
            return [(str(place), True) for place in places] + [("", True), (" ", True)]
        if int in option.kinds:
            wrong = [*NO_NUMBERS, *NOT_WHOLE, *([] if option.name in SIGNED else ["-1", "-7", "1000001"])]
            return [(value, True) for value in wrong] + [(str(10**6), False), ("0", False), ("1", False)]
        if float in option.kinds:
            return [(value, True) for value in [*NO_NUMBERS, *NOT_FINITE]] + [("-0.0", False), ("1e-320", False)]
        if option.choices:
            return [(value, True) for value in TEXTS if value not in option.choices]
        if option.kinds == {bool}:
            return [(value, True) for value in ("maybe", "2", "nan", "")]
        if Path in option.kinds:
            return [("", True), (" ", True)] + [(value, False) for value in TEXTS if value.strip()]
        return [(value, False) for value in TEXTS]

    def wrong_values(self) -> Iterator[Case]:
        """Every option of every command with every value that suits its type, and options that there are not."""
        for command in all_commands():
            good = self.good(command)
            for option in options_of(command):
                if not option.name.startswith("--"):
                    continue
                for value, must_fail in self.values(option):
                    yield Case((*good, f"{option.name}={value}"), must_fail=must_fail)
                yield Case((*good, option.name), must_fail=option.kinds != {bool})
                yield Case((*good, f"{option.name}x=1"))
            for more in (["--nope"], ["a", "b", "c", "d"], ["-z"], ["--seed=abc"], ["--seed=[]"], ["--seed=2.5"]):
                yield Case((*good, *more))

    def bad_streams(self) -> Iterator[Case]:
        """Short commands, good and bad, on streams that are closed, full, gone, or know few letters."""
        lines = [
            ["doctor"],
            ["doctor", "--json"],
            ["get", "--list", "--json"],
            ["--help"],
            ["tune", "--help"],
            ["nope"],
        ]
        lines += [self.good("store ls"), ["effects", "--task", "☃"], ["vector", "--k", "2.5"], ["store"], ["--version"]]
        for words in lines:
            for stream in STREAMS:
                yield Case(tuple(words), f" [{stream}]", must_fail=False)

    def odd_screens(self) -> Iterator[Case]:
        """Help of every command on screens of no, one and a billion columns."""
        for command in all_commands():
            for columns in ("1", "0", "2", "5", "-3", "x", "1000000000", ""):
                yield Case((*command.split(), "--help"), f" [COLUMNS={columns}]", must_fail=False)

    def shortages(self) -> Iterator[Case]:
        """Every command that opens a model, with memory or the disk running out there."""
        for command in all_commands():
            if command.split()[0] in ("doctor", "get", "store", "figures", "tasks"):
                continue
            for what in SHORT:
                yield Case(tuple(self.good(command)), f" [{what}]")

    def all(self) -> dict[str, list[Case]]:
        """By kind."""
        kinds = (self.wrong_values, self.bad_streams, self.odd_screens, self.shortages)
        return {kind.__name__: list(kind()) for kind in kinds}

    def attempt(self, case: Case) -> None:
        """Try one.

        Raises:
            AssertionError: it ends otherwise than it should.
        """
        started = time.monotonic()
        try:
            with time_limit():
                status, err = self._in_child(case) if case.stream.strip(" []") in STREAMS else self._here(case)
        except Hang:
            raise AssertionError(f"{case}: no end after {SECONDS} s") from None
        seconds = time.monotonic() - started
        self.ends.slowest = max(self.ends.slowest, seconds)
        lines = [line for line in err.splitlines() if line.strip()]
        shown = f"{case}\nstatus {status}, {seconds:.1f} s, stderr: {err[:1000]!r}"
        assert seconds < SECONDS, shown
        assert status in (0, 1, 2, 141), shown
        assert "Traceback" not in err, shown
        hears = not any(word in case.stream for word in ("stderr", "all closed"))
        if status == 2 and hears:
            assert len(lines) == 1 and lines[0].startswith("ivlens: ") and len(lines[0]) > 20, shown
        if case.must_fail:
            assert status == 2 and REACHED not in err, shown
        self.ends.by[case.words[0]] += 1
        self.ends.results += status != 2 or REACHED in err
        self.ends.refused += status == 2 and REACHED not in err

    def _here(self, case: Case) -> tuple[int, str]:
        err, columns = io.StringIO(), case.stream.partition("COLUMNS=")
        short = SHORT.get(case.stream.strip(" []"), lambda: ValueError(f"{REACHED}: nothing is wrong with this line"))
        with contextlib.ExitStack() as stack:
            if columns[1]:
                stack.enter_context(patch.dict(os.environ, {"COLUMNS": columns[2].rstrip("]")}))
            stack.enter_context(_without_work(short))
            stack.enter_context(contextlib.redirect_stderr(err))
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            try:
                status = main(case.words)
            except SystemExit as error:
                status = int(error.code or 0)
        return status, err.getvalue()

    def _in_child(self, case: Case) -> tuple[int, str]:
        """In a process of its own, whose streams are as Python makes them when it begins."""
        with tempfile.TemporaryFile() as err:
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                code = 99
                try:
                    _spoil(case.stream.strip(" []"), err.fileno())
                    with _without_work(lambda: ValueError(f"{REACHED}: nothing is wrong with this line")):
                        code = main(case.words)
                    code = _ended(code)
                finally:
                    os._exit(code)
            code = _waited(child)
            err.seek(0)
            return code, err.read().decode(errors="replace")


SHORT: dict[str, Callable[[], BaseException]] = {
    "MemoryError": lambda: MemoryError(),
    "numpy": lambda: MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,)"),
    "torch on a CPU": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "torch on a GPU": lambda: _cuda("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has 1 GiB."),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "bad_alloc": lambda: RuntimeError("std::bad_alloc"),
    "no threads": lambda: RuntimeError("can't start new thread"),
    "mmap": lambda: OSError(errno.ENOMEM, "Cannot allocate memory"),
    "library": lambda: ImportError("libtorch_cpu.so: failed to map segment: Cannot allocate memory"),
    "safetensors on a full disk": lambda: _safetensors("Error while serializing: I/O error: No space left on device "
                                                       "(os error 28)"),
    **{f"errno {number}": (lambda number=number: OSError(number, os.strerror(number))) for number in DISK},
    **{f"errno {number} of a file": (lambda number=number: OSError(number, os.strerror(number), "/x/y"))
       for number in DISK},
    "an error of another library": lambda: ValueError("several\nlines\n\nof another \x1b[31mlibrary\x1b[0m"),
    "no text": lambda: ValueError("\ud800 and more than twenty letters"),
    "letters": lambda: UnicodeEncodeError("ascii", "–", 0, 1, "ordinal not in range(128)"),
}  # fmt: skip


def _cuda(text: str) -> BaseException:
    import torch

    return torch.OutOfMemoryError(text)


def _safetensors(text: str) -> BaseException:
    from safetensors import SafetensorError

    return SafetensorError(text)


@contextlib.contextmanager
def _without_work(error: Callable[[], BaseException]) -> Iterator[None]:
    """Where a model would be opened, or another's work begin, there is an error instead."""

    def raised(*args: Any, **more: Any) -> Any:
        raise error()

    originals: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for target in (
            "ivlens.models.load.load_model", "ivlens.models.checkpoints.load_model", "ivlens.pocket.train.Trainer.run",
            "ivlens.runs.sweep.runner.make_plan", "ivlens.show.figures.export.write_set",
            "ivlens.models.getting.get_model", "ivlens.runs.terse.build.build_terse",
        ):  # fmt: skip
            originals.setdefault(target.rpartition(".")[2], pkgutil.resolve_name(target))
            stack.enter_context(patch(target, raised))
        stack.callback(_given_back, raised, originals)
        yield


def _given_back(raised: Callable[..., Any], originals: dict[str, Any]) -> None:
    """Modules that were imported meanwhile keep the stand-in under its name; they get what belongs there."""
    for name, module in list(sys.modules.items()):
        for attribute in originals if name.partition(".")[0] == "ivlens" else ():
            if vars(module).get(attribute) is raised:
                setattr(module, attribute, originals[attribute])


def _spoil(stream: str, err: int) -> None:
    """Give this process the streams of a shell's `>&-`, `>/dev/full`, `| true`."""
    null = os.open(os.devnull, os.O_RDWR)
    for number, target in ((0, null), (1, null), (2, err)):
        os.dup2(target, number)
    os.close(null)
    full = os.open("/dev/full", os.O_WRONLY)
    read, write = os.pipe()
    os.close(read)
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        if stream in (f"{name} closed", "all closed"):
            os.close(number)
        elif stream == f"{name} full":
            os.dup2(full, number)
        elif stream == ("reader gone" if number == 1 else f"{name}'s reader gone") and number:
            os.dup2(write, number)
    os.close(full)
    os.close(write)
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        coded = "ascii" if stream in (f"{name} ascii", "both ascii") else "latin-1" if "latin" in stream else "utf-8"
        try:
            os.fstat(number)
            how = {"errors": "backslashreplace"} if number == 2 else {}
            setattr(sys, name, open(number, "w" if number else "r", encoding=coded, closefd=False, **how))
        except OSError:
            setattr(sys, name, None)


def _ended(code: int) -> int:
    """What the end of a program makes of a status: 120 where its output cannot be flushed."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            return 120
    return code


def _waited(child: int) -> int:
    end = time.monotonic() + 2 * SECONDS
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -9


def run(n: int, seed: int, folder: Path | None = None) -> dict[str, Any]:
    """Try `n` cases, drawn from all (all of them once, where `n` is as large), and count how they ended."""
    with tempfile.TemporaryDirectory() as made:
        lines = Lines(Path(folder or made))
        by_kind = lines.all()
        cases = [case for kind in by_kind.values() for case in kind]
        random.Random(seed).shuffle(cases)
        while len(cases) < n:
            cases += cases[: n - len(cases)]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for case in cases[:n]:
            lines.attempt(case)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
        return lines.ends.counts() | {"grown_gb": round(grown, 2)}
