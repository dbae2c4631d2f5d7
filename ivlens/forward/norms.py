"""Root-mean-square norms in one call of torch, in place of the five or more that families write them with.

On a GPU torch has one kernel for the whole norm, which reads a stream once and writes it once. The families' own norms
convert to float32, square, average, multiply and convert back, each in a call that moves the whole stream.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import rms_norm

# what each module is, found once: the name of its epsilon (its value may be changed later), and what its weights are
# counted from (Gemma's are 1 more than they say)
_FOUND: WeakKeyDictionary[nn.Module, tuple[str, float] | None] = WeakKeyDictionary()
_EPSILONS = ("variance_epsilon", "eps", "epsilon")


@contextmanager
def fused_norms(blocks: Iterable[nn.Module]) -> Iterator[int]:
    """In the body, these plain blocks calculate their norms in one call each; gives the number of such norms.

    Only norms that give the same are changed: each is compared with torch's own once, on random numbers.
    """
    changed: list[nn.Module] = []
    try:
        for norm in (module for block in blocks for module in block.modules()):
            kind = _kind(norm)
            if kind is not None and "forward" not in norm.__dict__:
                changed.append(norm)  # first, as an interrupt may come before the next line
                norm.__dict__["forward"] = partial(_fused, norm, *kind)
        yield len(changed)
    finally:
        for norm in changed:
            norm.__dict__.pop("forward", None)


def _fused(norm: Any, epsilon: str, offset: float, stream: Float[Tensor, "*rows width"]) -> Tensor:
    """`stream / sqrt(mean(stream^2) + epsilon) * (weight + offset)`, in the stream's dtype."""
    weight: Tensor = norm.weight + offset if offset else norm.weight
    return rms_norm(stream, weight.shape, weight.to(stream.dtype), getattr(norm, epsilon))


def _kind(norm: nn.Module) -> tuple[str, float] | None:
    """The name of a norm's epsilon and its offset; None for a module that is none of these."""
    if not type(norm).__name__.endswith("RMSNorm"):
        return None
    if norm not in _FOUND:
        _FOUND[norm] = _compared(norm)
    return _FOUND[norm]


def _compared(norm: nn.Module) -> tuple[str, float] | None:
    """What `_kind` tells, found by comparing what the module gives with torch's own norm."""
    weight = getattr(norm, "weight", None)
    epsilon = next((name for name in _EPSILONS if isinstance(getattr(norm, name, None), float)), None)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or epsilon is None or weight.device.type == "meta":
        return None
    draw = torch.Generator().manual_seed(0)
    stream = torch.randn(2, 3, len(weight), generator=draw)
    stream[1] *= getattr(norm, epsilon) ** 0.5  # small enough for the epsilon to count as much as the stream
    stream = stream.to(weight.device, weight.dtype)
    with torch.no_grad():
        want = norm(stream)
        for offset in (0.0, 1.0):
            got = _fused(norm, epsilon, offset, stream)
            if got.dtype == want.dtype and torch.allclose(got.double(), want.double(), *_rounding(weight.dtype)):
                return epsilon, offset
    return None


def _rounding(dtype: torch.dtype) -> tuple[float, float]:
    """The relative and the absolute difference that count as rounding: families may round to the dtype on the way."""
    # hardly any absolute one, as the weights of a norm may be far below 1
    return 8 * torch.finfo(dtype).eps, torch.finfo(dtype).tiny
