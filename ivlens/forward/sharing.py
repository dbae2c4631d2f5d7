"""One model and several threads: letting others go first, and ending a pass between two blocks."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ivlens.forward.hooks import model_lock
from ivlens.models.boot import TransformerBridge

_BREATH = 0.001  # seconds; without them the same thread would have the lock again before another one woke up
_LONGEST = 10.0  # seconds of giving way at a time
_LINGER = 0.1  # seconds between two short passes of one text

_PASSING: WeakKeyDictionary[TransformerBridge, int] = WeakKeyDictionary()
_PASSED: WeakKeyDictionary[TransformerBridge, float] = WeakKeyDictionary()
_GUARD = threading.Lock()
_HERE = threading.local()


@contextmanager
def short_pass(model: TransformerBridge) -> Iterator[None]:
    """The body is a short pass that somebody waits for: longer work on the model, by other threads, gives way to it."""
    with _GUARD:
        _PASSING[model] = _PASSING.get(model, 0) + 1
    try:
        yield
    finally:
        with _GUARD:
            _PASSING[model] -= 1
            _PASSED[model] = time.monotonic()


def rest(model: TransformerBridge) -> None:
    """Let short passes go first, for as long as this thread has worked since it last rested; holds no lock."""
    began = time.monotonic()
    until = began + min(_LONGEST, began - getattr(_HERE, "rested", began))
    time.sleep(_BREATH)
    while time.monotonic() < until and _is_asked(model):
        time.sleep(_BREATH)
    _HERE.rested = time.monotonic()


def give_way(model: TransformerBridge) -> None:
    """As `rest`, for whoever holds the model's lock, where nothing is hooked."""
    lock = model_lock(model)
    lock.release()
    try:
        rest(model)
    finally:
        lock.acquire()


def _is_asked(model: TransformerBridge) -> bool:
    with _GUARD:
        return _PASSING.get(model, 0) > 0 or time.monotonic() - _PASSED.get(model, 0.0) < _LINGER


@contextmanager
def stopping(model: TransformerBridge, check: Callable[[], object]) -> Iterator[None]:
    """Call `check` before every block that this thread runs in the body; what it raises ends the pass there.

    Whatever is hooked is gone when it arrives outside. It should be no `Exception`: code that tries something on a
    model takes those for the model's own.
    """
    me, _HERE.rested = threading.get_ident(), time.monotonic()

    def before(block: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() == me:
            check()

    with model_lock(model):  # not while another thread is in a pass, whose hooks would change under it
        handles = [block.register_forward_pre_hook(before) for block in model.blocks]
    try:
        yield
    finally:
        with model_lock(model):
            for handle in handles:
                handle.remove()
