"""Reads folders of adapters in peft's format: which adapters a folder holds, their descriptions, their weights."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ivlens.common.foreign import foreign_json, read_pickled, read_tensors
from ivlens.common.saves import LIST, listed, whole
from ivlens.models.known import known_model, place_of
from ivlens.models.opening import WEIGHT_FILES, check_name

logger = logging.getLogger("ivlens")

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_LONGEST_CONFIG = 2**20  # bytes of a description
# entries of a description that peft keeps as sets, so that their order differs from save to save
_SETS = {"target_modules", "modules_to_save", "exclude_modules", "target_parameters"}
# ends of names of tensors that hold indices; all other tensors must hold floating-point numbers
_WHOLE_NUMBERS = ("indices", "index")
# kinds of adapters that add to the prompt, so that they cannot be merged into weights
_PROMPT_KINDS = {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "CPT", "CARTRIDGE"}


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter, read into memory.

    Attributes:
        config: Path of its `adapter_config.json`.
        about: Content of that file.
        tensors: Its weights, by name.
    """

    config: Path
    about: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of its weights, by name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def adapter_folders(folder: str | Path) -> dict[str, Path]:
    """The folders of the adapters that together make the model of `folder`, by the adapters' names.

    The folder itself is `default`. A model with a new adapter for every task has each in a subfolder, and ivlens writes
    a list of them beside it. Adapters in other subfolders, such as checkpoints of a trainer, are other models; peft
    does not open them with the folder either.

    Returns:
        Empty where `folder` holds no adapters, is a known model's name, a whole model or a folder of checkpoints.
    """
    known = known_model(folder)
    if known is not None and known.base is None:
        return {}
    root = whole(place_of(folder))
    # some trainers write the configuration of the whole model beside its adapters
    if not root.is_dir() or ((root / "config.json").is_file() and not (root / CONFIG).is_file()):
        return {}
    found = {"default": root} if (root / CONFIG).is_file() else {}
    return found | {path.name: path for path in _parts(root)}


def _parts(root: Path) -> list[Path]:
    """Subfolders with adapters that were saved together with the folder itself."""
    if not (root / LIST).is_file():
        return []
    try:
        saved = {Path(name).parent for name in listed(root)}
    except ValueError:
        saved = None  # a damaged list: take every subfolder except those with their own list, which are other models
    found = [path for path in _beside(root) if not (path / LIST).exists()]
    return [path for path in found if saved is None or Path(path.name) in saved]


def _beside(root: Path) -> list[Path]:
    """All subfolders with adapters, without hidden ones: these are scratch folders of a save."""
    return sorted(path.parent for path in root.glob(f"*/{CONFIG}") if not path.parent.name.startswith("."))


def is_adapter(folder: str | Path) -> bool:
    """Whether the folder holds the adapters of one model, and not only subfolders with adapters."""
    return bool(adapter_folders(folder))


def named_base(folder: str | Path) -> str:
    """The folder or Hub name of the model that the adapters were trained on, as their description names it.

    Raises:
        FileNotFoundError: the folder holds no adapters.
        ValueError: a description is damaged or names no model, or the adapters name different models.
    """
    found = adapter_folders(folder)
    if not found:
        raise FileNotFoundError(f"{str(folder)!r} holds no {CONFIG}, expected adapters written by peft.")
    names = {_described(path / CONFIG) for path in found.values()}
    if len(names) > 1:
        raise ValueError(
            f"the adapters in {str(folder)!r} belong to {' and '.join(sorted(names))}, expected one model; load them "
            "one by one."
        )
    name = names.pop()
    _check_no_circle(folder, name)
    return name


def _check_no_circle(folder: str | Path, name: str) -> None:
    """Refuse adapters whose model is a folder of adapters that leads, through others, back to the first folder."""
    seen = {place_of(folder).resolve()}
    while found := adapter_folders(name):
        place = place_of(name).resolve()
        if place in seen:
            raise ValueError(
                f"the adapters in {str(folder)!r} name each other as their model, expected a model; name it with base=."
            )
        seen.add(place)
        name = _described(next(iter(found.values())) / CONFIG)


def named_revision(folder: str | Path) -> str | None:
    """The branch, tag or commit of the adapters' model; None where they name none, or different ones."""
    found = {about_adapter(path / CONFIG).get("revision") for path in adapter_folders(folder).values()}
    revision = found.pop() if len(found) == 1 else None
    return revision if isinstance(revision, str) and revision else None


