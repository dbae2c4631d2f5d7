"""Turn figures into images. Another program (`drawing.py`, with Chrome) draws them, within a time limit."""

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

SECONDS = 60.0  # time limit for starting the browser and drawing the first image, and again for each further image
WIDTH, HEIGHT = 700, 500  # pixels; for figures that do not set their size

_PROGRAM = Path(__file__).with_name("drawing.py")
_REMEDY = (
    "install one (Debian: apt-get install --no-install-recommends chromium fonts-dejavu-core), set BROWSER_PATH, or "
    "write .html."
)


def find_browser() -> str | None:
    """The path of Chrome: BROWSER_PATH if set, else `chromium` on the PATH; None: kaleido looks for one itself."""
    return os.environ.get("BROWSER_PATH") or shutil.which("chromium") or shutil.which("chromium-browser")


def image(figure: go.Figure, kind: str, scale: float) -> bytes:
    """The bytes of an image file that shows the figure.

    Args:
        kind: png, svg, pdf, jpg or webp.
        scale: pixels of the image for each pixel of the figure.

    Raises:
        ImportError: kaleido is not installed.
        FileNotFoundError: there is no Chrome that works, or no folder for its temporary files.
        TimeoutError: Chrome did not answer in time.
    """
    if find_spec("kaleido") is None:
        raise ImportError(
            "images need the package kaleido, which is not installed; pip install 'ivlens[export]', or write .html."
        )
    with _SHARED.kept():
        return _SHARED.camera().draw(figure, kind, scale)


def one_browser() -> AbstractContextManager[None]:
    """A context in which all images are drawn by one browser, since starting it takes ten times as long as drawing."""
    return _SHARED.kept()


class _Shared:
    """The one `_Camera` of this process: started for the first image, closed when the last `kept` context ends."""

    def __init__(self) -> None:
        self._guard, self._n_keepers = threading.Lock(), 0
        self._camera: _Camera | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the camera open during the body; contexts may overlap, also in several threads."""
        with self._guard:
            self._n_keepers += 1
        try:
            yield
        finally:
            with self._guard:
                self._n_keepers -= 1
                # taken out under the lock, closed outside it: closing takes time
                unused, self._camera = (None, self._camera) if self._n_keepers else (self._camera, None)
            if unused is not None:
                unused.close()

    def camera(self) -> "_Camera":
        """The camera, started if there is none."""
        with self._guard:
            self._camera = self._camera or _Camera()
            return self._camera


class _Camera:
    """A running `drawing.py`. After its first failure every further request fails at once, with the same error."""

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
        # in a session of its own, so that Ctrl-C reaches this process alone, which then ends the other
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM), find_browser() or ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=os.environ | places, start_new_session=True,
        )  # fmt: skip
        self._answers: queue.Queue[bytes] = queue.Queue()

    def draw(self, figure: go.Figure, kind: str, scale: float) -> bytes:
        """The figure as an image file; several threads wait for one another."""
        with self._turn:
            return self._drawn(figure, kind, scale)

    def _drawn(self, figure: go.Figure, kind: str, scale: float) -> bytes:
        if self._fault is not None:
            raise self._fault
        drawn = json.loads(str(figure.to_json()))
        size = {name: drawn["layout"].get(name) or usual for name, usual in (("width", WIDTH), ("height", HEIGHT))}
        asked = {"figure": drawn, "options": {"format": kind, "scale": scale, **size}}
        line = json.dumps(asked).encode() + b"\n"
        # written in a thread: a program that hangs does not read either, so writing needs the time limit as well
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
        """Send one request to the program and put its answer into the queue."""
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(line)
            self._child.stdin.flush()
        except OSError:  # the program ended before it read the line; its last answer may say why
            pass
        self._answers.put(self._child.stdout.readline())

    def _give_up(self, error: OSError) -> NoReturn:
        """End the program, and raise this error now and for every later figure."""
        self._fault = error
        end(self._child)
        raise error

    def close(self) -> None:
        """End the program and remove its temporary files."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.close()  # the program ends by itself at the end of its input
            self._child.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            pass
        end(self._child)
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._scratch.cleanup()


_SHARED = _Shared()
