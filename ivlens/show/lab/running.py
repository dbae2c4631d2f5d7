"""What is being done for which page of a lab, and whose turn it is: one for all pages that share a model."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ivlens.show.lab.worker import Unwanted

Listener = Callable[[list[dict[str, Any]]], None]
_LOOK = 0.1  # seconds between two looks at whether someone who waits is still wanted


class Running:
    """The work of all pages, by number. Every page hears of every change."""

    def __init__(self) -> None:
        self._guard, self._count = threading.Lock(), 0
        self._listeners: dict[int, Listener] = {}
        self._at_work: dict[int, tuple[str, float]] = {}

    def join(self, listener: Listener) -> int:
        """The number of a new page."""
        with self._guard:
            self._count += 1
            self._listeners[self._count] = listener
            return self._count

    def leave(self, page: int) -> None:
        """A page is gone, and its work ends."""
        self.say(page, "")
        with self._guard:
            self._listeners.pop(page, None)

    def say(self, page: int, what: str) -> None:
        """What is done for a page now; an empty text: nothing, as for one that is gone."""
        with self._guard:
            if what and page in self._listeners:
                self._at_work[page] = what, time.monotonic()
            elif self._at_work.pop(page, None) is None:
                return
            listeners = list(self._listeners.values())
        for listener in listeners:
            listener(self.facts())

    def facts(self) -> list[dict[str, Any]]:
        """What is being done for whom, and for how long, in plain values."""
        with self._guard:
            at_work, now = dict(self._at_work), time.monotonic()
        return [
            {"page": page, "what": what, "seconds": round(now - began, 1)} for page, (what, began) in at_work.items()
        ]


class Turns:
    """One after the other, in the order in which they came."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: list[object] = []

    @contextmanager
    def taken(self, unwanted: Callable[[], bool], waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """The body runs when it is its turn.

        Args:
            unwanted: Asked while it waits.
            waiting: Called once, if it has to.

        Raises:
            Unwanted: nobody waits for it any more.
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
