"""The file of an `InstructionVector`: safetensors whose one metadata entry is JSON."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ivlens.models import ModelIdentity

FORMAT = "ivlens.InstructionVector/1"


def write_vector(
    path: str | Path,
    theta: Float[Tensor, " d_model"],
    head_means: Float[Tensor, "k d_head"],
    content: Mapping[str, Any],
) -> Path:
    """Write both tensors and `content` (heads, task, model, settings); atomic, same content same bytes."""
    try:
        # one entry only: safetensors writes several in an order of its own
        text = json.dumps({**content, "model": asdict(content["model"]), "format": FORMAT}, sort_keys=True)
    except TypeError as error:
        raise ValueError(
            f"settings of the vector do not fit in JSON ({error}); use plain numbers, texts, lists."
        ) from error
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    tensors = {"theta": theta.contiguous(), "head_means": head_means.contiguous()}
    partial.write_bytes(safetensors.torch.save(tensors, metadata={"ivlens": text}))
    partial.replace(target)
    return target


def read_vector(path: str | Path) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "k d_head"], dict[str, Any]]:
    """What `write_vector` wrote: theta, head means and the content, with heads and model as objects.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or a damaged one.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source} is not a file, expected one written by InstructionVector.save.")
    try:
        with safe_open(source, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    except SafetensorError as error:
        _refuse(source, f"is no whole safetensors file ({error})")
    try:
        content = json.loads(metadata.get("ivlens", "null"))
    except json.JSONDecodeError:
        _refuse(source, "has damaged metadata")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        _refuse(source, f"has no metadata of format {FORMAT!r}")
    try:
        content["heads"] = tuple((int(layer), int(head)) for layer, head in content["heads"])
        content["model"] = ModelIdentity(**{key.name: content["model"][key.name] for key in fields(ModelIdentity)})
        content = {key: content[key] for key in ("heads", "task", "model", "settings")}
        if not (isinstance(content["task"], str) and isinstance(content["settings"], dict)):
            raise TypeError("task is no text or settings no mapping")
    except (KeyError, TypeError, ValueError) as error:
        _refuse(source, f"has incomplete metadata ({type(error).__name__}: {error})")
    _check_tensors(source, tensors, content["model"], content["heads"])
    return tensors["theta"], tensors["head_means"], content


def check_weights(
    name: str | Path, vector: ModelIdentity, model: ModelIdentity, allow_other_weights: bool
) -> dict[str, Any] | None:
    """None where the vector belongs to the model; its identity, to be recorded, where other weights are allowed.

    Raises:
        ValueError: another shape, or other weights that were not allowed.
    """
    names = ("n_layers", "n_heads", "d_head", "d_model")
    ours, theirs = ({name: getattr(identity, name) for name in names} for identity in (vector, model))
    if ours != theirs:
        raise ValueError(
            f"{name} is a vector for {vector.name!r} with {ours}, expected {theirs} from model {model.name!r}; "
            "a vector serves one shape of model only: compute it on this one."
        )
    if vector.weights_hash == model.weights_hash:
        return None
    if not allow_other_weights:
        raise ValueError(
            f"{name} is a vector for {vector.name!r} with weights {vector.weights_hash:.12}, expected "
            f"{model.weights_hash:.12} of model {model.name!r}; compute it on this model, or, to inject a vector of "
            "another checkpoint on purpose, pass allow_other_weights=True to InstructionVector.load (which records it) "
            "or to steer."
        )
    return asdict(model)


def _check_tensors(
    source: Path, tensors: Mapping[str, Tensor], model: ModelIdentity, heads: tuple[tuple[int, int], ...]
) -> None:
    expected = {"theta": (model.d_model,), "head_means": (len(heads), model.d_head)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        _refuse(source, f"has tensors {found}, expected {expected} from its metadata")
    if any(not (0 <= layer < model.n_layers and 0 <= head < model.n_heads) for layer, head in heads):
        _refuse(source, f"names heads {heads} that a model of {model.n_layers} x {model.n_heads} heads does not have")
    if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        _refuse(source, "has tensors that are not float32")


def _refuse(source: Path, what: str) -> NoReturn:
    raise ValueError(
        f"{source} {what}, expected a file written by InstructionVector.save; save the vector again "
        "(pickles and .pt files are never read)."
    )
