"""Identifies a model: its name, its shape, and hashes of its weights, configuration and tokenizer."""

import json
import logging
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ivlens.common.names import set_shown
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.known import pocket_path
from ivlens.models.settings import config_facts, lasting_buffers, plain_name, tokenizer_hash

logger = logging.getLogger("ivlens")

# with up to this many parameters, hashing all of them is cheaper than finding out whether one has changed
_ALWAYS_HASHED = 2**26
_CHUNK = 2**22  # words of a tensor that are summed in one go; more would need as many factors in memory
_SAMPLED = 2**10  # words of each tensor that are looked at to find changes

_WARNED: set[str] = set()  # weights_hash of models for which `warn_of_older` has warned
# for each large model: its state at the last hashing, and the hash
_CACHE: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class ModelIdentity:
    """The record of a model that is stored with every result measured on it.

    Attributes:
        name, revision: The name and the branch, tag or commit by which it was opened.
        architecture, n_layers, n_heads, d_model, d_head, d_vocab: Its shape.
        weights_hash: Hash of every bit of every parameter.
        config_hash: Hash of everything else that the logits depend on: the configuration (positions, activation,
            scales ...) and tensors that are no parameters. Empty in files of older versions, which did not record it.
        tokenizer_hash: Hash of vocabulary, merges, normaliser, special tokens and chat template. Empty for a model
            without a tokenizer, and in files of older versions.
    """

    name: str
    revision: str | None
    architecture: str
    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    weights_hash: str
    config_hash: str = ""
    tokenizer_hash: str = ""

    def __post_init__(self) -> None:
        set_shown(self, "name")

    @property
    def key(self) -> str:
        """One hash (hex) of weights, configuration and tokenizer; equal for equal models under different names."""
        return sha256(f"{self.weights_hash} {self.config_hash} {self.tokenizer_hash}".encode()).hexdigest()

    def differs(self, other: "ModelIdentity") -> str:
        """How `other` differs from this model, as a phrase ("another configuration"); empty where it is the same.

        A hash that one of the two does not record is not compared.
        """
        pairs = {
            "other weights": (self.weights_hash, other.weights_hash),
            "another configuration": (self.config_hash, other.config_hash),
            "another tokenizer or chat template": (self.tokenizer_hash, other.tokenizer_hash),
        }
        found = [what for what, (ours, theirs) in pairs.items() if ours != theirs and ours and theirs]
        return " and ".join(found)

    def __str__(self) -> str:
        return f"{self.name} ({self.n_layers} layers x {self.n_heads} heads, weights {self.weights_hash[:12]})"


@dataclass(frozen=True)
class _Origin:
    """The name and the revision by which a model was opened."""

    name: str
    revision: str | None


def weights_hash(model: nn.Module) -> str:
    """SHA-256 (hex) over name, shape and checksum of every parameter; any single changed bit changes it.

    The checksum of a tensor is `sum_i bits_i * (2 i + 1) mod 2^64` for each run of 2^22 eight-byte words. Its factors
    are odd and so have an inverse, so that a change of one word always shows; they grow with `i`, so that order counts.
    The same weights in another dtype have another hash. Which PEFT adapters are on is part of the hash.

    The hash of a large model is kept until a parameter is replaced or edited. torch does not count edits through
    `.data`; these are seen if they change one of 1,024 words sampled from each tensor. So merging an adapter is seen,
    but one element that is changed through `.data` may not be.
    """
    adapters = _adapters(model)
    parameters = sorted((plain_name(name), parameter.detach()) for name, parameter in model.named_parameters())
    large = sum(parameter.numel() for _, parameter in parameters) > _ALWAYS_HASHED
    key = (adapters, *_state(parameters)) if large else ()
    if large and model in _CACHE and _CACHE[model][0] == key:
        return _CACHE[model][1]
    digest = sha256(adapters.encode())
    for name, parameter in parameters:
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        for checksum in _checksums(parameter):
            digest.update(checksum.to_bytes(8, "little", signed=True))
    if large:
        _CACHE[model] = (key, digest.hexdigest())
    return digest.hexdigest()


def _adapters(model: nn.Module) -> str:
    """A text that says which PEFT adapters are on and how strongly, which no parameter shows; empty without any."""
    names = ("disable_adapters", "active_adapters", "merged_adapters", "scaling")
    layers = (
        (plain_name(name), *(getattr(module, state, None) for state in names))
        for name, module in model.named_modules()
        if hasattr(type(module), names[0])  # the class, because the bridge's wrappers pass on attributes of instances
    )
    return "\n".join(map(repr, layers))


def _state(parameters: list[tuple[str, Tensor]]) -> list[tuple[Any, ...]]:
    """Addresses, edit counts and sampled sums of the parameters: quick, and different after almost any change."""
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
    # a view as eight-byte words has to begin and end on a border of eight bytes; anything else is copied
    if raw.numel() % 8 or raw.storage_offset() % 8:
        raw = torch.cat([raw, raw.new_zeros(-raw.numel() % 8)])
    return raw.view(torch.int64)


def _checksums(parameter: Tensor) -> list[int]:
    """The checksums of a tensor that `weights_hash` describes, one for each run of words."""
    words = _words(parameter)
    factors = 2 * torch.arange(min(_CHUNK, words.numel()), device=words.device) + 1
    sums = [(run * factors[: run.numel()]).sum() for run in words.split(_CHUNK)]
    return torch.stack(sums).tolist() if sums else []


def config_hash(model: nn.Module) -> str:
    """SHA-256 (hex) over the configuration and the saved buffers: what logits depend on beside the parameters."""
    plain: Any = getattr(model, "original_model", model)
    digest = sha256(json.dumps([type(plain).__name__, config_facts(plain.config)], sort_keys=True).encode())
    for name, buffer in lasting_buffers(model):
        digest.update(f"{name} {tuple(buffer.shape)} {buffer.dtype} {_checksums(buffer)}".encode())
    return digest.hexdigest()


def is_built_in(model: TransformerBridge) -> bool:
    """Whether a model has the weights of the built-in model as delivered, under any name and in any dtype."""
    try:
        stored = load_file(pocket_path() / "model.safetensors")
    except (OSError, SafetensorError):
        return False  # installed without the built-in model
    own = {plain_name(name): weight for name, weight in model.named_parameters()}
    return own.keys() == stored.keys() and all(
        own[name].shape == weight.shape and torch.equal(own[name].detach().cpu(), weight.to(own[name].dtype))
        for name, weight in stored.items()
    )


_ORIGINS: WeakKeyDictionary[TransformerBridge, _Origin] = WeakKeyDictionary()


def remember_name(model: TransformerBridge, name: str, revision: str | None) -> None:
    """Remember by which name and revision a model was opened, for `model_identity`."""
    _ORIGINS[model] = _Origin(name, revision)


def model_identity(model: TransformerBridge) -> ModelIdentity:
    """The name, the shape and the hashes of `model` and its tokenizer, as they are stored with every result."""
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
        config_hash=config_hash(model),
        tokenizer_hash=tokenizer_hash(getattr(model, "tokenizer", None)),
    )


def warn_of_older(what: str, identity: ModelIdentity) -> None:
    """Warn, once for each model, that a result of an older version may belong to another configuration or tokenizer.

    Args:
        what: The result, as the warning names it.
        identity: The model that the result records.
    """
    if not identity.config_hash and identity.weights_hash not in _WARNED:
        _WARNED.add(identity.weights_hash)
        logger.warning(
            "%s was made by an older ivlens, which recorded weights alone: whether configuration and tokenizer are the "
            "same is not known; make it again to be sure.",
            what,
        )
