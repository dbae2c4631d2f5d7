"""A lock that belongs to a flow of calls: a thread or a task, and whatever tasks they start in turn.

Coroutines share one thread, so a thread's lock lets two of them in at once. A hold here is a key in a context variable:
a task, and a call of `asyncio.to_thread`, inherit the keys of whoever starts them, and no others. So they are inside
what was open then, and outside of what somebody else opens. trio, anyio and greenlets keep such variables too.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from itertools import count
from time import monotonic
from weakref import WeakSet, ref

logger = logging.getLogger(__name__)
_KEYS: ContextVar[frozenset[int]] = ContextVar("ivlens_keys", default=frozenset())
_NEXT = count()
_HERE = threading.local()
_LOCKS: WeakSet["OwnedLock"] = WeakSet()
_PATIENCE = 60.0  # seconds of waiting before it is said

ANOTHER_TASK = (
    "another task of this thread is inside steer or has the model hooked, expected one at a time: waiting here would "
    "stop both; let both hold one asyncio.Lock, or open the context before the tasks that share it."
)


class Hold:
    """One stay inside a lock. `undo` is closed when it ends, also where its thread ends or is lost in a fork."""

    def __init__(self, lock: "OwnedLock", purpose: str = "") -> None:
        self.lock, self.purpose = lock, purpose
        self.key = next(_NEXT)
        self.thread, self.thread_name = threading.get_ident(), threading.current_thread().name
        self.undo = ExitStack()
        self.is_over = False

    def end(self) -> None:
        """Leave the lock, once; whoever waits goes on."""
        undo, self.undo = self.undo, ExitStack()
        try:
            undo.close()
        finally:
            self.lock._leave(self)
            _KEYS.set(_KEYS.get() - {self.key})
            self.is_over = True

    def abandon(self) -> None:
        """As `end`, for one whose own flow will not end it."""
        if self.is_over:
            return
        with suppress(Exception):  # what was cut off half-way in a fork cannot be undone step by step
            self.end()
        self.lock._sweep_if_free()

    def __del__(self) -> None:
        if not self.is_over and not sys.is_finalizing():
            self.abandon()


class OwnedLock:
    """Lets in one flow of calls at a time, as often as it likes.

    Another thread waits. Another task of a thread that is inside is refused: waiting would stop both.

    Args:
        sweep: Called where a hold was abandoned and nobody else is inside, to clear what it may have left.
    """

    def __init__(self, sweep: Callable[[], object] = lambda: None) -> None:
        self._sweep = sweep
        self._condition = threading.Condition()
        self._process = os.getpid()
        self._holds: list[ref[Hold]] = []  # weak: a stay that an interrupt cut off before it was noted ends by itself
        self._entered: list[Hold] = []
        _LOCKS.add(self)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Enter, and say whether it came to that.

        Raises:
            RuntimeError: another task of this thread is inside, and waiting was asked for.
        """
        hold = Hold(self)
        try:
            if not self._take(hold, 0.0 if not blocking else None if timeout < 0 else float(timeout)):
                hold.is_over = True
                return False
            self._entered.append(hold)
        except BaseException:
            with self.guard:
                self._entered = [each for each in self._entered if each is not hold]
            hold.end()
            raise
        return True

    def release(self) -> None:
        """Leave what this flow entered last.

        Raises:
            RuntimeError: it did not enter.
        """
        keys = _KEYS.get()
        with self.guard:
            mine = [hold for hold in self._entered if hold.key in keys]
            if not mine:
                raise RuntimeError("cannot release a lock that this flow does not hold.")
            hold = mine[-1]
            self._entered.remove(hold)
        hold.end()

    def __enter__(self) -> "OwnedLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @contextmanager
    def held(self, purpose: str = "") -> Iterator[Hold]:
        """Be inside during the body, for a purpose that others can ask for.

        Raises:
            RuntimeError: another task of this thread is inside.
        """
        hold = Hold(self, purpose)
        try:
            self._take(hold, None)
            yield hold
        finally:
            hold.end()

    @property
    def guard(self) -> threading.Condition:
        """Guards what is noted here, for a moment at a time; a new one in a forked process."""
        if self._process != os.getpid():
            self._condition, self._process = threading.Condition(), os.getpid()
        return self._condition

    def holds(self) -> list[Hold]:
        """Who is inside, in the order of entering."""
        return [hold for each in self._holds if (hold := each()) is not None and not hold.is_over]

    def keys_here(self) -> list[bool]:
        """For each stay inside, whether the flow that asks is part of it."""
        keys = _KEYS.get()
        return [hold.key in keys for hold in self.holds()]

    def _take(self, hold: Hold, seconds: float | None) -> bool:
        began, is_told = monotonic(), False
        with self.guard:
            while others := [other for other in self.holds() if other.key not in _KEYS.get()]:
                waited = monotonic() - began
                if seconds is not None and waited >= seconds:
                    return False
                if any(other.thread == hold.thread for other in others):
                    raise RuntimeError(ANOTHER_TASK)
                if waited > _PATIENCE and not is_told:
                    is_told = True
                    logger.warning("waiting for the model, which thread %r has been using.", others[-1].thread_name)
                self.guard.wait(1.0 if seconds is None else min(1.0, seconds - waited))
            _KEYS.set(_KEYS.get() | {hold.key})
            if not hasattr(_HERE, "last"):
                _HERE.last = _AtThreadEnd()
            _HERE.last.holds.add(hold)
            self._holds.append(ref(hold))
        return True

    def _leave(self, hold: Hold) -> None:
        with self.guard:
            self._holds = [each for each in self._holds if each() is not None and each() is not hold]
            self.guard.notify_all()

    def _sweep_if_free(self) -> None:
        if not self.holds():
            self._sweep()


