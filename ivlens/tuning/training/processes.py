"""One training on several processes, each with a GPU of its own and the whole model, as `torchrun` starts them.

Every process runs its share of a step's passes. Gradients are added up over processes before the optimiser makes its
step, and losses are means over the whole step, so the step is the one that a single process would make with as many
passes. Only dropout, where a model has any, draws other numbers.
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
    """The processes that share one training, seen from one of them.

    Attributes:
        rank: The number of this process, from 0.
        size: How many processes there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and reports steps."""
        return self.rank == 0

    def share(self, passes: Sequence[T]) -> Sequence[T]:
        """The passes that this process runs: every `size`-th one."""
        return passes[self.rank :: self.size]

    def sum_gradients(self, weights: Sequence[Tensor]) -> None:
        """Replace the gradient of every weight by its sum over processes; None where no process has a gradient."""
        if self.size == 1 or not weights:
            return
        # Every process must send the same gradients in the same order, or all wait for ever. So they agree first which
        # weights have one. Zeros for the others would not do: AdamW moves a weight whose gradient is 0 as well.
        present = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.int32)
        present = present.to(weights[0].device)
        dist.all_reduce(present)
        for weight, n in zip(weights, present.tolist(), strict=True):
            if n:
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
                dist.all_reduce(weight.grad)

    def summed(self, values: Mapping[str, float], names: Sequence[str], device: torch.device) -> dict[str, float]:
        """Each value summed over processes. A process may lack some values; `names` lists all, the same in each."""
        if self.size == 1:
            return dict(values)
        # beside each sum the number of processes that have the value: one that none has stays out of the log
        rows = [[values.get(name, 0.0), float(name in values)] for name in names]
        both = _sendable(rows, device)
        dist.all_reduce(both)
        return {name: value for name, (value, n) in zip(names, both.tolist(), strict=True) if n}

    def as_the_first(self, values: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """The values of the first process; all processes must call this with the same names."""
        names = sorted(values)
        if self.size == 1 or not names:
            return dict(values)
        theirs = _sendable([values[name] for name in names], device)
        dist.broadcast(theirs, 0)
        return dict(zip(names, theirs.tolist(), strict=True))

    def agreed(self, answer: bool, device: torch.device) -> bool:
        """The answer of the first process, in every process."""
        return bool(self.as_the_first({"answer": float(answer)}, device)["answer"])

    def check_shares(self, batch_size: int, accumulate: int) -> None:
        """Raise ValueError unless a batch can be divided evenly into the passes of all processes."""
        n_passes = accumulate * self.size
        if batch_size % n_passes:
            raise ValueError(
                f"batch_size is {batch_size}, expected a multiple of {n_passes}: {self.size} processes, accumulate "
                f"{accumulate}; change one of them."
            )

    def check_same(self, digest: str, what: str, device: torch.device) -> None:
        """Raise ValueError unless all processes have the same digest.

        Args:
            digest: A hexadecimal digest.
            what: What the digest is of, for the error.
        """
        if self.size == 1:
            return
        number = int(digest[:15], 16)  # 60 bits, which fit into an int64
        # one message for both: the largest number is minus the smallest of the negated ones
        bounds = torch.tensor([number, -number], device=device)
        dist.all_reduce(bounds, dist.ReduceOp.MIN)
        lowest, highest = int(bounds[0]), -int(bounds[1])
        if lowest != highest:
            raise ValueError(
                f"the {self.size} processes of this training have different {what}, expected the same in each; give "
                "each the same model, data, options and folder, and change none of their files meanwhile."
            )


def _sendable(values: Any, device: torch.device) -> Tensor:
    """Numbers as a tensor to send to other processes: float64, or float32 on devices without float64."""
    return torch.tensor(values, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)


_CURRENT: ContextVar[Processes] = ContextVar("processes", default=Processes())  # noqa: B039 - frozen


def current() -> Processes:
    """The processes that share the present training; outside of `data_parallel` this one alone."""
    return _CURRENT.get()


def under_torchrun() -> bool:
    """Whether torchrun has started this process together with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_draws(device: torch.device) -> AbstractContextManager[None]:
    """Run the body without any effect on the caller's random state, on the CPU and on this device.

    The state of other GPUs is not looked at, since they belong to other processes.
    """
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@contextmanager
def data_parallel() -> Iterator[Processes]:
    """Share every training in the body between all processes that `torchrun` has started.

    Load the model in the body: `device="cuda"` is then the GPU of this process. Every process runs the same body.
    `finetune` and `Learner` write files, and call `on_step` and `record`, in the first process only. Whatever else the
    body writes, it should write `if processes.is_first`.

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
    # The others wait while the first process writes checkpoints and records, which may take longer than the default of
    # ten minutes. A process that has died needs no timeout: torchrun ends the others.
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpus else "gloo", timeout=timedelta(hours=12))
    token = _CURRENT.set(Processes(dist.get_rank(), dist.get_world_size()))
    try:
        yield current()
    finally:
        _CURRENT.reset(token)
        dist.destroy_process_group()
