"""Writes and reads the files of ivlens: safetensors with one metadata entry, which is JSON. Never pickle."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
from torch import Tensor

from ivlens.common.files import write_whole
from ivlens.common.foreign import read_tensors
from ivlens.common.names import path_of
from ivlens.common.store.written import said_of
from ivlens.models.fingerprint import ModelIdentity

_LARGEST_FILE = 2**30  # bytes; effects of 1,000 prompts on 10,000 heads have a twentieth of this


@dataclass(frozen=True)
class Artefact:
    """One kind of file.

    Attributes:
        format: Name and version of the format, which stands in every file.
        written_by: The function that writes such files, as errors name it.
    """

    format: str
    written_by: str

    def write(self, path: str | Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> Path:
        """Write a file of tensors and `content`; the same content gives the same bytes.

        The file is written whole or not at all. `content` must have the key `model`, a `ModelIdentity`.

        Raises:
            ValueError: `content` holds something that JSON cannot hold.
            IsADirectoryError: `path` is a folder.
        """
        about = {**content, "model": asdict(content["model"]), "format": self.format}
        try:
            # one entry only: safetensors writes several entries in random order, and the bytes would differ
            metadata = {"ivlens": json.dumps(about, sort_keys=True)}
        except TypeError as error:
            raise ValueError(
                f"settings do not fit in JSON ({error}), expected plain numbers, texts and lists; convert the others."
            ) from error
        # copies: two names may stand for one tensor (scores where nothing is corrupted), which safetensors refuses
        copies = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        data = safetensors.torch.save(copies, metadata)
        target = path_of(path)
        if target.is_dir():
            raise IsADirectoryError(f"path is {str(path)!r:.80}, a folder, expected a file; add a file name to it.")
        return write_whole(target, lambda partial: partial.write_bytes(data))

    def read(self, path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the content of a file that `write` wrote, with the model as a `ModelIdentity`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file has another format, or is damaged or far too large.
        """
        source = path_of(path)
        if not source.is_file():
            what = f"not a file{f' ({told})' if (told := said_of(source)) else ''}"
            raise FileNotFoundError(f"{str(source)!r} is {what}, expected one written by {self.written_by}.")
        try:
            if source.stat().st_size > _LARGEST_FILE:
                raise ValueError(f"has {source.stat().st_size:,} bytes, more than the limit of {_LARGEST_FILE:,}")
            tensors, metadata = read_tensors(source)
        except ValueError as error:
            self.refuse(source, str(error))
        try:
            content = json.loads(metadata.get("ivlens", "null"))
        except (json.JSONDecodeError, RecursionError):
            self.refuse(source, "has damaged metadata")
        found = content.get("format") if isinstance(content, dict) else None
        if found != self.format:
            self.refuse(source, f"holds {found or 'something else'}, not {self.format}")
        try:
            return tensors, content | {"model": _identity(content["model"])}
        except (KeyError, TypeError) as error:
            self.refuse(source, f"has incomplete metadata ({type(error).__name__}: {error})")

    def refuse(self, source: str | Path, what: str) -> NoReturn:
        """Raise the error for a file that cannot be used.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{str(source)!r} {what}, expected a file written by {self.written_by}; save it again "
            "(pickles and .pt files are never read)."
        )


def _identity(about: Any) -> ModelIdentity:
    """The `ModelIdentity` that a file records, with its types checked."""
    # files of older versions have no hash of configuration and tokenizer, and newer ones may have more entries
    known = {key.name: about[key.name] for key in fields(ModelIdentity) if key.default is MISSING or key.name in about}
    model = ModelIdentity(**known)
    sizes = [getattr(model, name) for name in ("n_layers", "n_heads", "d_model", "d_head")]
    hashes = (model.weights_hash, model.config_hash, model.tokenizer_hash)
    if not (all(isinstance(size, int) for size in sizes) and all(isinstance(text, str) for text in hashes)):
        raise TypeError("the model's shape or hash is missing")
    return model
