"""A lock that belongs to a flow of calls: a thread or an asyncio task, together with all tasks that it starts.

Coroutines share one thread, so a lock of threads would let two of them in at once. Here every hold of a lock is a key
in a context variable. A new task, and a call of `asyncio.to_thread`, inherits the keys of the flow that starts it, and
no others: it is inside the locks that its starter held then, and outside those that others take later. trio, anyio
and greenlets keep context variables, too.
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
from typing import Any
from weakref import WeakSet, ref

logger = logging.getLogger(__name__)
# keys of the holds that the present flow is inside
_KEYS: ContextVar[frozenset[int]] = ContextVar("ivlens_keys", default=frozenset())
_NEXT_KEY = count()
_OWN_OF_THREAD = threading.local()
_LOCKS: WeakSet["OwnedLock"] = WeakSet()
_PATIENCE = 60.0  # seconds of waiting before a warning is logged

ANOTHER_TASK = (
    "another task of this thread is inside steer or has the model hooked, expected one at a time: waiting here would "
    "stop both; let both hold one asyncio.Lock, or open the context before the tasks that share it."
)


class Hold:
    """One stay of a flow inside a lock, from entering to leaving.

    Attributes:
        lock: The lock.
        purpose: What the lock is held for, for other flows to read.
        key: The number of this hold, which is in the context variable of every flow that is inside.
        thread: The thread that entered; `thread_name` is its name.
        undo: Callbacks that run when the stay ends, also where its thread ends or is lost in a fork.
        is_over: Whether the stay has ended.
    """

    def __init__(self, lock: "OwnedLock", purpose: str = "") -> None:
        self.lock, self.purpose = lock, purpose
        self.key = next(_NEXT_KEY)
        self.thread, self.thread_name = threading.get_ident(), threading.current_thread().name
        self.undo = ExitStack()
        self.is_over = False

    def end(self) -> None:
        """Leave the lock and let the next flow in; a second call changes nothing."""
        undo, self.undo = self.undo, ExitStack()
        try:
            undo.close()
        finally:
            self.lock._leave(self)
            _KEYS.set(_KEYS.get() - {self.key})
            self.is_over = True

    def abandon(self) -> None:
        """Leave the lock for a flow that cannot do so itself any more, and clear what that flow may have left."""
        if self.is_over:
            return
        with suppress(Exception):  # undoing may fail where a fork interrupted the flow; the sweep clears the rest
            self.end()
        self.lock._sweep_if_free()

    def __del__(self) -> None:
        # nobody refers to this hold any more, so nobody will end it
        if not self.is_over and not sys.is_finalizing():
            self.abandon()


class OwnedLock:
    """A lock that one flow of calls holds at a time; that flow may enter it again and again.

    Other threads wait. Another task of the thread that is inside is refused, because waiting would stop both.

    Args:
        sweep: Called after a hold was abandoned, if nobody else is inside, to clear what the hold may have left.
    """

    def __init__(self, sweep: Callable[[], object] = lambda: None) -> None:
        self._sweep = sweep
        self._condition = threading.Condition()
        self._process = os.getpid()
        self._holds: list[ref[Hold]] = []  # weak: a hold that an interrupt cut off half-way is collected, which ends it
        self._entered: list[Hold] = []  # the holds of `acquire`, which `release` ends
        _LOCKS.add(self)

    def acquire(self, blocking: bool = True, timeout: float | int = -1) -> bool:
        """Enter the lock; False if it did not become free in time.

        Args:
            blocking: Whether to wait for it.
            timeout: The longest time to wait, in seconds; below 0: no limit.

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
        """End the last `acquire` of this flow.

        Raises:
            RuntimeError: this flow did not enter.
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
        """Hold the lock while the body runs.

        Args:
            purpose: What it is held for, for other flows to read (`Hold.purpose`).

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
        """The condition that guards this object's lists; it is held for a moment only.

        A forked process gets a new one: the old one may have been locked by a thread that does not exist there.
        """
        if self._process != os.getpid():
            self._condition, self._process = threading.Condition(), os.getpid()
        return self._condition

    def holds(self) -> list[Hold]:
        """The holds that are inside, in the order of entering."""
        return [hold for each in self._holds if (hold := each()) is not None and not hold.is_over]

    def keys_here(self) -> list[bool]:
        """For each hold inside, whether the calling flow is part of it."""
        keys = _KEYS.get()
        return [hold.key in keys for hold in self.holds()]

    def _take(self, hold: Hold, seconds: float | None) -> bool:
        """Wait until no other flow is inside, and enter; False if `seconds` pass before that (None: no limit)."""
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
                # at most a second: a hold may end without a notice, by being collected
                self.guard.wait(1.0 if seconds is None else min(1.0, seconds - waited))
            _KEYS.set(_KEYS.get() | {hold.key})
            if not hasattr(_OWN_OF_THREAD, "last"):
                _OWN_OF_THREAD.last = _AtThreadEnd()
            _OWN_OF_THREAD.last.holds.add(hold)
            self._holds.append(ref(hold))
        return True

    def _leave(self, hold: Hold) -> None:
        """Take a hold off the list, and wake those who wait."""
        with self.guard:
            self._holds = [each for each in self._holds if each() is not None and each() is not hold]
            self.guard.notify_all()

    def _sweep_if_free(self) -> None:
        if not self.holds():
            self._sweep()


