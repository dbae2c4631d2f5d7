"""Which model it is: its name, its shape, and a fingerprint of all weights that is quick for billions of them."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.known import pocket_path

# up to this many parameters hashing costs less than finding out whether anything has changed
_ALWAYS_HASHED = 2**26
_CHUNK = 2**22
_SAMPLED = 2**10

_CACHE: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class ModelIdentity:
    """Which model a result belongs to; `weights_hash` covers every parameter, to the bit."""

    name: str
    revision: str | None
    architecture: str
    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    weights_hash: str

    def __str__(self) -> str:
        return f"{self.name} ({self.n_layers} layers x {self.n_heads} heads, weights {self.weights_hash[:12]})"


@dataclass(frozen=True)
class _Origin:
    name: str
    revision: str | None


def weights_hash(model: nn.Module) -> str:
    """SHA-256 (hex) over name, shape and checksum of every parameter; any single changed bit changes it.

    The checksum of a tensor is `sum_i bits_i * (2 i + 1) mod 2^64` for each run of 2^22 eight-byte words: an odd factor
    can be undone, so no change of one word cancels, and the factor grows with `i`, so order counts. The same weights in
    another dtype are other bits. Where the model has PEFT adapters, which of them are on is part of the hash.

    Large models keep the result until a parameter is replaced or edited. Edits through `.data`, which torch does not
    count, are seen if they change one of 1,024 words sampled from each tensor: merging an adapter is seen, one element
    changed in that way may not be.
    """
    adapters = _adapters(model)
    parameters = sorted(
        (name.replace("._original_component", ""), parameter.detach()) for name, parameter in model.named_parameters()
    )
    large = sum(parameter.numel() for _, parameter in parameters) > _ALWAYS_HASHED
    key = (adapters, *_state(parameters)) if large else ()
    if large and model in _CACHE and _CACHE[model][0] == key:
        return _CACHE[model][1]
    digest = hashlib.sha256(adapters.encode())
    for name, parameter in parameters:
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        for checksum in _checksums(parameter):
            digest.update(checksum.to_bytes(8, "little", signed=True))
    if large:
        _CACHE[model] = (key, digest.hexdigest())
    return digest.hexdigest()


def _adapters(model: nn.Module) -> str:
    """Which PEFT adapters are on and how strongly, empty for a model without any: it changes no parameter."""
    names = ("disable_adapters", "active_adapters", "merged_adapters", "scaling")
    layers = (
        (name.replace("._original_component", ""), *(getattr(module, state, None) for state in names))
        for name, module in model.named_modules()
        if hasattr(type(module), names[0])  # its class: a wrapper around it passes attributes on
    )
    return "\n".join(map(repr, layers))


def _state(parameters: list[tuple[str, Tensor]]) -> list[tuple[Any, ...]]:
    """Something that differs after almost any change of the parameters, without reading them all."""
    samples: list[Tensor] = []
    for _, parameter in parameters:
        words = _words(parameter)
        sampled = words[:: max(1, -(-len(words) // _SAMPLED))]
        samples.append((sampled * (2 * torch.arange(len(sampled), device=words.device) + 1)).sum().cpu())
    sums = torch.stack(samples).tolist() if samples else []
    return [
        (name, parameter.data_ptr(), parameter._version, total)
        for (name, parameter), total in zip(parameters, sums, strict=True)
    ]


def _words(parameter: Tensor) -> Int[Tensor, " words"]:
    """The bits of a tensor as eight-byte words, the last one filled up with zeros."""
    raw = parameter.contiguous().view(-1).view(torch.uint8)
    if raw.numel() % 8 or raw.storage_offset() % 8:
        raw = torch.cat([raw, raw.new_zeros(-raw.numel() % 8)])
    return raw.view(torch.int64)


def _checksums(parameter: Tensor) -> list[int]:
    words = _words(parameter)
    factors = 2 * torch.arange(min(_CHUNK, words.numel()), device=words.device) + 1
    sums = [(run * factors[: run.numel()]).sum() for run in words.split(_CHUNK)]
    return torch.stack(sums).tolist() if sums else []


def is_built_in(model: TransformerBridge) -> bool:
    """Whether these are the weights of the built-in model, whatever it was opened as."""
    if _ORIGINS.get(model, _Origin("", None)).name == "pocket":
        return True
    try:
        known = json.loads((pocket_path() / "card.json").read_text(encoding="utf-8"))["about"]["weights_hash"]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # an installation without it has no built-in model
    return weights_hash(model) == known


_ORIGINS: WeakKeyDictionary[TransformerBridge, _Origin] = WeakKeyDictionary()


def remember_name(model: TransformerBridge, name: str, revision: str | None) -> None:
    """Keep what a model was opened as, for `model_identity`."""
    _ORIGINS[model] = _Origin(name, revision)


def model_identity(model: TransformerBridge) -> ModelIdentity:
    """Name, shape and weights hash of `model`, as stored with every result."""
    cfg = check_model(model).cfg
    origin = _ORIGINS.get(model, _Origin(str(getattr(cfg, "model_name", "")), None))
    return ModelIdentity(
        name=origin.name,
        revision=origin.revision,
        architecture=str(cfg.architecture),
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        d_model=cfg.d_model,
        d_head=cfg.d_head,
        d_vocab=cfg.d_vocab,
        weights_hash=weights_hash(model),
    )
