"""stdin, stdout and stderr made safe: they may be closed, lack characters in their encoding, or lead to a full disk."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, cast

_MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}
_LONGEST = 1000  # characters of an error; some libraries put whole files into theirs


class StdoutError(OSError):
    """Output cannot be written to stdout: its reader is gone, or its disk is full."""


class _Stdout:
    """A stream whose errors are `StdoutError`, so that they differ from errors of other files."""

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
    """Turn an OSError of the body into a `StdoutError`."""
    try:
        yield
    except OSError as error:
        raise StdoutError(error.errno, error.strerror) from error


@contextmanager
def ready_streams() -> Iterator[None]:
    """Run the body with streams that can take any text, and flush stdout at the end.

    Characters that a stream's encoding lacks are written as `\\u2013`. Closed streams are opened on the null device.

    Raises:
        OSError: stdout is closed, so the command's results would be lost.
        StdoutError: stdout cannot be written to.
    """
    closed = [name for name in _MODES if getattr(sys, name) is None]
    for name in closed:
        # A new file takes the lowest free number, here the stream's own. Otherwise the next file that the command opens
        # would get it, and messages of libraries would be written into that file.
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
    """Print one line on stderr, without control characters and not too long."""
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    quietly(lambda: print(f"ivlens: {line if len(line) <= _LONGEST else line[:_LONGEST] + ' ...'}", file=sys.stderr))


def quietly(write: Callable[[], object]) -> None:
    """Write something on stderr; if its reader is gone or its disk is full, the command goes on without it."""
    with suppress(ValueError):  # raised where the program itself has closed stderr
        try:
            write()
            sys.stderr.flush()
        except OSError:
            let_go(sys.stderr)


def let_go(stream: Any) -> None:
    """Send the rest of a stream to the null device: Python's second try at its end would print another error."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
