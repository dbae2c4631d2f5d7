"""Starting other programs; none of them outlives its time limit, or the call that started it."""

import json
import subprocess
import sys
from typing import Any

GRACE = 2.0  # seconds that a program has to end by itself once it is asked to
_SECONDS = 5  # of CPU time, since on a busy machine the same work takes longer by the clock
_BUSY = 6  # the limit by the clock, as a multiple of the CPU time
# the first lines of every such program: it limits itself, where the system can, and reads its input
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
    """End a program: it is asked to end, and killed if it has not ended within `grace` seconds."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=grace)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def finishes(code: str, given: Any, seconds: int = _SECONDS) -> bool:
    """Whether a Python program ends without an error within `seconds` of CPU time and two gigabytes of memory.

    Args:
        code: The program; it finds `given` under that name, and imports what it needs.
        given: Input of the program, in plain JSON values.
        seconds: Limit of its CPU time.
    """
    # -P: files in the working directory must not stand for modules
    command = [sys.executable, "-P", "-c", _LIMITED + code, str(seconds)]
    try:
        done = subprocess.run(
            command, input=json.dumps(given), text=True, capture_output=True, timeout=_BUSY * seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
