"""Folders of adapters in peft's own format: which they are, what they say, and whether they are whole."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ivlens.common.files import read_small
from ivlens.common.saves import LIST, whole
from ivlens.models.known import known_model
from ivlens.models.opening import check_name

logger = logging.getLogger("ivlens")

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_LONGEST_CONFIG = 2**20  # bytes
_SETS = {"target_modules", "modules_to_save", "exclude_modules", "target_parameters"}
_WHOLE_NUMBERS = ("indices", "index")  # of kinds that keep where they change something
_PROMPT_KINDS = {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "CPT", "CARTRIDGE"}


def adapter_folders(folder: str | Path) -> dict[str, Path]:
    """Adapters that a folder holds, by name: itself (`default`), and the subfolders that ivlens wrote with it.

    A model that trains a new adapter for every task saves each in a subfolder; together they are the model, and a list
    beside them says so. Other adapters in subfolders, as trainers leave them on the way, are other models: peft opens
    none of them with the folder either. Empty for anything that is no folder of adapters, for a whole model, for a
    known model's name, and for a folder of several checkpoints.
    """
    if known_model(folder) is not None:
        return {}
    root = whole(Path(folder).expanduser())
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
        listed = {Path(name).parent for name in json.loads(read_small(root / LIST))["files"]}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        listed = None  # a damaged list: every subfolder that has no list of its own
    found = [path for path in _beside(root) if not (path / LIST).exists()]
    return [path for path in found if listed is None or Path(path.name) in listed]


def _beside(root: Path) -> list[Path]:
    """Subfolders with adapters; those with a dot are scratch folders of a save."""
    return sorted(path.parent for path in root.glob(f"*/{CONFIG}") if not path.parent.name.startswith("."))


def is_adapter(folder: str | Path) -> bool:
    """Whether the folder itself is one model's adapters."""
    return bool(adapter_folders(folder))


def named_base(folder: str | Path) -> str:
    """The model that the adapters say they belong to.

    Raises:
        FileNotFoundError: the folder holds no adapters.
        ValueError: a damaged description, one that names no model, or adapters that name several.
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
    """Refuse adapters that belong, over others, to themselves."""
    seen = {Path(folder).expanduser().resolve()}
    while found := adapter_folders(name):
        place = Path(name).expanduser().resolve()
        if place in seen:
            raise ValueError(
                f"the adapters in {str(folder)!r} belong to themselves, expected a model; name it with base=."
            )
        seen.add(place)
        name = _described(next(iter(found.values())) / CONFIG)


def named_revision(folder: str | Path) -> str | None:
    """The branch, tag or commit of the model that the adapters belong to, where they name one."""
    found = {about_adapter(path / CONFIG).get("revision") for path in adapter_folders(folder).values()}
    revision = found.pop() if len(found) == 1 else None
    return revision if isinstance(revision, str) and revision else None


def check_adapters(folder: str | Path) -> dict[str, tuple[Path, dict[str, tuple[int, ...]]]]:
    """Path of every adapter of a folder, and the shapes of its weights, after a look at all that peft would believe.

    Raises:
        ValueError: damaged or incomplete adapters, of a kind that is no change of weights, or beside a whole model.
    """
    root, found = whole(Path(folder).expanduser()), adapter_folders(folder)
    models = [name for name in _WHOLE if (root / name).is_file()]
    if models:
        raise ValueError(
            f"{str(folder)!r} holds adapters ({CONFIG}) and a whole model ({models[0]}), expected one of them; move "
            "one of the two into a folder of its own."
        )
    beside = [path.name for path in _beside(root) if path.name not in found]
    if beside:
        logger.info("%s: its own adapters are opened, those in %s are other models.", folder, ", ".join(beside))
    return {name: (path, _checked(path)) for name, path in found.items()}


def _checked(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of one adapter.

    Raises:
        ValueError: damaged, not in safetensors, numbers that are none, or a rank that the weights cannot have.
    """
    about = about_adapter(folder / CONFIG)
    kind = about.get("peft_type")
    if kind in _PROMPT_KINDS:
        what = f"is of the kind {kind}, which adds to the prompt and not to the weights"
        raise _unusable(folder / CONFIG, what, "one that can be merged (LoRA, DoRA, IA3, VeRA, OFT ...)", "")
    lacking = sorted({"r", "lora_alpha", "target_modules"} - about.keys()) if kind == "LORA" else []
    if lacking:  # peft would take its defaults: other adapters than those that were trained
        raise _unusable(folder / CONFIG, f"lacks {' and '.join(lacking)}", "all that peft writes")
    shapes = _shapes(folder)
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    patterns = about.get("rank_pattern")
    ranks = [about.get("r", 1), *(patterns.values() if isinstance(patterns, dict) else [])]
    if kind == "LORA" and not all(type(rank) is int and 1 <= rank <= largest for rank in ranks):
        # before memory for it is asked for
        raise _unusable(folder / CONFIG, f"says r is {ranks!r:.60}", f"1 to {largest}, as the weights are shaped")
    return shapes


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    path = folder / WEIGHTS
    if not path.is_file() and (folder / PICKLED).is_file():
        return _pickled(folder / PICKLED)
    if not path.is_file():
        raise _unusable(folder, f"holds neither {WEIGHTS} nor {PICKLED}", "weights in one of these files")
    found = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                found[name] = _checked_shape(path, name, file.get_tensor(name))
    except (SafetensorError, OSError) as error:
        raise _unusable(path, f"cannot be read ({type(error).__name__}: {error!s:.100})", "safetensors") from None
    return found


