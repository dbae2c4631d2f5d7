"""Which numbers a model computes in, and how far what it computes may be off by rounding alone."""

import torch

HALF = (torch.bfloat16, torch.float16)
FULL = (torch.float32, torch.float64)


def rounding_share(dtype: torch.dtype, single: float = 1e-3) -> float:
    """The share of the largest number that may be rounding after a whole pass: `single`, or 0.05 in half precision."""
    return single if dtype in FULL else 5e-2
