"""Other programs that ivlens starts: none of them outlives its limit, or the call that started it."""

import json
import subprocess
import sys
from typing import Any

GRACE = 2.0  # seconds that a program has to end by itself once it is asked to
_SECONDS = 5  # of computing: on a busy machine what ends in time takes longer by the clock
_BUSY = 6  # how many times as long, at most
_LIMITED = """
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]), int(sys.argv[1])))
except ImportError:
    pass
given = json.load(sys.stdin)
"""


def end(child: "subprocess.Popen[bytes]", grace: float = GRACE) -> None:
    """See that a program has ended: it is asked to, and made to where it does not within `grace` seconds."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=grace)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def finishes(code: str, given: Any, seconds: int = _SECONDS) -> bool:
    """Whether a program comes to its end within some seconds of computing and two gigabytes.

    Args:
        code: Of Python; it finds `given` under that name, and imports what it needs.
        given: Plain values.
    """
    command = [sys.executable, "-P", "-c", _LIMITED + code, str(seconds)]
    try:
        done = subprocess.run(
            command, input=json.dumps(given), text=True, capture_output=True, timeout=_BUSY * seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
