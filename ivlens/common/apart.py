"""A short piece of work of somebody else's making, in a process of its own: with an end, and without all the memory."""

import json
import subprocess
import sys
from typing import Any

_SECONDS = 5
_LIMITED = """
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except ImportError:
    pass
given = json.load(sys.stdin)
"""


def ends(code: str, given: Any, seconds: float = _SECONDS) -> bool:
    """Whether a program comes to its end within some seconds and two gigabytes.

    Args:
        code: Of Python; it finds `given` under that name, and imports what it needs.
        given: Plain values.
    """
    command = [sys.executable, "-P", "-c", _LIMITED + code]
    try:
        done = subprocess.run(
            command, input=json.dumps(given), text=True, capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
