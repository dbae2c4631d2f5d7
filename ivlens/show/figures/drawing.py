"""A program that draws figures with kaleido and Chrome: a line of JSON for each figure in, one for each image out.

`images.py` runs it, and ends it where it does not answer in time: a browser that hangs, or cannot be started, leaves
kaleido waiting for ever, in threads that no Python program gets rid of. It is run by its path and imports nothing of
ivlens, so that it starts quickly.
"""

import asyncio
import base64
import json
import os
import signal
import sys
from typing import Any, TextIO


async def _serve(answers: TextIO) -> None:
    from kaleido import Kaleido

    # no formulas in TeX are drawn, for which kaleido would ask the network
    browser = Kaleido(path=sys.argv[1] or None, mathjax=False, timeout=None)
    signal.signal(signal.SIGTERM, lambda *_: _end(browser))
    async with browser:
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked = json.loads(line)
            try:
                content = await browser.calc_fig(asked["figure"], opts=asked["options"])
                _answer(answers, image=base64.b64encode(content).decode())
            except Exception as error:
                _answer(answers, error=_said(error))


def _end(browser: Any) -> None:
    """Take the browser along, which has a session of its own, and leave without waiting for any thread."""
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


def _said(error: BaseException) -> str:
    """A library's error in one line; of several texts the first, which says what happened."""
    return " ".join(str(error.args[0] if error.args else error).split()) or type(error).__name__


def main() -> None:
    """Draw until there is nothing more to draw; an error that ends it is the last answer."""
    # what a library prints goes where complaints go, and no browser inherits the way for answers
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        asyncio.run(_serve(answers))
    except BaseException as error:
        _answer(answers, error=_said(error))
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
