"""One training on several processes, each with a GPU of its own and the whole model, as `torchrun` starts them.

Every process takes its share of a step's passes. The gradients are added up over processes before the optimiser makes
its step, so the step is that of one process with as many passes: losses are means over the whole step either way. Only
dropout, where a model has any, draws anew.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """Those of a training, seen from one of them."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and tells of steps."""
        return self.rank == 0

    def share(self, passes: Sequence[T]) -> Sequence[T]:
        """What of it is done here."""
        return passes[self.rank :: self.size]

    def sum_gradients(self, weights: Sequence[Tensor]) -> None:
        """Give every weight the sum of its gradients; none where no process has one."""
        if self.size == 1 or not weights:
            return
        present = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.int32)
        present = present.to(weights[0].device)
        dist.all_reduce(present)
        for weight, n in zip(weights, present.tolist(), strict=True):
            if n:
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
                dist.all_reduce(weight.grad)

    def summed(self, values: Mapping[str, float], names: Sequence[str], device: torch.device) -> dict[str, float]:
        """Sums over processes of values that some of them may lack; `names` is the same list in each."""
        if self.size == 1:
            return dict(values)
        rows = [[values.get(name, 0.0), float(name in values)] for name in names]
        both = _sendable(rows, device)
        dist.all_reduce(both)
        return {name: value for name, (value, n) in zip(names, both.tolist(), strict=True) if n}

    def as_the_first(self, values: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """The first process's values for these names, which must be the same in each."""
        names = sorted(values)
        if self.size == 1 or not names:
            return dict(values)
        theirs = _sendable([values[name] for name in names], device)
        dist.broadcast(theirs, 0)
        return dict(zip(names, theirs.tolist(), strict=True))

    def agreed(self, answer: bool, device: torch.device) -> bool:
        """The first process's answer."""
        return bool(self.as_the_first({"answer": float(answer)}, device)["answer"])

    def check_same(self, digest: str, what: str, device: torch.device) -> None:
        """Raise ValueError where processes differ in what this (hexadecimal) digest is of."""
        if self.size == 1:
            return
        number = int(digest[:15], 16)
        bounds = torch.tensor([number, -number], device=device)
        dist.all_reduce(bounds, dist.ReduceOp.MIN)
        lowest, highest = int(bounds[0]), -int(bounds[1])
        if lowest != highest:
            raise ValueError(
                f"the {self.size} processes of this training have different {what}, expected the same in each; give "
                "each the same model, data, options and folder, and change none of their files meanwhile."
            )


def _sendable(values: Any, device: torch.device) -> Tensor:
    """Numbers as a tensor that can be sent: float64, but for devices that have none."""
    return torch.tensor(values, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)


_CURRENT: ContextVar[Processes] = ContextVar("processes", default=Processes())  # noqa: B039 - frozen


def current() -> Processes:
    """Those that share the present training: one, outside of `data_parallel`."""
    return _CURRENT.get()


def under_torchrun() -> bool:
    """Whether torchrun has started this process, with others beside it."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_draws(device: torch.device) -> AbstractContextManager[None]:
    """Keep the draws of the body from changing the caller's; on this device alone, since each process has its own."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@contextmanager
def data_parallel() -> Iterator[Processes]:
    """Trainings in the body are shared by all processes that `torchrun` has started.

    Load the model inside: `device="cuda"` is then the GPU of this process. Every process runs the same body; `finetune`
    and `Learner` write files, and call `on_step` and `record`, in the first one alone. Whatever else the body writes it
    has to write `if processes.is_first`.

    Example:
        with data_parallel() as processes:  # in a script that is started by torchrun --nproc-per-node 4
            result = finetune(load_model("pocket"), task, options=TuneOptions(batch_size=32))

    Raises:
        ValueError: torchrun has not started this process.
    """
    lacking = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR") if name not in os.environ]
    if lacking:
        raise ValueError(
            f"data_parallel found no {', '.join(lacking)} in the environment, expected to be started by torchrun; use "
            "torchrun --nproc-per-node N SCRIPT, or leave data_parallel out."
        )
    has_gpus = torch.cuda.is_available()
    if has_gpus:
        local, n_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= n_gpus:
            raise ValueError(
                f"process {local} of this machine has no GPU of its own, {n_gpus} are here; use --nproc-per-node "
                f"{n_gpus}."
            )
        torch.cuda.set_device(local)
    # the first process alone writes checkpoints and records, which may take longer than the usual ten minutes; that one
    # has died torchrun sees by itself
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpus else "gloo", timeout=timedelta(hours=12))
    token = _CURRENT.set(Processes(dist.get_rank(), dist.get_world_size()))
    try:
        yield current()
    finally:
        _CURRENT.reset(token)
        dist.destroy_process_group()
