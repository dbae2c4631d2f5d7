"""Where a model lies: the built-in one by its name, others as a folder or on the Hub."""

import os
from importlib import resources
from pathlib import Path


def pocket_path() -> Path:
    """The folder of the built-in model's checkpoint, which plain transformers opens as well."""
    return Path(str(resources.files("ivlens") / "data" / "pocket"))


def source_of(name: str | Path) -> str | Path:
    """A folder that holds a checkpoint, or a Hub name.

    Raises:
        FileNotFoundError: a folder that does not.
    """
    if name == "pocket":
        folder = pocket_path()
    else:
        folder = Path(os.path.expanduser(name))
        looks_local = isinstance(name, Path) or name.startswith((".", "~", os.sep)) or name.count("/") > 1
        if not folder.exists() and not looks_local:
            return str(name)
    if not (folder / "config.json").is_file():
        what = "is a folder without config.json" if folder.is_dir() else "is no folder"
        remedy = "train it with `ivlens pocket train`" if name == "pocket" else "pass one written by save_pretrained"
        raise FileNotFoundError(
            f"model {str(name)!r}: {folder} {what}, expected a checkpoint folder; {remedy}, or a Hub name 'owner/name'."
        )
    return folder
