"""The three standard streams, which whoever starts a command may have closed, filled up or given another alphabet."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, cast

_MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}
_LONGEST = 1000  # letters of an error that a reader bears


class StdoutError(OSError):
    """What is printed cannot go out: the reader is gone, or the disk full."""


class _Stdout:
    """A stream whose own errors can be told from those of files."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _own_errors():
            return self._stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with _own_errors():
            self._stream.flush()


@contextmanager
def _own_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StdoutError(error.errno, error.strerror) from error


@contextmanager
def ready_streams() -> Iterator[None]:
    """Streams on which nothing fails for want of a letter, and none of whose numbers another file can get.

    Letters that a stream's encoding lacks are written as `\\u2013`. All that was printed is out at the end.

    Raises:
        OSError: stdout is closed: what the command finds out would be lost.
        StdoutError: it cannot be written to.
    """
    closed = [name for name in _MODES if getattr(sys, name) is None]
    for name in closed:
        # takes the lowest number that is free, which is the stream's own; a file opened later would get it otherwise
        setattr(sys, name, open(os.devnull, _MODES[name], encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        change = getattr(stream, "reconfigure", None)
        if change is not None and stream.errors in ("strict", "surrogateescape"):
            change(errors="backslashreplace")
    if "stdout" in closed:
        raise OSError("stdout is closed, expected a place for what is printed; send it to a file, or to /dev/null.")
    try:
        with redirect_stdout(cast(Any, _Stdout(sys.stdout))):
            yield
            sys.stdout.flush()
    finally:
        quietly(lambda: None)


def complain(text: str) -> None:
    """One line on stderr, if it takes one: printable, and not endless."""
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    quietly(lambda: print(f"ivlens: {line if len(line) <= _LONGEST else line[:_LONGEST] + ' ...'}", file=sys.stderr))


def quietly(write: Callable[[], object]) -> None:
    """Do something on stderr; where its reader is gone, or its disk full, the command goes on without it."""
    with suppress(ValueError):  # one that the program itself has closed
        try:
            write()
            sys.stderr.flush()
        except OSError:
            let_go(sys.stderr)


def let_go(stream: Any) -> None:
    """Send what is still to be written nowhere: a second try, when the program ends, would complain once more."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
