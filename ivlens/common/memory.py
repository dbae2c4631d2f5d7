"""How much memory a pass may use: from what the machine has, never from what happens to be free."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivlens.common.disk import is_short_of_disk

if TYPE_CHECKING:
    import torch

# what libraries say whose error has no class of its own
_SAID = re.compile(
    "can't allocate memory|cannot allocate memory|out of memory|bad_alloc|ALLOC_FAILED|can't start new thread", re.I
)
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_budget(max_memory: Any, device: "torch.device") -> int:
    """Bytes that the activations of one pass may use.

    Args:
        max_memory: a number of bytes, or `auto`: an eighth of a GPU's memory; 1/64 of the machine's on a CPU, where
            larger passes are no faster, between 128 MiB and 1 GiB. So the same machine always works in the same
            portions, whatever else it is doing, and gives the same bits.

    Raises:
        ValueError: neither of them.
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
    """Bytes of memory that this machine has, or the part of them that this process's container may use."""
    sizes = [_limit(path) for path in _CGROUP_LIMITS]
    try:
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        sizes.append(2**34)
    return min(size for size in sizes if size is not None)


def _limit(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library raised this because it could not allocate, on a GPU or on the CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch need not be imported
        return True
    # a ValueError quotes what somebody wrote, which may be anything
    may_say = isinstance(error, RuntimeError | OSError | ImportError | SystemError)
    return may_say and _SAID.search(str(error)) is not None


def pass_on_shortage(error: BaseException) -> None:
    """Raise an error again that says nothing but that memory or the disk ran out.

    For handlers that take any other error as a sign that a model or a file is unfit.
    """
    if is_out_of_memory(error) or is_short_of_disk(error):
        raise error