class Runner:
    """Decides which thread may run the model inside a hold.

    It may be any thread of the holding flow, one at a time, or else one other thread that was started inside the hold.

    Args:
        lock: The model's lock, which the thread that makes this object holds.
        refusal: The error's text for a second thread.

    Attributes:
        opener: The thread that made this object.
        thread: The thread of the last pass.
        is_busy: Whether that pass is still running.
        is_stranger: Whether that thread is outside the flow.
    """

    def __init__(self, lock: OwnedLock, refusal: str) -> None:
        self.lock, self.refusal = lock, refusal
        self.opener = threading.get_ident()
        self.thread: int | None = None
        self.is_busy = False
        self.is_stranger = False
        self._older = WeakSet(threading.enumerate())

    def take(self) -> None:
        """Begin a pass, or go on with one.

        Raises:
            RuntimeError: another thread is running the model, or the calling flow is not part of the hold.
        """
        me = threading.get_ident()
        with self.lock.guard:
            inside = self.lock.keys_here()
            is_stranger = not any(inside)
            # another task of the opening thread, or a flow that is outside an inner hold
            if not all(inside) and (me == self.opener or not is_stranger):
                raise RuntimeError(ANOTHER_TASK)
            # text streamers generate in a thread that is started inside; a thread from before is somebody else's
            if is_stranger and self.thread is None and threading.current_thread() in self._older:
                raise RuntimeError(self.refusal)
            if self.thread not in (None, me) and (self.is_busy or is_stranger or self.is_stranger):
                raise RuntimeError(self.refusal)
            self.thread, self.is_busy, self.is_stranger = me, True, is_stranger

    def done(self) -> None:
        """Note that this thread's pass is over."""
        if self.is_mine():
            self.is_busy = False

    def is_mine(self) -> bool:
        """Whether this thread ran the last pass."""
        return self.thread == threading.get_ident()


class _AtThreadEnd:
    """Ends a thread's holds when the thread ends: it lies in the thread's own storage, and is deleted with it."""

    def __init__(self) -> None:
        self.holds: WeakSet[Hold] = WeakSet()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            _abandon(self.holds)


def _abandon(holds: "WeakSet[Hold] | list[Hold]") -> None:
    """End the holds of flows that are gone."""
    for hold in sorted(holds, key=lambda hold: -hold.key):  # the last one first: it lies inside the earlier ones
        with hold.lock.guard:
            hold.lock._entered = [each for each in hold.lock._entered if each is not hold]
        hold.abandon()


def _after_fork() -> None:
    """End the holds of other threads in a forked process, which has only the thread that forked."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and _LOCKS and torch.get_num_threads() > 1:
        torch.set_num_threads(1)  # its other threads are not in the fork either, and torch would wait for them for ever
    for lock in list(_LOCKS):
        _abandon([hold for hold in lock.holds() if hold.thread != threading.get_ident()])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
