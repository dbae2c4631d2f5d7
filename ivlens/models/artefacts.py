"""The files ivlens writes: safetensors whose one metadata entry is JSON. Never pickle."""

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
from ivlens.models.fingerprint import ModelIdentity

_LARGEST_FILE = 2**30  # bytes; effects of 1,000 prompts on 10,000 heads have a twentieth


@dataclass(frozen=True)
class Artefact:
    """One kind of file: its format's name, and what writes it."""

    format: str
    written_by: str

    def write(self, path: str | Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> Path:
        """Write tensors and `content` (with `model`, a `ModelIdentity`), whole or not at all; same content, same bytes.

        Raises:
            ValueError: content that JSON cannot hold.
        """
        about = {**content, "model": asdict(content["model"]), "format": self.format}
        try:
            # one entry only: safetensors writes several in an order of its own
            metadata = {"ivlens": json.dumps(about, sort_keys=True)}
        except TypeError as error:
            raise ValueError(f"settings do not fit in JSON ({error}); use plain numbers, texts, lists.") from error
        data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
        target = path_of(path)
        if target.is_dir():
            raise IsADirectoryError(f"path is {str(path)!r:.80}, a folder, expected a file's; name one in it.")
        return write_whole(target, lambda partial: partial.write_bytes(data))

    def read(self, path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the content that `write` wrote, with the model as a `ModelIdentity`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file, or a damaged one.
        """
        source = path_of(path)
        if not source.is_file():
            raise FileNotFoundError(f"{str(source)!r} is not a file, expected one written by {self.written_by}.")
        try:
            if source.stat().st_size > _LARGEST_FILE:
                raise ValueError(f"has {source.stat().st_size:,} bytes, {_LARGEST_FILE:,} are the most")
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
        """Say what is wrong with a file."""
        raise ValueError(
            f"{str(source)!r} {what}, expected a file written by {self.written_by}; save it again "
            "(pickles and .pt files are never read)."
        )


def _identity(about: Any) -> ModelIdentity:
    # files of older versions record no hash of configuration and tokenizer
    known = {key.name: about[key.name] for key in fields(ModelIdentity) if key.default is MISSING or key.name in about}
    model = ModelIdentity(**known)
    sizes = [getattr(model, name) for name in ("n_layers", "n_heads", "d_model", "d_head")]
    hashes = (model.weights_hash, model.config_hash, model.tokenizer_hash)
    if not (all(isinstance(size, int) for size in sizes) and all(isinstance(text, str) for text in hashes)):
        raise TypeError("the model's shape or hash is missing")
    return model
