"""Hostile input: files broken in every way, arguments of every type. The harness;
what is tried with it is in fuzz_targets.py and fuzz_files.py. For the tests and for benches/stress.py.

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
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

# of computing, which a busy machine does not change; under pytest the types of every call are checked, which takes more
# time than the work where a function is called for each of 200,000 records
SECONDS = 12.0 if "typed" in sys.modules else 5.0
PATIENCE = 60.0  # of the clock, for what waits
PACKAGE = f"{os.sep}ivlens{os.sep}"
NAMES = ["../x", "/etc/passwd", "..", ".", "", "a\0b", "\ud800", "~", "~nobody/x", "x" * 1_000_000, "C:\\x"]
NAMES += ["-", "--", "\n", "%s"]
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


AGAIN = object()  # what a case gives that set its input aside, to make the thing anew
Case = Callable[[Any], None]


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
        refused: Cases that ivlens refused, by the type of its error, or whose input it set aside.
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
        with time_limit(), silence():
            found = call()
        tally.results += found is not AGAIN
        tally.refused.update(["made again"] * (found is AGAIN))
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
def time_limit() -> Iterator[None]:
    """Raise Hang in a body that computes for too long, or waits."""

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
def silence() -> Iterator[None]:
    """Nothing of what the body prints."""
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