class Runner:
    """Who runs the model inside a stay: its own flow, from one thread at a time, or one thread that was started inside.

    Args:
        refusal: What a second thread is told.
    """

    def __init__(self, lock: OwnedLock, refusal: str) -> None:
        self.lock, self.refusal = lock, refusal
        self.opener = threading.get_ident()
        self.thread: int | None = None
        self.is_busy = False
        self.is_stranger = False
        self._older = WeakSet(threading.enumerate())

    def take(self) -> None:
        """Begin, or go on with, a pass.

        Raises:
            RuntimeError: it is not this flow's turn.
        """
        me = threading.get_ident()
        with self.lock.guard:
            inside = self.lock.keys_here()
            is_stranger = not any(inside)
            if not all(inside) and (me == self.opener or not is_stranger):
                raise RuntimeError(ANOTHER_TASK)
            # text streamers generate in a thread that is started inside; one from before has other business here
            if is_stranger and self.thread is None and threading.current_thread() in self._older:
                raise RuntimeError(self.refusal)
            if self.thread not in (None, me) and (self.is_busy or is_stranger or self.is_stranger):
                raise RuntimeError(self.refusal)
            self.thread, self.is_busy, self.is_stranger = me, True, is_stranger

    def done(self) -> None:
        """The pass of this thread is over."""
        if self.is_mine():
            self.is_busy = False

    def is_mine(self) -> bool:
        """Whether this thread was the last that ran."""
        return self.thread == threading.get_ident()


class _AtThreadEnd:
    """Lies in a thread's own storage, so that it dies with the thread."""

    def __init__(self) -> None:
        self.holds: WeakSet[Hold] = WeakSet()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            _abandon(self.holds)


def _abandon(holds: "WeakSet[Hold] | list[Hold]") -> None:
    for hold in sorted(holds, key=lambda hold: -hold.key):
        with hold.lock.guard:
            hold.lock._entered = [each for each in hold.lock._entered if each is not hold]
        hold.abandon()


def _after_fork() -> None:
    """A fork has one thread; what others were inside of is nobody's there."""
    for lock in list(_LOCKS):
        _abandon([hold for hold in lock.holds() if hold.thread != threading.get_ident()])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
