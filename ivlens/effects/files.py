"""How `HeadEffects` are written to a file and read from it; whatever does not fit together is refused."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ivlens.common.precision import FULL
from ivlens.effects.bands import ChosenHeads
from ivlens.forward.ability import Ability
from ivlens.models.artefacts import Artefact
from ivlens.models.fingerprint import ModelIdentity, warn_of_older
from ivlens.models.mixers import recorded_columns
from ivlens.prompts.recipe import PromptRecipe

FILE = Artefact("ivlens.HeadEffects/1", "HeadEffects.save")

_SHAPES = {
    "cie": ("n", "n_layers", "n_heads"),
    "mean_z": ("n_layers", "n_heads", "d_head"),
    "mean_z_corrupted": ("n_layers", "n_heads", "d_head"),
    "write_scale": ("n_layers", "d_model"),
    "base_scores": ("n",),
    "clean_scores": ("n",),
}
TENSORS = tuple(_SHAPES)
AGAIN = "again_cie"  # name of the tensor with the effects of heads that were measured again
_OPTIONAL = {"mean_z_corrupted", "clean_scores"}  # missing without a contrast, and in files of older versions


def read_effects(path: str | Path) -> dict[str, Any]:
    """The fields of the `HeadEffects` that were saved in this file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of head effects, or a damaged one.
    """
    tensors, about = FILE.read(path)
    try:
        content = _content(about)
    except (KeyError, TypeError, ValueError) as error:
        FILE.refuse(path, f"has incomplete metadata ({type(error).__name__}: {error})")
    again = tensors.pop(AGAIN, None)  # its shape does not follow from the fields of the others
    _check_tensors(path, tensors, content)
    return dict.fromkeys(_OPTIONAL) | tensors | content | {"again": _again(path, again, about, content["model"])}


def again_content(again: ChosenHeads | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata that a file keeps of heads measured again; both empty where there are none."""
    if again is None:
        return {}, {}
    about = {"heads": [list(head) for head in again.heads], "inputs": list(again.inputs), "split": again.split}
    return {AGAIN: again.cie}, {"again": about}


def _again(path: str | Path, cie: Tensor | None, about: Mapping[str, Any], model: ModelIdentity) -> ChosenHeads | None:
    """The heads measured again, from their tensor and metadata; None where the file has neither."""
    if cie is None and "again" not in about:
        return None
    try:
        described = about["again"]
        heads = tuple((int(layer), int(head)) for layer, head in described["heads"])
        inputs, split = tuple(described["inputs"]), described["split"]
        if not all(isinstance(text, str) for text in (*inputs, split)):
            raise TypeError("inputs or split are no texts")
        n_heads, _ = recorded_columns(about["settings"], model.n_heads, model.d_head)
        if not all(0 <= layer < model.n_layers and 0 <= head < n_heads for layer, head in heads):
            raise ValueError("heads that the model does not have")
    except (KeyError, TypeError, ValueError) as error:
        FILE.refuse(path, f"has incomplete metadata of heads measured again ({type(error).__name__}: {error})")
    if cie is None or tuple(cie.shape) != (len(inputs), len(heads)) or cie.dtype not in FULL:
        FILE.refuse(
            path, f"has no tensor {AGAIN} of {len(inputs)} prompts and {len(heads)} heads, as its metadata says"
        )
    return ChosenHeads(heads, cie, inputs, split)


def _content(about: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the metadata hold.

    Raises:
        KeyError, TypeError, ValueError: one is missing, or is of another kind.
    """
    content = {key: about[key] for key in ("task", "settings", "model")}
    lists = {key: tuple(about[key]) for key in ("corruptions", "inputs")}
    if not (isinstance(content["task"], str) and isinstance(content["settings"], dict)):
        raise TypeError("task is no text or settings no mapping")
    if not all(isinstance(text, str) for texts in lists.values() for text in texts):
        raise TypeError("corruptions or inputs are no texts")
    # recipe and ability stay in the settings; read once, so that a broken one is refused here and not at its first use
    PromptRecipe.recorded(content["settings"])
    Ability.recorded(content["settings"])
    recorded_columns(content["settings"], 1, 1)
    return content | lists


def _check_tensors(source: str | Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Refuse tensors whose shapes or dtypes are not those that the metadata imply."""
    sizes = {**asdict(content["model"]), "n": len(content["corruptions"])}
    sizes["n_heads"], sizes["d_head"] = recorded_columns(content["settings"], sizes["n_heads"], sizes["d_head"])
    expected = {name: tuple(sizes[size] for size in shape) for name, shape in _SHAPES.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in _OPTIONAL - found.keys():  # may be missing, but if it is there it has to fit
        del expected[name]
    if found != expected:
        FILE.refuse(source, f"has tensors {found}, not {expected} as its metadata says")
    if len(content["inputs"]) != sizes["n"]:
        FILE.refuse(source, f"has {len(content['inputs'])} inputs for {sizes['n']} prompts")
    if any(tensor.dtype not in FULL for tensor in tensors.values()):
        FILE.refuse(source, "has tensors that are neither float32 nor float64")


def check_model_of(path: str | Path, effects: ModelIdentity, model: ModelIdentity) -> None:
    """Raise ValueError where the effects were measured on another model: weights, configuration or tokenizer."""
    other = model.differs(effects)
    if other:
        raise ValueError(
            f"{path} holds effects measured on {effects}, expected {model}, which has {other}; measure them on this "
            "model with head_effects, or load them without model= to look at them."
        )
    warn_of_older(str(path), effects)