def _pickled(path: Path) -> dict[str, tuple[int, ...]]:
    """What is in a `.bin`, read as tensors and nothing else: torch builds no other object, and calls nothing."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's, pickle's and zipfile's own
        reason = " ".join(str(error).split()).partition(".")[0]
        raise _unusable(path, f"holds more than tensors, or is damaged ({reason:.100})", "tensors by name") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise _unusable(path, "holds something else", "tensors by name")
    return {str(name): _checked_shape(path, str(name), tensor) for name, tensor in tensors.items()}


def _checked_shape(path: Path, name: str, tensor: torch.Tensor) -> tuple[int, ...]:
    if not tensor.isfinite().all() or not (tensor.is_floating_point() or name.endswith(_WHOLE_NUMBERS)):
        raise _unusable(path, f"has values in {name!r:.100} that are NaN, infinite or whole numbers", "fractions")
    return tuple(tensor.shape)


def put_in_order(folder: Path) -> None:
    """Sort what peft keeps as sets, and writes in an order of the moment: the same adapters are the same bytes."""
    for config in sorted(folder.rglob(CONFIG)):
        about = json.loads(config.read_text(encoding="utf-8"))
        for name in _SETS & about.keys():
            if isinstance(about[name], list):
                about[name] = sorted(about[name])
        config.write_text(json.dumps(about, indent=2, sort_keys=True), encoding="utf-8")


def _described(config: Path) -> str:
    name = about_adapter(config).get("base_model_name_or_path")
    if not name or not isinstance(name, str):
        raise ValueError(f"{str(config)!r} names no model, expected base_model_name_or_path; name one with base=.")
    check_name(name)
    return name


def about_adapter(config: Path) -> dict[str, Any]:
    """What peft wrote about an adapter.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        if not config.is_file() or config.stat().st_size > _LONGEST_CONFIG:
            raise OSError
        about = json.loads(config.read_text(encoding="utf-8"))
        if not isinstance(about, dict):
            raise TypeError
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{str(config)!r} cannot be read ({type(error).__name__}), expected the description that peft writes; save "
            "the adapters again."
        ) from None
    return about


def _unusable(path: Path, got: str, expected: str, remedy: str = "; save the adapters again with peft") -> ValueError:
    return ValueError(f"{str(path)!r} {got}, expected {expected}{remedy}.")
