"""The file of `HeadEffects`: safetensors whose one metadata entry is JSON."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ivlens.models import ModelIdentity

FORMAT = "ivlens.HeadEffects/1"

_SHAPES = {
    "cie": ("n", "n_layers", "n_heads"),
    "mean_z": ("n_layers", "n_heads", "d_head"),
    "mean_z_corrupted": ("n_layers", "n_heads", "d_head"),
    "write_scale": ("n_layers", "d_model"),
    "base_scores": ("n",),
}
TENSORS = tuple(_SHAPES)


def write_effects(path: str | Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> Path:
    """Write tensors and `content` (task, model, settings, corruptions, inputs); a file is there whole or not at all.

    Raises:
        ValueError: settings that JSON cannot hold.
    """
    about = {**content, "model": asdict(content["model"]), "format": FORMAT}
    try:
        # one entry only: safetensors writes several in an order of its own
        metadata = {"ivlens": json.dumps(about, sort_keys=True)}
    except TypeError as error:
        raise ValueError(
            f"settings of the effects do not fit in JSON ({error}); use plain numbers, texts, lists."
        ) from (error)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(
            safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=metadata)
        )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def read_effects(path: str | Path) -> dict[str, Any]:
    """The fields of `HeadEffects` that `write_effects` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or a damaged one.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"head effects {str(source)!r} do not exist; measure them and save them there.")
    try:
        with safe_open(source, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    except SafetensorError as error:
        _refuse(source, f"is no whole safetensors file ({error})")
    try:
        about = json.loads(metadata.get("ivlens", "null"))
    except json.JSONDecodeError:
        _refuse(source, "has damaged metadata")
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else None
        _refuse(source, f"holds {found or 'something else'}, not {FORMAT}")
    try:
        content = _content(about)
    except (KeyError, TypeError, ValueError) as error:
        _refuse(source, f"has incomplete metadata ({type(error).__name__}: {error})")
    _check_tensors(source, tensors, content)
    return tensors | content


def _content(about: Mapping[str, Any]) -> dict[str, Any]:
    model = ModelIdentity(**{key.name: about["model"][key.name] for key in fields(ModelIdentity)})
    content = {key: about[key] for key in ("task", "settings")}
    lists = {key: tuple(about[key]) for key in ("corruptions", "inputs")}
    if not (isinstance(content["task"], str) and isinstance(content["settings"], dict)):
        raise TypeError("task is no text or settings no mapping")
    if not all(isinstance(text, str) for texts in lists.values() for text in texts):
        raise TypeError("corruptions or inputs are no texts")
    sizes = [getattr(model, name) for name in ("n_layers", "n_heads", "d_model", "d_head")]
    if not (all(isinstance(size, int) for size in sizes) and isinstance(model.weights_hash, str)):
        raise TypeError("the model's shape or hash is missing")
    return content | lists | {"model": model}


def _check_tensors(source: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    sizes = {**asdict(content["model"]), "n": len(content["corruptions"])}
    expected = {name: tuple(sizes[size] for size in shape) for name, shape in _SHAPES.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        _refuse(source, f"has tensors {found}, not {expected} as its metadata says")
    if len(content["inputs"]) != sizes["n"]:
        _refuse(source, f"has {len(content['inputs'])} inputs for {sizes['n']} prompts")
    if any(tensor.dtype not in (torch.float32, torch.float64) for tensor in tensors.values()):
        _refuse(source, "has tensors that are neither float32 nor float64")


def check_model_of(path: str | Path, effects: ModelIdentity, model: ModelIdentity) -> None:
    """Raise ValueError where the effects were measured on other weights than the model's."""
    if effects.weights_hash != model.weights_hash:
        raise ValueError(
            f"{path} holds effects measured on {effects}, expected {model}; measure them on this model with "
            "head_effects, or load them without model= to look at them."
        )


def _refuse(source: Path, what: str) -> NoReturn:
    raise ValueError(
        f"{str(source)!r} {what}, expected a file written by HeadEffects.save; save the effects again "
        "(pickles and .pt files are never read)."
    )
