"""Other programs that ivlens starts: none of them outlives its limit, or the call that started it."""

import subprocess

GRACE = 2.0  # seconds that a program has to end by itself once it is asked to


def end(child: "subprocess.Popen[bytes]", grace: float = GRACE) -> None:
    """See that a program has ended: it is asked to, and made to where it does not within `grace` seconds."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=grace)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
