"""One model and several threads: letting others go first, and ending a pass between two blocks."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ivlens.forward.hooks import model_lock
from ivlens.models.boot import TransformerBridge

_BREATH = 0.001  # seconds; without them the same thread would have the lock again before another one woke up


def give_way(model: TransformerBridge) -> None:
    """Let another thread that waits for the model go first; for whoever holds its lock, where nothing is hooked."""
    lock = model_lock(model)
    lock.release()
    try:
        time.sleep(_BREATH)
    finally:
        lock.acquire()


@contextmanager
def stopping(model: TransformerBridge, check: Callable[[], object]) -> Iterator[None]:
    """Call `check` before every block that this thread runs in the body; what it raises ends the pass there.

    Whatever is hooked is gone when it arrives outside. It should be no `Exception`: code that tries something on a
    model takes those for the model's own.
    """
    me = threading.get_ident()

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
