"""How much memory a pass through a model may use, and which errors say that memory ran out."""

import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivlens.common.disk import is_short_of_disk

if TYPE_CHECKING:
    import torch

# parts of messages of libraries that have no error class of their own for a lack of memory
_MESSAGES = re.compile(
    "can't allocate memory|cannot allocate memory|out of memory|bad_alloc|ALLOC_FAILED|can't start new thread", re.I
)
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_budget(max_memory: Any, device: "torch.device") -> int:
    """Bytes that the activations of one pass may use.

    `auto` depends on the memory that the machine has, never on what happens to be free. So the same machine always
    works in the same portions, and gives the same bits.

    Args:
        max_memory: A number of bytes, or `auto`: on a GPU an eighth of its memory; on a CPU, where larger passes are no
            faster, 1/64 of the machine's memory, between 128 MiB and 1 GiB.
        device: Where the model is.

    Raises:
        ValueError: `max_memory` is neither of them.
    """
    if isinstance(max_memory, int) and not isinstance(max_memory, bool) and max_memory > 0:
        return max_memory
    if max_memory != "auto":
        raise ValueError(f"max_memory is {max_memory!r:.60}, expected 'auto' or a positive number of bytes.")
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_properties(device).total_memory // 8
    return min(max(machine_memory() // 64, 2**27), 2**30)


def machine_memory() -> int:
    """Bytes of memory of this machine, or of this process's container where that is limited to fewer."""
    sizes = [_limit(path) for path in _CGROUP_LIMITS]
    try:
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        sizes.append(2**34)  # Windows does not say: 16 GiB
    return min(size for size in sizes if size is not None)


@contextmanager
def without_collection() -> Iterator[None]:
    """Keep Python's garbage collector from running in the body, which makes a great many objects and no garbage.

    Again and again it would look at all of them, which takes a third of the time. Threads may overlap here: the last
    one that found the collector running starts it again.
    """
    was_running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_running:
            gc.enable()


def _limit(path: str) -> int | None:
    """A container's limit of memory in bytes, read from one of the system's files; None where there is none."""
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch need not be imported
        return True
    # not a ValueError: it quotes what users wrote, which may contain these words
    may_say = isinstance(error, RuntimeError | OSError | ImportError | SystemError)
    return may_say and _MESSAGES.search(str(error)) is not None


def pass_on_shortage(error: BaseException) -> None:
    """Raise an error again if it says that memory or the disk ran out; otherwise do nothing.

    For handlers that take every other error as a sign that a model or a file is unfit.
    """
    if is_out_of_memory(error) or is_short_of_disk(error):
        raise error
