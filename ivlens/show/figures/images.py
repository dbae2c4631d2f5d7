"""Figures as images. The browser that draws them is another program, and has a limit in time."""

import base64
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import plotly.graph_objects as go

from ivlens.common.programs import end

SECONDS = 60.0  # that the browser has to start and draw the first image, and then for each of the others
WIDTH, HEIGHT = 700, 500  # of a figure that does not say, in pixels

_PROGRAM = Path(__file__).with_name("drawing.py")
_REMEDY = (
    "install one (Debian: apt-get install --no-install-recommends chromium fonts-dejavu-core), set BROWSER_PATH, or "
    "write .html."
)


def find_browser() -> str | None:
    """Where Chrome is, as BROWSER_PATH says or where systems keep it; None: kaleido is left to find one."""
    return os.environ.get("BROWSER_PATH") or shutil.which("chromium") or shutil.which("chromium-browser")


def image(figure: go.Figure, kind: str, scale: float) -> bytes:
    """The figure as a file of this kind: png, svg, pdf, jpg, webp.

    Raises:
        ImportError: kaleido is not installed.
        FileNotFoundError: there is no Chrome that works, or no folder for its temporary files.
        TimeoutError: it did not answer in time.
    """
    if find_spec("kaleido") is None:
        raise ImportError(
            "images need the package kaleido, which is not installed; pip install 'ivlens[export]', or write .html."
        )
    with _SHARED.kept():
        return _SHARED.camera().draw(figure, kind, scale)


def one_browser() -> AbstractContextManager[None]:
    """One browser for all images of the body: starting it takes ten times as long as drawing."""
    return _SHARED.kept()


class _Shared:
    """The one camera of this process, started when it is needed, and closed when nobody keeps it any longer."""

    def __init__(self) -> None:
        self._guard, self._n_keepers = threading.Lock(), 0
        self._camera: _Camera | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        with self._guard:
            self._n_keepers += 1
        try:
            yield
        finally:
            with self._guard:
                self._n_keepers -= 1
                unused, self._camera = (None, self._camera) if self._n_keepers else (self._camera, None)
            if unused is not None:
                unused.close()

    def camera(self) -> "_Camera":
        with self._guard:
            self._camera = self._camera or _Camera()
            return self._camera


class _Camera:
    """The program that draws. Once it failed it says the same again, at once."""

    def __init__(self) -> None:
        try:
            self._scratch = TemporaryDirectory(prefix="ivlens-", ignore_cleanup_errors=True)
        except OSError as error:
            raise FileNotFoundError(
                f"images need a folder for temporary files, and none can be written to ({error.strerror}); set TMPDIR "
                "to one that can, or write .html."
            ) from error
        places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), self._scratch.name)
        self._fault: OSError | None = None
        self._turn = threading.Lock()
        # in a session of its own: Ctrl-C is for this process, which ends that one
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM), find_browser() or ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=os.environ | places, start_new_session=True,
        )  # fmt: skip
        self._answers: queue.Queue[bytes] = queue.Queue()

    def draw(self, figure: go.Figure, kind: str, scale: float) -> bytes:
        with self._turn:
            return self._drawn(figure, kind, scale)

    def _drawn(self, figure: go.Figure, kind: str, scale: float) -> bytes:
        if self._fault is not None:
            raise self._fault
        drawn = json.loads(str(figure.to_json()))
        size = {name: drawn["layout"].get(name) or usual for name, usual in (("width", WIDTH), ("height", HEIGHT))}
        asked = {"figure": drawn, "options": {"format": kind, "scale": scale, **size}}
        line = json.dumps(asked).encode() + b"\n"
        # a program that hangs does not read either, so that writing needs the limit as well
        threading.Thread(target=self._exchange, args=(line,), daemon=True).start()
        try:
            answer = json.loads(self._answers.get(timeout=SECONDS) or b'{"error": "it ended without a word"}')
        except queue.Empty:
            self._give_up(TimeoutError(f"images need Chrome, which did not answer within {SECONDS:g} s; {_REMEDY}"))
        if "error" in answer:
            said = answer["error"][:160]
            self._give_up(FileNotFoundError(f"images need Chrome, and none works here ({said}); {_REMEDY}"))
        return base64.b64decode(answer["image"])

    def _exchange(self, line: bytes) -> None:
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(line)
            self._child.stdin.flush()
        except OSError:  # it ended before it read, and may have said why
            pass
        self._answers.put(self._child.stdout.readline())

    def _give_up(self, error: OSError) -> NoReturn:
        self._fault = error
        end(self._child)
        raise error

    def close(self) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.close()  # it ends by itself when there is nothing more to draw
            self._child.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            pass
        end(self._child)
        self._scratch.cleanup()


_SHARED = _Shared()
