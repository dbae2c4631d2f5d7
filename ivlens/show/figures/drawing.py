"""A program that turns figures into images with kaleido and Chrome.

It reads one figure per line from stdin, as JSON, and answers each with one line of JSON that holds the image.
`images.py` runs this program, and kills it if it does not answer in time. A program of its own is needed because
kaleido waits for ever on a browser that hangs, in threads that Python cannot stop. `images.py` runs it by its path, and
it imports nothing of ivlens, so it starts quickly.
"""

import asyncio
import base64
import json
import os
import signal
import sys
from typing import Any, TextIO


async def _serve(answers: TextIO) -> None:
    """Answer every line of stdin with an image, or with the error of drawing it."""
    from kaleido import Kaleido

    # mathjax draws TeX formulas, which no figure has; kaleido would fetch it from the network
    browser = Kaleido(path=sys.argv[1] or None, mathjax=False, timeout=None)
    signal.signal(signal.SIGTERM, lambda *_: _end(browser))
    async with browser:
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked = json.loads(line)
            try:
                content = await browser.calc_fig(asked["figure"], opts=asked["options"])
                _answer(answers, image=base64.b64encode(content).decode())
            except Exception as error:
                _answer(answers, error=_one_line(error))


def _end(browser: Any) -> None:
    """Kill the browser, which runs in a process group of its own, and exit without waiting for any thread."""
    started = getattr(browser, "subprocess", None)
    if started is not None and started.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(started.pid, signal.SIGKILL)
        else:
            started.kill()
    os._exit(1)


def _answer(answers: TextIO, **values: str) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


def _one_line(error: BaseException) -> str:
    """The text of a library's error in one line; if the error has several arguments, the first one."""
    return " ".join(str(error.args[0] if error.args else error).split()) or type(error).__name__


def main() -> None:
    """Draw figures until stdin ends. An error that stops this earlier is sent as the last answer."""
    # answers go to a copy of stdout that the browser does not inherit, and whatever libraries print goes to stderr
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        asyncio.run(_serve(answers))
    except BaseException as error:
        _answer(answers, error=_one_line(error))
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
