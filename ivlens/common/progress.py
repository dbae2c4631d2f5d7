"""Progress bars on stderr, shown only where somebody asked for them.

Inner functions report their progress with `bar` and `ticking`, whether anybody watches or not. To watch, open
`showing_progress()` around a call:

    >>> with ivlens.showing_progress():
    ...     ivlens.sweep_settings(model, task, iv)
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from shutil import get_terminal_size
from typing import Any, TypeVar

from ivlens.common.arguments import checked

Progress = Callable[[int, int], object]
"""A function that is called with (done, total) after every step; an exception from it ends the work."""

T = TypeVar("T")

DELAY = 1.0  # seconds that work must last before its bar appears
_shown: ContextVar[bool] = ContextVar("ivlens_progress_shown", default=False)
_listener: ContextVar[Callable[[str, int, int], object] | None] = ContextVar("ivlens_progress_listener", default=None)
_depth: ContextVar[int] = ContextVar("ivlens_progress_depth", default=0)  # of bars inside one another


def is_showing() -> bool:
    """Whether somebody asked for progress bars around this call."""
    return _shown.get()


@contextmanager
@checked
def showing_progress(shown: bool = True) -> Iterator[None]:
    """Show a bar, with the time left, for all work in the body that takes longer than about a second.

    Args:
        shown: False changes nothing: bars that an outer block asked for are still shown.
    """
    token = _shown.set(shown or _shown.get())
    try:
        yield
    finally:
        _shown.reset(token)


@contextmanager
def heard_by(listener: Callable[[str, int, int], object]) -> Iterator[None]:
    """Call `listener(what, done, total)` at every step of the work in the body, for a display of one's own.

    Of bars inside one another only the outer one is told, so that what is told never goes back.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def told_in_lines(every: float = 60.0) -> Iterator[None]:
    """Print a line on stderr about long work in the body, at most one in `every` seconds: for logs, which bars fill.

    Of bars inside one another only the outer one is told.
    """
    began = last = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every:
            last = now
            say(f"ivlens: {what}, {done} of {total}, {round((now - began) / 60)} min since the start")

    with heard_by(tell):
        yield


@contextmanager
def bar(what: str, total: int | None = None, unit: str = "it") -> Iterator[Progress]:
    """Show a bar while the body runs; yields the function that the body calls with (done, total).

    Args:
        what: What the bar is called.
        total: The number of steps; None: not known.
        unit: What the steps are called.
    """
    listener, depth = _listener.get(), _depth.get()
    if not _shown.get() and listener is None:
        yield lambda done, total: None
        return
    one = _Bar(what, total, unit) if _shown.get() else None
    token = _depth.set(depth + 1)

    def report(done: int, total: int | None) -> None:
        if one is not None:
            one.report(done, total)
        if listener is not None and depth == 0 and total:
            listener(what, done, total)

    try:
        yield report
    finally:
        _depth.reset(token)
        if one is not None:
            one.close()


def ticking(items: Sequence[T], what: str, unit: str = "it") -> Iterator[T]:
    """The items one by one, while a bar counts how many are done."""
    with bar(what, len(items), unit) as report:
        for number, item in enumerate(items):
            yield item
            report(number + 1, len(items))


def say(text: str) -> None:
    """Print a line on stderr, above all open bars; where that fails, the work goes on."""
    with suppress(OSError, ValueError):  # the reader of stderr is gone, its disk is full, or it is closed
        if "tqdm" in sys.modules:  # otherwise no bar can be open
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr)
        sys.stderr.flush()


class _Bar:
    """A bar that appears after `DELAY` seconds even within its first step, and is redrawn every `DELAY` seconds."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self._started, self._done, self._total = time.time(), 0, total
        self._what, self._unit, self._is_open = what, unit, True
        self._guard = threading.Lock()
        self._drawn: Any = None
        self._next_look()

    def report(self, done: int, total: int | None) -> None:
        """Note how far the work is."""
        with self._guard:
            self._done, self._total = done, total
            if self._drawn is not None:
                self._drawn.total, self._drawn.bar_format = total, self._format()
                self._drawn.update(done - self._drawn.n)

    def close(self) -> None:
        """Remove the bar from the screen."""
        self._timer.cancel()
        with self._guard:
            self._is_open = False  # a timer that fires just now finds nothing to draw
            if self._drawn is not None:
                self._drawn.close()

    def _next_look(self) -> None:
        """Have the bar drawn in `DELAY` seconds, by another thread."""
        self._timer = threading.Timer(DELAY, self._look)
        self._timer.daemon = True  # a program that ends does not wait for it
        self._timer.start()

    def _look(self) -> None:
        """Draw the bar."""
        with self._guard:
            if not self._is_open:
                return
            if self._drawn is None:
                self._drawn = self._new()
            self._drawn.refresh()
            self._next_look()

    def _new(self) -> Any:
        """A tqdm bar in the present state of the work."""
        # plain text in notebooks as well: a widget made in a thread may end up in another cell
        from tqdm import tqdm

        size = get_terminal_size((100, 30))  # (100, 30) where stderr is a file, which has no size
        drawn = tqdm(
            desc=self._what,
            total=self._total,
            unit=self._unit,
            file=sys.stderr,
            leave=False,
            smoothing=0.0,
            ncols=size.columns,
            nrows=size.lines,
            bar_format=self._format(),
        )
        drawn.start_t = self._started  # the time before it appeared counts
        drawn.update(self._done)
        return drawn

    def _format(self) -> str:
        """The format of the bar's line, in tqdm's placeholders."""
        if self._total is None:
            return "{desc} [{elapsed}]"
        return "{l_bar}{bar:30}| {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}]"
