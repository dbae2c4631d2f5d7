"""Which examples every step of a training sees, and the seed of its draws: both follow from the step's number alone."""

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor


def batch_of(step: int, batch_size: int, n_examples: int, seed: int) -> Int[Tensor, " batch_size"]:
    """The numbers of the examples in one step. Every epoch goes through all examples in an order of its own.

    Nothing is remembered from step to step, so a resumed training needs no state of a sampler.
    """
    order = _order_from(step * batch_size, n_examples, seed)
    # a step may reach over the end of an epoch into the next one
    return torch.tensor([number for _, number in zip(range(batch_size), order, strict=False)])


def read_by(n_steps: int, batch_size: int, n_examples: int, seed: int) -> Int[Tensor, " read"]:
    """The numbers of the examples that a training of so many steps reads, in ascending order."""
    if n_steps * batch_size >= n_examples:  # the first epoch goes through all of them
        return torch.arange(n_examples)
    return batch_of(0, n_steps * batch_size, n_examples, seed).sort().values


def _order_from(first: int, n_examples: int, seed: int) -> Iterator[int]:
    """The endless order of examples, from its place `first` on."""
    epoch, n_skipped = divmod(first, n_examples)
    while True:
        # below 0, where no step's number is: an epoch's seed is never that of a step
        generator = torch.Generator().manual_seed(mixed_seed(seed, -1 - epoch))
        yield from torch.randperm(n_examples, generator=generator)[n_skipped:].tolist()
        epoch, n_skipped = epoch + 1, 0


def mixed_seed(seed: int, number: int) -> int:
    """A seed of its own for each pair of a training's seed and the number of a step or epoch."""
    return (seed * 1_000_003 + number * 7_919) % 2**63  # primes: small pairs do not meet
