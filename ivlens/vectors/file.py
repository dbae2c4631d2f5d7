"""Writing and reading the file of an `InstructionVector`, and checking that a vector belongs to a model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.models.artefacts import Artefact
from ivlens.models.fingerprint import ModelIdentity, warn_of_older
from ivlens.models.mixers import recorded_columns
from ivlens.vectors.provenance import check_settings, recipe_of

FILE = Artefact("ivlens.InstructionVector/1", "InstructionVector.save")


def write_vector(
    path: str | Path,
    theta: Float[Tensor, " d_model"],
    head_means: Float[Tensor, "k d_head"],
    content: Mapping[str, Any],
) -> Path:
    """Write a vector's file: both tensors, and `content` (heads, task, model, settings) as metadata."""
    return FILE.write(path, {"theta": theta, "head_means": head_means}, content)


def read_vector(path: str | Path) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "k d_head"], dict[str, Any]]:
    """Theta, head means and content of a file that `write_vector` wrote; heads are tuples, the model a `ModelIdentity`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds no vector, or is damaged.
    """
    tensors, content = FILE.read(path)
    try:
        content["heads"] = tuple((int(layer), int(head)) for layer, head in content["heads"])
        content = {key: content[key] for key in ("heads", "task", "model", "settings")}
        if not (isinstance(content["task"], str) and isinstance(content["settings"], dict)):
            raise TypeError("task is no text or settings no mapping")
        check_settings(content["settings"])
        recorded_columns(content["settings"].get("effects") or {}, 1, 1)
        recipe_of(content["settings"])  # only for its error: a damaged recipe is refused now and not at first use
    except (KeyError, TypeError, ValueError) as error:
        FILE.refuse(path, f"has incomplete metadata ({type(error).__name__}: {error})")
    _check_tensors(path, tensors, content["model"], content["heads"], content["settings"])
    return tensors["theta"], tensors["head_means"], content


def check_weights(
    name: str | Path, vector: ModelIdentity, model: ModelIdentity, allow_other_weights: bool
) -> dict[str, Any] | None:
    """Check that a vector belongs to a model, or may be used with it because the user has allowed that.

    Equal parameters under another configuration, tokenizer or chat template count as other weights too.

    Args:
        name: how errors call the vector.
        vector: the model that the vector was made on.
        model: the model that it is to be used with.
        allow_other_weights: accept another model of the same shape.

    Returns:
        None where both are the same model, otherwise the content of `settings["used_with"]`.

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
    other = vector.differs(model)
    if not other:
        warn_of_older(str(name), vector)
        return None
    if not allow_other_weights:
        raise ValueError(
            f"{name} is a vector for {vector.name!r}, expected one for {model.name!r}, which has {other}; compute it "
            "anew, or allow it by iv.for_model(model) or load(..., allow_other_weights=True): both record it."
        )
    return asdict(model)


def was_allowed(settings: Mapping[str, Any], model: ModelIdentity) -> bool:
    """Whether the user has allowed this vector, made on another model, for exactly this model."""
    allowed = settings.get("used_with") or {}
    # only hashes are compared: the same checkpoint may have been opened under another name
    hashes = {name: allowed.get(name, "") for name in ("weights_hash", "config_hash", "tokenizer_hash")}
    return bool(hashes["weights_hash"]) and not replace(model, **hashes).differs(model)


def check_parts(task: str, theta: Tensor, heads: Sequence[tuple[int, int]], means: Tensor) -> None:
    """Raise ValueError if a vector has another number of heads than of head means, or values that are not finite."""
    if len(heads) != len(means):
        raise ValueError(
            f"InstructionVector got {len(heads)} heads and {len(means)} head means, expected one mean per head; both "
            "may be empty."
        )
    if not bool(theta.isfinite().all() and means.isfinite().all()):
        raise ValueError(
            f"InstructionVector {task!r} contains NaN or infinite values, expected finite ones; compute the effects in "
            "float32."
        )


def check_same_width(one: Tensor, other: Tensor) -> None:
    """Raise ValueError for vectors of models of different widths."""
    if one.shape != other.shape:
        raise ValueError(
            f"vectors have shapes {tuple(one.shape)} and {tuple(other.shape)}, expected the same d_model; "
            "compare and combine only vectors of one architecture."
        )


def _check_tensors(
    source: str | Path,
    tensors: Mapping[str, Tensor],
    model: ModelIdentity,
    heads: tuple[tuple[int, int], ...],
    settings: Mapping[str, Any],
) -> None:
    """Refuse a file whose tensors do not have the shapes, or whose heads are not in the model, that it names."""
    n_heads, width = recorded_columns(settings.get("effects") or {}, model.n_heads, model.d_head)
    if all(head < model.n_heads for _, head in heads):
        width = model.d_head
    expected = {"theta": (model.d_model,), "head_means": (len(heads), width)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        FILE.refuse(source, f"has tensors {found}, expected {expected} from its metadata")
    if any(not (0 <= layer < model.n_layers and 0 <= head < n_heads) for layer, head in heads):
        FILE.refuse(source, f"names heads {heads}, which {model.n_layers} x {n_heads} heads do not include")
    if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        FILE.refuse(source, "has tensors that are not float32")
