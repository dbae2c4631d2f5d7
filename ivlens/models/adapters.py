"""Low-rank adapters in peft's own format, merged into the model that they belong to."""

import json
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ivlens.common.files import LIST
from ivlens.models.known import known_model
from ivlens.models.opening import check_name

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LONGEST_CONFIG = 2**20  # bytes
_SETS = {"target_modules", "modules_to_save", "exclude_modules", "target_parameters"}


def adapter_folders(folder: str | Path) -> dict[str, Path]:
    """Adapters that a folder holds, by name: itself (`default`), and the subfolders that were saved with it.

    A model that trains a new adapter for every task saves each in a subfolder; together they are the model. Empty for
    anything that is no folder of adapters, for a whole model, for a known model's name, and for a folder of several
    checkpoints.
    """
    if known_model(folder) is not None:
        return {}
    root = Path(folder).expanduser()
    if not root.is_dir() or (root / "config.json").is_file():
        return {}
    found = {"default": root} if (root / CONFIG).is_file() else {}
    if found or (root / LIST).is_file():  # a checkpoint of its own would have its own list
        parts = [path.parent for path in sorted(root.glob(f"*/{CONFIG}"))]
        found |= {path.name: path for path in parts if not (path / LIST).exists()}
    return found


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
    return names.pop()


def with_adapters(plain: Any, folder: str | Path) -> Any:
    """`plain`, a fresh Hugging Face model, with the adapters of `folder` merged into its weights.

    Raises:
        ImportError: peft is not installed.
        ValueError: damaged adapters, some that are not whole, or that do not fit the model.
    """
    try:
        from peft import PeftModel
    except ImportError:
        what = "adapters need the package peft, which is not installed; pip install 'ivlens[tune]'."
        raise ImportError(what) from None
    found = adapter_folders(folder)
    names = {name: _checked(path) for name, path in found.items()}
    (first, path), *others = found.items()
    try:
        with warnings.catch_warnings():
            # what peft warns of, weights that it makes up, is refused below
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            wrapped: Any = PeftModel.from_pretrained(plain, path, adapter_name=first)
        for name, path in others:
            wrapped.load_adapter(path, name)
        for name, listed in names.items():
            _check_all_used(wrapped, name, listed)
        wrapped.base_model.set_adapter(list(found))
        return wrapped.merge_and_unload()  # some kinds of adapters cannot be
    except Exception as error:  # peft's, torch's and safetensors' own
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
        raise ValueError(
            f"the adapters in {str(folder)!r} do not fit the model ({reason}), expected the model they were trained on "
            "and files as peft wrote them; name it with base=, or save them again."
        ) from None


def _checked(folder: Path) -> set[str]:
    """Names of the weights of one adapter, after a look at everything that peft would stumble over, or believe.

    Raises:
        ValueError: damaged, not in safetensors, numbers that are none, or a rank that the weights cannot have.
    """
    about, path = _about(folder / CONFIG), folder / WEIGHTS
    is_lora = about.get("peft_type") == "LORA"
    lacking = sorted({"r", "lora_alpha", "target_modules"} - about.keys()) if is_lora else []
    if lacking:  # peft would take its defaults: other adapters than those that were trained
        raise _unusable(folder / CONFIG, f"lacks {' and '.join(lacking)}", "all that peft writes")
    if not path.is_file():  # a pickle beside it, which peft would open, does not count
        raise _unusable(folder, f"holds no {WEIGHTS}", "weights in that file, and no others")
    largest, names = 0, set()
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                tensor = file.get_tensor(name)
                if not tensor.is_floating_point() or not tensor.isfinite().all():
                    raise _unusable(path, f"has numbers in {name!r:.100} that are no finite fractions", "such numbers")
                names.add(name)
                largest = max(largest, *tensor.shape, 0)
    except (SafetensorError, OSError) as error:
        raise _unusable(path, f"cannot be read ({type(error).__name__}: {error!s:.100})", "safetensors") from None
    patterns = about.get("rank_pattern")
    ranks = [about.get("r", 1), *(patterns.values() if isinstance(patterns, dict) else [])]
    if is_lora and not all(type(rank) is int and 1 <= rank <= largest for rank in ranks):
        # before memory for it is asked for
        raise _unusable(folder / CONFIG, f"says r is {ranks!r:.60}", f"1 to {largest}, as the weights are shaped")
    return names


def _check_all_used(wrapped: Any, name: str, listed: set[str]) -> None:
    """Refuse an adapter whose file lacks some of its weights, or has some that are nobody's."""
    from peft import get_peft_model_state_dict

    own = set(get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False))
    lacking, needless = sorted(own - listed), sorted(listed - own - set(wrapped.state_dict()))
    if lacking or needless:
        raise ValueError(
            f"in {name!r}, {len(lacking)} weights are missing and {len(needless)} belong nowhere: "
            f"{', '.join([*lacking, *needless][:2]):.160}"
        )


def put_in_order(folder: Path) -> None:
    """Sort what peft keeps as sets, and writes in an order of the moment: the same adapters are the same bytes."""
    for config in sorted(folder.rglob(CONFIG)):
        about = json.loads(config.read_text(encoding="utf-8"))
        for name in _SETS & about.keys():
            if isinstance(about[name], list):
                about[name] = sorted(about[name])
        config.write_text(json.dumps(about, indent=2, sort_keys=True), encoding="utf-8")


def _described(config: Path) -> str:
    name = _about(config).get("base_model_name_or_path")
    if not name or not isinstance(name, str):
        raise ValueError(f"{str(config)!r} names no model, expected base_model_name_or_path; name one with base=.")
    check_name(name)
    return name


def _about(config: Path) -> dict[str, Any]:
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


def _unusable(path: Path, got: str, expected: str) -> ValueError:
    return ValueError(f"{str(path)!r} {got}, expected {expected}; save the adapters again with peft.")
