"""One model used by several threads: long work lets short passes go first, and a pass can be ended between two blocks.

The lab needs both: one page writes a completion while another page measures effects on the same model.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ivlens.forward.hooks import model_lock
from ivlens.models.boot import TransformerBridge

_BREATH = 0.001  # seconds; without this sleep the same thread would have the lock again before another one woke up
_LONGEST = 10.0  # seconds; a thread gives way no longer than this at a time, so that long work always ends
_LINGER = 0.1  # seconds; after a short pass the next one is expected, since a text is written token by token

_PASSING: WeakKeyDictionary[TransformerBridge, int] = WeakKeyDictionary()  # short passes that wait or run
_PASSED: WeakKeyDictionary[TransformerBridge, float] = WeakKeyDictionary()  # when the last one ended
_GUARD = threading.Lock()
_HERE = threading.local()


@contextmanager
def short_pass(model: TransformerBridge) -> Iterator[None]:
    """Mark the body as a short pass that somebody waits for: longer work of other threads gives way to it."""
    with _GUARD:
        _PASSING[model] = _PASSING.get(model, 0) + 1
    try:
        yield
    finally:
        with _GUARD:
            _PASSING[model] -= 1
            _PASSED[model] = time.monotonic()


def rest(model: TransformerBridge) -> None:
    """Let short passes of other threads go first; the caller holds no lock."""
    # at most as long as this thread has worked since its last rest: with many short passes each side gets half the time
    began = time.monotonic()
    until = began + min(_LONGEST, began - getattr(_HERE, "rested", began))
    time.sleep(_BREATH)
    while time.monotonic() < until and _is_asked(model):
        time.sleep(_BREATH)
    _HERE.rested = time.monotonic()


def give_way(model: TransformerBridge) -> None:
    """Release the model's lock for a moment, so that short passes go first (see `rest`); nothing may be hooked now."""
    lock = model_lock(model)
    lock.release()
    try:
        rest(model)
    finally:
        lock.acquire()


def _is_asked(model: TransformerBridge) -> bool:
    """Whether a short pass waits or runs, or ended a moment ago, so that the next one may come."""
    with _GUARD:
        return _PASSING.get(model, 0) > 0 or time.monotonic() - _PASSED.get(model, 0.0) < _LINGER


@contextmanager
def stopping(model: TransformerBridge, check: Callable[[], object]) -> Iterator[None]:
    """Call `check` before every block that this thread runs in the body; an error it raises ends the pass there.

    Contexts remove their hooks as the error passes through them. `check` should raise a `BaseException` that is no
    `Exception`: engines catch any `Exception` of a pass and take it for the model's own refusal.
    """
    me, _HERE.rested = threading.get_ident(), time.monotonic()

    def before(block: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() == me:  # passes of other threads go through the same hooks
            check()

    with model_lock(model):  # torch's tables of hooks must not change while another thread's pass reads them
        handles = [block.register_forward_pre_hook(before) for block in model.blocks]
    try:
        yield
    finally:
        with model_lock(model):
            for handle in handles:
                handle.remove()
