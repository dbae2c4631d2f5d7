"""Opening what others wrote with a library that does not expect the worst: one clear error instead of its own."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ivlens.common.files import check_inner_names, read_small
from ivlens.models.known import KNOWN

_LONGEST_NAME = 4096  # of a path, on most systems
_SLACK = 16  # numbers in a byte of weights, far more than any way of storing them
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_LONGEST_INDEX = 2**26  # bytes
_SIZES = ("vocab_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings")


def check_name(name: str | Path) -> None:
    """Refuse what cannot be a model's name, before the system is asked about it.

    Raises:
        ValueError: empty, longer than a path or one of its parts can be, or with letters that no name has.
    """
    text = str(name)
    parts = text.encode("utf-8", "replace").split(b"/")
    if not text.strip() or len(text) > _LONGEST_NAME or max(map(len, parts)) > 255 or not text.isprintable():
        raise ValueError(
            f"model is {text!r:.80}, expected a checkpoint folder, a Hub name 'owner/name', a GGUF file, or "
            f"{' or '.join(map(repr, KNOWN))}; check it."
        )


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind, where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def opened_by(library: str, label: str, remedy: str) -> Iterator[None]:
    """Errors of the body as one sentence with the model's name.

    Raises:
        FileNotFoundError: for an error of the system.
        ValueError: for all others.
    """
    try:
        yield
    except BaseException as error:
        # what a Rust library raises in its panic is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (" ".join(str(error).split()) or "no reason given")[:300]
        if type(error).__name__ == "UnpicklingError":  # torch advises to run what is in it
            reason = "a file of weights is damaged or holds more than tensors; nothing else is read"
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        raise kind(f"{label} cannot be opened by {library} ({type(error).__name__}: {reason}), {remedy}.") from error


def check_sizes(config: Any, source: Path) -> None:
    """Refuse a configuration of a model that a folder's or a file's weights cannot be, before memory is asked for.

    Raises:
        ValueError: sizes that are no positive whole numbers, or that need far more weights than there are.
    """
    beside = source.iterdir() if source.is_dir() else ()
    weights_files = [path for path in beside if path.is_file() and path.suffix in (".safetensors", ".bin")]
    files, where = (weights_files, "config.json") if source.is_dir() else ([source], "its header")
    n_bytes = sum(path.stat().st_size for path in files)
    text = config.get_text_config()
    width = getattr(text, "hidden_size", None)
    values = {name: getattr(text, name, None) for name in ("hidden_size", *_SIZES)}
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(
                f"model {str(source)!r}: {name} is {value!r:.60} in {where}, expected a whole number, 1 or more; "
                "save or download the checkpoint again."
            )
        weights = value * (width if isinstance(width, int) else 1)
        if n_bytes and weights > _SLACK * (4 if name == "max_position_embeddings" else 1) * max(n_bytes, 2**20):
            raise ValueError(
                f"model {str(source)!r}: {name} is {value:,} in {where}, but its weights have {n_bytes:,} bytes, "
                "expected sizes that fit together; save or download the checkpoint again."
            )


def check_shards(folder: Path) -> None:
    """Refuse a checkpoint whose index leads to weights outside of its folder.

    Raises:
        ValueError: it does, or it cannot be read.
    """
    for name in _INDEXES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            names = json.loads(read_small(path.resolve(), _LONGEST_INDEX))["weight_map"].values()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{str(path)!r} cannot be read ({type(error).__name__}), expected the index of a checkpoint's weights; "
                "save or download it again."
            ) from None
        check_inner_names(path, names)


def check_all_there(hf_model: Any, missing: Any, label: str) -> None:
    """Refuse a checkpoint that lacks weights: transformers makes them up, at random, and only warns.

    Raises:
        ValueError: some parameter is not in it.
    """
    lacking = sorted(set(missing) & {name for name, _ in hf_model.named_parameters()})
    if lacking:
        raise ValueError(
            f"model {label!r} lacks {len(lacking)} weights ({', '.join(lacking[:3])} ...), expected all of them: they "
            "would be random numbers; save or download the checkpoint again."
        )
