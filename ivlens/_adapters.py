"""Low-rank adapters in peft's own format, merged into the model that they belong to."""

import json
from pathlib import Path
from typing import Any

from ivlens._files import LIST

CONFIG = "adapter_config.json"
_SETS = {"target_modules", "modules_to_save", "exclude_modules", "target_parameters"}


def adapter_folders(folder: str | Path) -> dict[str, Path]:
    """Adapters that a folder holds, by name: itself (`default`), and the subfolders that were saved with it.

    A model that trains a new adapter for every task saves each in a subfolder; together they are the model. Empty for
    anything that is no folder of adapters, for a whole model, and for a folder of several checkpoints.
    """
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
        ValueError: adapters that do not fit the model.
    """
    try:
        from peft import PeftModel
    except ImportError:
        what = "adapters need the package peft, which is not installed; pip install 'ivlens[tune]'."
        raise ImportError(what) from None
    found = adapter_folders(folder)
    (first, path), *others = found.items()
    try:
        wrapped: Any = PeftModel.from_pretrained(plain, path, adapter_name=first)
        for name, path in others:
            wrapped.load_adapter(path, name)
    except Exception as error:  # peft's, torch's and safetensors' own
        raise ValueError(
            f"the adapters in {str(folder)!r} do not fit the model ({' '.join(str(error).split()):.300}), expected the "
            "model they were trained on; name it with base=."
        ) from None
    wrapped.base_model.set_adapter(list(found))
    return wrapped.merge_and_unload()


def put_in_order(folder: Path) -> None:
    """Sort what peft keeps as sets, and writes in an order of the moment: the same adapters are the same bytes."""
    for config in sorted(folder.rglob(CONFIG)):
        about = json.loads(config.read_text(encoding="utf-8"))
        for name in _SETS & about.keys():
            if isinstance(about[name], list):
                about[name] = sorted(about[name])
        config.write_text(json.dumps(about, indent=2, sort_keys=True), encoding="utf-8")


def _described(config: Path) -> str:
    try:
        name = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{str(config)!r} cannot be read ({type(error).__name__}); save the adapters again.") from None
    if not name:
        raise ValueError(f"{str(config)!r} names no model, expected base_model_name_or_path; name one with base=.")
    return str(name)
