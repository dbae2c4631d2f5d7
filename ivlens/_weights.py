"""A fingerprint of all weights, quick enough to take of a model of several billion parameters."""

import hashlib
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

# up to this many parameters hashing costs less than finding out whether anything has changed
_ALWAYS_HASHED = 2**26
_CHUNK = 2**22

_CACHE: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], str]] = WeakKeyDictionary()


def weights_hash(model: nn.Module) -> str:
    """SHA-256 (hex) over name, shape and checksum of every parameter; any single changed bit changes it.

    The checksum of a tensor is `sum_i bits_i * (2 i + 1) mod 2^64` for each run of 2^22 eight-byte words: an odd factor
    can be undone, so no change of one word cancels, and the factor grows with `i`, so order counts. The same weights in
    another dtype are other bits. Large models keep the result until a parameter is replaced or edited in place.
    """
    parameters = sorted(
        (name.replace("._original_component", ""), parameter.detach()) for name, parameter in model.named_parameters()
    )
    large = sum(parameter.numel() for _, parameter in parameters) > _ALWAYS_HASHED
    key = tuple((name, parameter.data_ptr(), parameter._version) for name, parameter in parameters) if large else ()
    if large and model in _CACHE and _CACHE[model][0] == key:
        return _CACHE[model][1]
    digest = hashlib.sha256()
    for name, parameter in parameters:
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        for checksum in _checksums(parameter):
            digest.update(checksum.to_bytes(8, "little", signed=True))
    if large:
        _CACHE[model] = (key, digest.hexdigest())
    return digest.hexdigest()


def _checksums(parameter: Tensor) -> list[int]:
    raw = parameter.contiguous().view(-1).view(torch.uint8)
    if raw.numel() % 8 or raw.storage_offset() % 8:
        raw = torch.cat([raw, raw.new_zeros(-raw.numel() % 8)])
    words = raw.view(torch.int64)
    factors = 2 * torch.arange(min(_CHUNK, words.numel()), device=words.device) + 1
    sums = [(run * factors[: run.numel()]).sum() for run in words.split(_CHUNK)]
    return torch.stack(sums).tolist() if sums else []
