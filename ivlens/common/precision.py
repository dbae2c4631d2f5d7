"""The types of numbers that models compute in, and how large the rounding error of a pass can be."""

import torch

HALF = (torch.bfloat16, torch.float16)
FULL = (torch.float32, torch.float64)


def rounding_share(dtype: torch.dtype, single: float = 1e-3) -> float:
    """Rounding error of a whole pass, as a share of the largest number: `single` in full precision, 0.05 in half."""
    # bfloat16 keeps 8 bits of a number, and every layer rounds again
    return single if dtype in FULL else 5e-2
