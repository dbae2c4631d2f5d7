"""For pages that share a model: what is being done for each of them (`Running`), and whose work is next (`Turns`)."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ivlens.show.lab.worker import Unwanted

Listener = Callable[[list[dict[str, Any]]], None]
_LOOK = 0.1  # seconds; how often waiting work checks whether it is still wanted


class Running:
    """What is being done for which page, by the page's number. Every page is told of every change."""

    def __init__(self) -> None:
        self._guard, self._count = threading.Lock(), 0
        self._listeners: dict[int, Listener] = {}
        self._at_work: dict[int, tuple[str, float]] = {}

    def join(self, listener: Listener) -> int:
        """Register a new page, whose `listener` is called at every change, and return its number."""
        with self._guard:
            self._count += 1
            self._listeners[self._count] = listener
            return self._count

    def leave(self, page: int) -> None:
        """Remove a page that was closed, and its work."""
        self.say(page, "")
        with self._guard:
            self._listeners.pop(page, None)

    def say(self, page: int, what: str) -> None:
        """Record what is being done for a page now, and tell all pages; an empty text: nothing is being done."""
        with self._guard:
            if what and page in self._listeners:
                self._at_work[page] = what, time.monotonic()
            elif self._at_work.pop(page, None) is None:
                return
            # called outside the lock, since a listener may call this object again
            listeners = list(self._listeners.values())
        for listener in listeners:
            listener(self.facts())

    def facts(self) -> list[dict[str, Any]]:
        """What is being done for which page, and for how many seconds, as values that JSON can hold."""
        with self._guard:
            at_work, now = dict(self._at_work), time.monotonic()
        return [
            {"page": page, "what": what, "seconds": round(now - began, 1)} for page, (what, began) in at_work.items()
        ]


class Turns:
    """A queue: of several threads only one runs its body at a time, in the order in which they came."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: list[object] = []

    @contextmanager
    def taken(self, unwanted: Callable[[], bool], waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Run the body once all earlier callers are done.

        Args:
            unwanted: Asked while waiting; once it returns True, waiting ends.
            waiting: Called once, if there is anything to wait for.

        Raises:
            Unwanted: `unwanted` returned True.
        """
        ticket = object()
        with self._changed:
            self._line.append(ticket)
            is_first = self._line[0] is ticket
        try:
            if not is_first:
                waiting()
            with self._changed:
                while self._line[0] is not ticket:
                    if unwanted():
                        raise Unwanted
                    self._changed.wait(_LOOK)
            yield
        finally:
            with self._changed:
                self._line.remove(ticket)
                self._changed.notify_all()
