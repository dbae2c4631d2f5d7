"""Run the long work of one page in a thread of its own; only the newest request counts."""

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)

Cancelled = Callable[[], bool]
Job = Callable[[Cancelled], None]


class Unwanted(BaseException):
    """Raised to end work whose result nobody waits for any longer.

    It is not an `Exception`, so that it passes through code that catches exceptions and goes on.
    """


def is_ending() -> bool:
    """Whether the program is about to end and only waits for threads such as this one."""
    return not threading.main_thread().is_alive()


class Worker:
    """Runs the newest job; a running job learns from `cancelled()` that a newer one has come, or the program's end.

    Jobs run one after the other, in one thread, so an old job can never show something after a newer one. The thread
    ends when there is nothing left to do. A job may end itself by raising `Unwanted`.

    Args:
        on_error: called with the exception that a job raised, unless a newer job has come.
    """

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        self._on_error = on_error
        self._guard = threading.Condition()
        self._waiting: Job | None = None  # at most one: a newer job takes its place
        self._running = False
        self._closed = False
        self._number = 0  # of the newest job; closing counts as a newer one

    def submit(self, job: Job) -> None:
        """Run `job` as soon as possible; an earlier job is dropped if it waits, and told to stop if it runs."""
        with self._guard:
            if self._closed:
                return
            self._number += 1
            self._waiting = job
            if not self._running:
                self._running = True
                # the program waits for it at its end: cut off inside torch, a thread aborts the whole process
                threading.Thread(target=self._work, name="ivlens-lab", daemon=False).start()

    def close(self) -> None:
        """Tell the running job to stop, and take no more jobs."""
        with self._guard:
            self._closed = True
            self._number += 1
            self._waiting = None

    def wait(self, timeout: float | int | None = None) -> bool:
        """Wait for at most `timeout` seconds; return whether all work is done."""
        with self._guard:
            return self._guard.wait_for(lambda: not self._running, timeout)

    def _next(self) -> tuple[Job, int] | None:
        """The waiting job and its number; None if there is none, and then the thread ends."""
        with self._guard:
            if self._waiting is None or is_ending():
                # under the lock, so that `submit` cannot believe that this thread will take its job
                self._running = False
                self._guard.notify_all()
                return None
            job, self._waiting = self._waiting, None
            return job, self._number

    def _work(self) -> None:
        """Run jobs until none waits. A job is cancelled once the number of the newest one is no longer its own."""
        while (taken := self._next()) is not None:
            job, number = taken
            try:
                job(lambda number=number: self._number != number or is_ending())
            except Unwanted:
                pass
            except Exception as error:  # whatever it is, the page must show it and stay usable
                logger.debug("the lab's work failed", exc_info=True)
                if self._number == number and not is_ending():
                    self._on_error(error)
