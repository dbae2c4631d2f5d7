"""Checks before and after a library opens a checkpoint, and one clear error wherever the library fails."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ivlens.common.memory import is_out_of_memory
from ivlens.common.names import can_be_path, one_line
from ivlens.models.known import KNOWN

SAVE_AGAIN = "expected a checkpoint written by save_pretrained; save or download it again"
# names of files with the weights of a whole model, in the order in which transformers looks for them
WEIGHT_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
_SLACK = 16  # most numbers that one byte of weights may hold, far more than any quantisation stores
# entries of a configuration that, times the width, give the size of some weight
_SIZES = ("vocab_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings")


def check_name(name: str | Path) -> None:
    """Refuse a text that cannot be a model's name, before the file system or the Hub is asked for it.

    Raises:
        ValueError: the name is empty, too long for a path, or contains letters that cannot be printed.
    """
    text = str(name)
    if not can_be_path(text) or not text.isprintable():
        raise ValueError(
            f"model is {text!r:.80}, expected a checkpoint folder, a Hub name 'owner/name', a GGUF file, or "
            f"{' or '.join(map(repr, KNOWN))}; check it."
        )


def first_line(error: BaseException) -> str:
    """The first line of an error's text that is not blank; the name of its class where the text is empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def opened_by(library: str, label: str, remedy: str) -> Iterator[None]:
    """Turn any error of the body into one sentence with the model's name.

    Args:
        library: The library that the body calls.
        label: The model, as the error names it.
        remedy: The end of the sentence: what is expected, and what to do.

    Raises:
        FileNotFoundError: the body raised an OSError.
        ValueError: the body raised another error.
    """
    try:
        yield
    except BaseException as error:
        # a panic in a Rust library (tokenizers) is a BaseException, but no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = one_line(error)
        if type(error).__name__ == "UnpicklingError":  # torch's text advises to load the file unsafely
            reason = "a file of weights is damaged or holds more than tensors; nothing else is read"
        if is_out_of_memory(error):  # whether the model is large or its file lies about its size
            remedy = "as it needs more memory than there is; use a smaller one, or dtype='bfloat16'"
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        raise kind(f"{label} cannot be opened by {library} ({type(error).__name__}: {reason}), {remedy}.") from error


def check_sizes(config: Any, source: Path) -> None:
    """Refuse a configuration with sizes that the weights cannot have, before memory is taken for them.

    Args:
        config: The configuration.
        source: The checkpoint folder or GGUF file; the size of its weights in bytes is compared.

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
        # 2**20: tiny models have few bytes; 4: positions are often computed, and so not among the weights
        if n_bytes and weights > _SLACK * (4 if name == "max_position_embeddings" else 1) * max(n_bytes, 2**20):
            raise ValueError(
                f"model {str(source)!r}: {name} is {value:,} in {where}, but its weights have {n_bytes:,} bytes, "
                "expected sizes that fit together; save or download the checkpoint again."
            )


def check_fits(hf_model: Any, about: Mapping[str, Any], label: str, shapes: Mapping[str, Any] | None = None) -> None:
    """Refuse a checkpoint that lacks weights of the model, or holds weights that the model does not have.

    transformers only warns, draws missing weights at random and ignores needless ones, and the result is another model.
    Tables that older versions saved beside the weights (masks, frequencies) are allowed.

    Args:
        hf_model: The model as transformers loaded it.
        about: The record of missing and unexpected weights that transformers returned with it.
        label: The model, as the error names it.
        shapes: Shapes of the tensors in the files, by name; None: tables are recognised by their names alone.

    Raises:
        ValueError: a parameter is missing, or the checkpoint holds a weight that is no parameter.
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
    """Whether a tensor of this name and shape is a table or a mask that can be computed, and no weight."""
    if _TABLE.search(name):
        return True
    shape = None if shapes is None else shapes.get(name)
    # `attention.bias` may also be a bias, of one dimension; masks have four dimensions or, as one number, none
    return bool(_MASK.search(name)) and (shape is None or len(shape) in (0, 4))


_TABLE = re.compile(r"(^|\.)(rotary_emb|rotary_pos_emb|rope)\.|(^|\.)(inv_freq|cos_cached|sin_cached|position_ids)$")
_MASK = re.compile(r"(attn|attention)\.(bias|masked_bias|causal_mask)$")