def read_adapters(folder: str | Path) -> dict[str, Adapter]:
    """Every adapter of a folder, by name, read and checked here because peft trusts what the files say.

    Raises:
        ValueError: adapters that are damaged or incomplete, that do not change weights, or that lie beside a whole
            model.
    """
    root, found = whole(place_of(folder)), adapter_folders(folder)
    models = [name for name in WEIGHT_FILES if (root / name).is_file()]
    if models:
        raise ValueError(
            f"{str(folder)!r} holds adapters ({CONFIG}) and a whole model ({models[0]}), expected one of them; move "
            "one of the two into a folder of its own."
        )
    beside = [path.name for path in _beside(root) if path.name not in found]
    if beside:
        logger.info("%s: its own adapters are opened, those in %s are other models.", folder, ", ".join(beside))
    return {name: _read(path) for name, path in found.items()}


def _read(folder: Path) -> Adapter:
    """One adapter of a folder.

    Raises:
        ValueError: it is damaged, changes no weights, contains NaN, or names a rank that its weights cannot have.
    """
    about = about_adapter(folder / CONFIG)
    kind = about.get("peft_type")
    if kind in _PROMPT_KINDS:
        what = f"is of the kind {kind}, which adds to the prompt and not to the weights"
        raise unusable(folder / CONFIG, what, "one that can be merged (LoRA, DoRA, IA3, VeRA, OFT ...)", "")
    if about.get("adapters"):  # X-LoRA names other adapters by their paths
        raise unusable(folder / CONFIG, "names adapters that lie elsewhere", "adapters of its own", "")
    lacking = sorted({"r", "lora_alpha", "target_modules"} - about.keys()) if kind == "LORA" else []
    if lacking:  # peft would take its defaults, and the result would not be the trained adapter
        raise unusable(folder / CONFIG, f"lacks {' and '.join(lacking)}", "all that peft writes")
    tensors = _tensors(folder)
    largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    patterns = about.get("rank_pattern")
    ranks = [about.get("r", 1), *(patterns.values() if isinstance(patterns, dict) else [])]
    if kind == "LORA" and not all(type(rank) is int and 1 <= rank <= largest for rank in ranks):
        # checked here, because peft allocates matrices of this rank before it compares them with the weights
        raise unusable(folder / CONFIG, f"says r is {ranks!r:.60}", f"1 to {largest}, the largest size of its weights")
    return Adapter(folder / CONFIG, about, tensors)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of an adapter's folder, in either format that peft writes, all of them finite."""
    path = folder / WEIGHTS
    if not path.is_file() and (folder / PICKLED).is_file():
        path = folder / PICKLED
    if not path.is_file():
        raise unusable(folder, f"holds neither {WEIGHTS} nor {PICKLED}", "weights in one of these files")
    try:
        tensors = read_pickled(path) if path.name == PICKLED else read_tensors(path)[0]
    except OSError as error:
        raise unusable(path, f"cannot be read ({error.strerror or error!s:.100})", "safetensors") from None
    except ValueError as error:
        raise unusable(path, f"{error!s:.200}", "tensors by name") from None
    for name, tensor in tensors.items():
        if not tensor.isfinite().all() or not (tensor.is_floating_point() or name.endswith(_WHOLE_NUMBERS)):
            what = f"has values in {name!r:.100} that are NaN, infinite or integers"
            raise unusable(path, what, "finite floating-point numbers")
    return tensors


def put_in_order(folder: Path) -> None:
    """Sort the lists in descriptions that peft writes in random order, so that equal adapters are equal files."""
    for config in sorted(folder.rglob(CONFIG)):
        about = json.loads(config.read_text(encoding="utf-8"))
        for name in _SETS & about.keys():
            if isinstance(about[name], list):
                about[name] = sorted(about[name])
        config.write_text(json.dumps(about, indent=2, sort_keys=True), encoding="utf-8")


def _described(config: Path) -> str:
    """The name of the model in one description."""
    name = about_adapter(config).get("base_model_name_or_path")
    if not name or not isinstance(name, str):
        raise ValueError(f"{str(config)!r} names no model, expected base_model_name_or_path; name one with base=.")
    check_name(name)
    return name


def about_adapter(config: Path) -> dict[str, Any]:
    """The content of an adapter's `adapter_config.json`.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        about = foreign_json(config, _LONGEST_CONFIG)
        if not isinstance(about, dict):
            raise TypeError
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{str(config)!r} cannot be read ({type(error).__name__}), expected the description that peft writes; save "
            "the adapters again."
        ) from None
    return about


def unusable(path: Path, got: str, expected: str, remedy: str = "; save the adapters again with peft") -> ValueError:
    """The error, to be raised by the caller, for an adapter's file that cannot be used."""
    return ValueError(f"{str(path)!r} {got}, expected {expected}{remedy}.")
