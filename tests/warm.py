"""Child processes that begin at once: forks of one process that has torch, transformers and ivlens imported.

Importing them takes a new process about seven seconds of computing. Where the import is not what a test is about, it
takes `Warm(arguments)` for `subprocess.Popen([sys.executable, *arguments])`. What Python and torch read when they
start is as in the process that is forked: for another PYTHONHASHSEED, another locale or other numbers of threads, and
once for each command, tests start real processes.
"""

import atexit
import functools
import gc
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

READY = b"ready"
LENGTH = 8  # bytes of a number
N_FILES = 4  # what a child is given: stdin, stdout, stderr, and the socket on which its status is told


class Warm(subprocess.Popen):
    """A process as `subprocess.Popen([sys.executable, *arguments], ...)`, which a warm process forks.

    Args:
        arguments: `["-m", module, ...]` or `["-c", code, ...]`.
        options: Those of `Popen`, but for `preexec_fn`, `pass_fds` and what only real processes can have. SIGINT is
            heard in any case.

    Attributes:
        seconds: Of computing, once the process has ended.
    """

    def __init__(self, arguments: list[str], **options: Any) -> None:
        super().__init__([sys.executable, *arguments], **options)

    def _execute_child(self, args: list[str], *given: Any) -> None:
        named = dict(zip(subprocess.Popen._execute_child.__code__.co_varnames[2:], given, strict=False))
        ends = [named[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        self._status, there = socket.socketpair()
        about = {
            "arguments": args[1:], "session": named["start_new_session"], "path": sys.path,
            "folder": os.fspath(named["cwd"] or Path.cwd()), "environment": dict(named["env"] or os.environ),
        }  # fmt: skip
        files = [n if n >= 0 else inherited for inherited, n in enumerate((ends[0], ends[3], ends[5]))]
        text = json.dumps(about).encode()
        with there:
            socket.send_fds(server(), [len(text).to_bytes(LENGTH, "big")], [*files, there.fileno()])
            server().sendall(text)
        self._close_pipe_fds(*ends)
        self.pid = _number(self._status)
        self._child_created = True

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        self._status.settimeout(0.0 if wait_flags & os.WNOHANG else None)
        try:
            status = _number(self._status)
        except (BlockingIOError, TimeoutError):
            return 0, 0
        self._status.settimeout(None)
        self.seconds = _number(self._status) / 1000
        self._status.close()
        return self.pid, status

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid:
                self._handle_exitstatus(status)
        return self.returncode


def run(arguments: list[str], timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, *arguments], capture_output=True, text=True)`."""
    pipe = subprocess.PIPE
    with Warm(arguments, stdout=pipe, stderr=pipe, text=True, **options) as job:
        try:
            out, err = job.communicate(timeout=timeout)
        except BaseException:
            job.kill()
            raise
    return subprocess.CompletedProcess(job.args, job.returncode, out, err)


def _number(told: socket.socket) -> int:
    found = told.recv(LENGTH)
    if not found:
        raise RuntimeError("the warm process is gone")
    return int.from_bytes(found, "big")


@functools.cache
def server() -> socket.socket:
    """The socket of the warm process, which is started by the first that asks, and ends with this process."""
    ours, theirs = socket.socketpair()
    surroundings = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=surroundings, stdin=subprocess.DEVNULL)
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)
    assert ours.recv(len(READY)) == READY
    return ours


def serve(asked: socket.socket) -> dict[str, Any]:
    """Fork for every request; returns in the children alone, with what they are to do."""
    asked.sendall(READY)
    while True:
        length, files, _, _ = socket.recv_fds(asked, LENGTH, N_FILES)
        if not length:
            os._exit(0)
        about = json.loads(asked.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL))
        if os.fork() == 0:
            asked.close()
            _fork_and_wait(files[-1])
            return about | {"files": files[:-1]}
        for number in files:
            os.close(number)


def _fork_and_wait(told: int) -> None:
    """Fork the child, in which alone this returns; tell its number, and when it has ended its status and seconds."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        os.close(told)
        return
    os.setsid()  # what is sent to the group of the child is not meant for this process
    os.write(told, child.to_bytes(LENGTH, "big"))
    _, status, used = os.wait4(child, 0)
    for number in (status, round(1000 * (used.ru_utime + used.ru_stime))):
        os.write(told, number.to_bytes(LENGTH, "big"))
    os._exit(0)


def become(about: dict[str, Any]) -> None:
    """Streams, environment, folder and arguments of the child."""
    if about["session"]:
        os.setsid()
    for number, given in enumerate(about["files"]):
        os.dup2(given, number)
        os.close(given)
    os.environ.clear()
    os.environ.update(about["environment"])
    time.tzset()
    os.chdir(about["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    at_once = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = open(0, closefd=False)
    sys.stdout = io.TextIOWrapper(open(1, "wb", 0 if at_once else -1, closefd=False), write_through=at_once)
    sys.stderr = io.TextIOWrapper(open(2, "wb", closefd=False), errors="backslashreplace", line_buffering=True)
    sys.path[:] = about["path"]


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    asked = socket.socket(fileno=int(sys.argv[1]))
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformer_lens.model_bridge  # noqa: F401

    import ivlens.show.lab.server
    import ivlens.tuning  # noqa: F401

    gc.collect()
    gc.freeze()  # so that no child copies all of it to look for garbage
    about = serve(asked)
    become(about)
    what, word, *more = about["arguments"]
    sys.argv = [word if what == "-m" else what, *more]
    if what == "-m":
        runpy.run_module(word, run_name="__main__", alter_sys=True)
    else:
        names = {"__name__": "__main__", "__builtins__": __builtins__}
        exec(compile(word, "<string>", "exec"), names)


if __name__ == "__main__":
    main()
