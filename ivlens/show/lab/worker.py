"""Long work of one page, off the page's thread: only the newest request counts."""

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)

Cancelled = Callable[[], bool]
Job = Callable[[Cancelled], None]


class Unwanted(BaseException):
    """Nobody waits any longer for what was being done.

    No `Exception`: it must reach the worker through code that tries something on a model and goes on if that fails.
    """


class Worker:
    """Runs the newest job; one that is under way learns by `cancelled()` that it is no longer wanted.

    Jobs run one after the other in a thread that ends when nothing is left to do, so that what an old job shows can
    never come after what a newer one shows. A job may end itself by raising `Unwanted`.
    """

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        self._on_error = on_error
        self._guard = threading.Condition()
        self._waiting: Job | None = None
        self._running = False
        self._closed = False
        self._number = 0

    def submit(self, job: Job) -> None:
        """Run `job` soon; what was asked for before is dropped or told to stop."""
        with self._guard:
            if self._closed:
                return
            self._number += 1
            self._waiting = job
            if not self._running:
                self._running = True
                threading.Thread(target=self._work, name="ivlens-lab", daemon=True).start()

    def close(self) -> None:
        """Stop what runs, take nothing more."""
        with self._guard:
            self._closed = True
            self._number += 1
            self._waiting = None

    def wait(self, timeout: float | int | None = None) -> bool:
        """Whether all work was done within `timeout` seconds."""
        with self._guard:
            return self._guard.wait_for(lambda: not self._running, timeout)

    def _next(self) -> tuple[Job, int] | None:
        with self._guard:
            if self._waiting is None:
                self._running = False
                self._guard.notify_all()
                return None
            job, self._waiting = self._waiting, None
            return job, self._number

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            job, number = taken
            try:
                job(lambda number=number: self._number != number)
            except Unwanted:
                pass
            except Exception as error:  # whatever it is, the page must say so and live on
                logger.debug("the lab's work failed", exc_info=True)
                if self._number == number:
                    self._on_error(error)
