"""Opening what others wrote with a library that does not expect the worst: one clear error instead of its own."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ivlens.common.memory import is_out_of_memory
from ivlens.common.names import can_be_path, one_line
from ivlens.models.known import KNOWN

SAVE_AGAIN = "expected a checkpoint written by save_pretrained; save or download it again"
# of a whole model, in the order in which transformers looks for them
WEIGHT_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
_SLACK = 16  # numbers in a byte of weights, far more than any way of storing them
_SIZES = ("vocab_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings")


def check_name(name: str | Path) -> None:
    """Refuse what cannot be a model's name, before the system is asked about it.

    Raises:
        ValueError: empty, longer than a path or one of its parts can be, or with letters that no name has.
    """
    text = str(name)
    if not can_be_path(text) or not text.isprintable():
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
        reason = one_line(error)
        if type(error).__name__ == "UnpicklingError":  # torch advises to run what is in it
            reason = "a file of weights is damaged or holds more than tensors; nothing else is read"
        if is_out_of_memory(error):  # a file may ask for more than there is of its own will: one error for both
            remedy = "as it needs more memory than there is; use a smaller one, or dtype='bfloat16'"
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


def check_fits(hf_model: Any, about: Mapping[str, Any], label: str, shapes: Mapping[str, Any] | None = None) -> None:
    """Refuse a checkpoint that lacks weights, or holds some that the model has no place for.

    transformers makes up the former at random and leaves out the latter, and only warns: five layers of six are another
    model. What other programs and older versions leave in a file that is no weight (masks, frequencies) may stay.

    Args:
        about: What transformers says about loading it.
        shapes: Of the tensors in the file, by name; None: leftovers are told by their names alone.

    Raises:
        ValueError: some parameter is not in it, or something is in it that is none.
    """
    lacking = sorted(set(about["missing_keys"]) & {name for name, _ in hf_model.named_parameters()})
    if lacking:
        raise ValueError(
            f"model {label!r} lacks {len(lacking)} weights ({', '.join(lacking[:3])} ...), expected all of them: they "
            "would be random numbers; save or download the checkpoint again."
        )
    needless = sorted(name for name in about.get("unexpected_keys", ()) if not _is_left_over(name, shapes))
    if needless:
        raise ValueError(
            f"model {label!r} holds {len(needless)} weights that config.json has no place for "
            f"({', '.join(needless[:3]):.160} ...), expected none: it would be another model without them; correct "
            "config.json, or save the checkpoint again."
        )


def _is_left_over(name: str, shapes: Mapping[str, Any] | None) -> bool:
    """Whether it is no weight but a table or a mask that can be computed."""
    if _TABLE.search(name):
        return True
    shape = None if shapes is None else shapes.get(name)
    return bool(_MASK.search(name)) and (shape is None or len(shape) in (0, 4))


_TABLE = re.compile(r"(^|\.)(rotary_emb|rotary_pos_emb|rope)\.|(^|\.)(inv_freq|cos_cached|sin_cached|position_ids)$")
_MASK = re.compile(r"(attn|attention)\.(bias|masked_bias|causal_mask)$")
