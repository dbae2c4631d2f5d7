"""Progress bars on stderr, shown only where somebody asked for them.

Inner functions say what they are doing with `bar` and `ticking`, and know nothing of who watches. Whoever watches opens
`showing_progress()` around the call:

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
"""Called with what is done and what there is in all; what it raises ends the work."""

T = TypeVar("T")

DELAY = 1.0  # seconds that work must last before its bar appears
_shown: ContextVar[bool] = ContextVar("ivlens_progress_shown", default=False)


def is_showing() -> bool:
    """Whether bars are shown here."""
    return _shown.get()


@contextmanager
@checked
def showing_progress(shown: bool = True) -> Iterator[None]:
    """Show a bar, with the time left, for whatever in the body takes longer than about a second.

    `showing_progress(False)` changes nothing: where somebody further out asked for bars, they stay.
    """
    token = _shown.set(shown or _shown.get())
    try:
        yield
    finally:
        _shown.reset(token)


@contextmanager
def bar(what: str, total: int | None = None, unit: str = "it") -> Iterator[Progress]:
    """A bar for the body, which says how far it is by calling what it is given with (done, total)."""
    if not _shown.get():
        yield lambda done, total: None
        return
    one = _Bar(what, total, unit)
    try:
        yield one.report
    finally:
        one.close()


def ticking(items: Sequence[T], what: str, unit: str = "it") -> Iterator[T]:
    """The items, one by one, with a bar that counts those that are done."""
    with bar(what, len(items), unit) as report:
        for number, item in enumerate(items):
            yield item
            report(number + 1, len(items))


def say(text: str) -> None:
    """A line on stderr, above the bars that are open; where nobody can read it any more, the work goes on."""
    with suppress(OSError, ValueError):  # its reader is gone, its disk full, or it is closed
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr)
        sys.stderr.flush()


class _Bar:
    """A bar that appears after `DELAY` seconds, also where its first step takes longer, and whose clock goes on."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self._started, self._done, self._total = time.time(), 0, total
        self._what, self._unit, self._is_open = what, unit, True
        self._guard = threading.Lock()
        self._drawn: Any = None
        self._next_look()

    def report(self, done: int, total: int | None) -> None:
        with self._guard:
            self._done, self._total = done, total
            if self._drawn is not None:
                self._drawn.total, self._drawn.bar_format = total, self._format()
                self._drawn.update(done - self._drawn.n)

    def close(self) -> None:
        self._timer.cancel()
        with self._guard:
            self._is_open = False  # a timer that fires just now finds nothing to draw
            if self._drawn is not None:
                self._drawn.close()

    def _next_look(self) -> None:
        self._timer = threading.Timer(DELAY, self._look)
        self._timer.daemon = True  # never what a program waits for when it ends
        self._timer.start()

    def _look(self) -> None:
        with self._guard:
            if not self._is_open:
                return
            if self._drawn is None:
                self._drawn = self._new()
            self._drawn.refresh()
            self._next_look()

    def _new(self) -> Any:
        # plain text in notebooks as well: a widget made in a thread may end up in another cell
        from tqdm import tqdm

        size = get_terminal_size((100, 30))  # of a screen that has none, as logs do
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
        if self._total is None:
            return "{desc} [{elapsed}]"
        return "{l_bar}{bar:30}| {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}]"
