"""Checks the files and the configuration of a checkpoint folder before a library opens it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ivlens.common.foreign import foreign_json, is_regular
from ivlens.models.opening import SAVE_AGAIN

CONFIG = "config.json"
_MOST_CONFIG = 2**22  # bytes of config.json; one with a thousand labels has a hundredth of this
MOST_WORDS = 2**26  # bytes of a tokenizer's file; a vocabulary of 250,000 words has 35 MB
MOST_TEMPLATE = 2**18  # bytes of a chat template; long ones have a tenth of this
# beginnings of names of files of a tokenizer
_WORDS = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template", "spiece", "sentencepiece")
_TEMPLATES = "additional_chat_templates"
# Entries of a configuration that make transformers fetch or run something. ivlens itself says how attention is
# computed, so that these entries are left out.
_NAMES_CODE = {
    "_attn_implementation", "_attn_implementation_internal", "attn_implementation", "_experts_implementation",
    "_experts_implementation_internal", "experts_implementation", "auto_map", "custom_pipelines", "custom_generate",
    "fusion_config", "kernel_config", "use_kernels", "_commit_hash", "name_or_path", "_name_or_path", "extra_files",
}  # fmt: skip
# Quantisations that need fetched code: those of _UNDONE can be undone when weights are read, the others are refused.
_UNDONE, _FETCHED = {"fp8", "mxfp4"}, {"metal", "fp_quant", "sinq", "four_over_six"}
# Names of counts: transformers makes lists of these lengths before a model exists. Names that match _SHAPES are
# excepted: they are shapes, which are compared with the weights, or describe the training.
_COUNTS = re.compile(r"^(num|n)_|labels?$|layer|depth|expert|block|repeat")
_SHAPES = re.compile(
    r"position|ctx|embd|inner|size|dim|vocab|token|param|theta|hidden$|_(steps|samples|sequences|epochs)$"
)
_MOST_OF_THEM = 2**16  # largest value of such a count
_SPECIAL_FILE = "a pipe, a socket or a device"


def check_entries(folder: Path) -> None:
    """Refuse a checkpoint folder with entries that are no files (reading a pipe never ends) or far too large.

    Raises:
        FileNotFoundError: an entry is neither a file nor a folder.
        ValueError: a configuration, a tokenizer or a chat template is too large.
    """
    for path in _entries(folder):
        if not is_regular(path):
            raise FileNotFoundError(
                f"model {str(folder)!r}: {path.name!r:.80} is {_SPECIAL_FILE}, expected files; remove it."
            )
        limit = _limit(path)
        if limit is not None and path.is_file() and path.stat().st_size > limit:
            raise ValueError(
                f"model {str(folder)!r}: {path.name!r:.80} has {path.stat().st_size:,} bytes, expected at most "
                f"{limit:,}; save or download the checkpoint again."
            )


def _entries(folder: Path) -> Iterator[Path]:
    """Everything in the folder, and in its subfolder of chat templates, which transformers reads too."""
    yield from folder.iterdir()
    if (folder / _TEMPLATES).is_dir():
        yield from (folder / _TEMPLATES).iterdir()


def _limit(path: Path) -> int | None:
    """The most bytes that a file of this name may have; None where there is no limit, as for weights."""
    if path.suffix == ".jinja" or path.name.startswith("chat_template"):
        return MOST_TEMPLATE
    if path.name == CONFIG:
        return _MOST_CONFIG
    return MOST_WORDS if path.name.startswith(_WORDS) or path.suffix == ".model" else None


def safe_config(folder: Path) -> dict[str, Any]:
    """The content of `config.json` without the entries that fetch or run code, its counts checked.

    Raises:
        FileNotFoundError: the file cannot be read.
        ValueError: no JSON object, counts that are far too large, or a quantisation that needs fetched code.
    """
    label = f"model {str(folder)!r}"
    try:
        found = foreign_json(folder / CONFIG, _MOST_CONFIG)
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
        kept = _without_code(found)
        _check_counts(kept)
    except OSError as error:
        raise FileNotFoundError(f"{label}: {error.strerror or error}, {SAVE_AGAIN}.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{label}: {CONFIG} cannot be used ({error!s:.160}), {SAVE_AGAIN}.") from None
    return kept


def _without_code(value: Any) -> Any:
    """A part of a configuration without the entries that fetch or run code, at any depth."""
    if isinstance(value, list):
        return [_without_code(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {name: _without_code(item) for name, item in value.items() if name not in _NAMES_CODE}
    stored = kept.get("quantization_config")
    method = stored.get("quant_method") if isinstance(stored, dict) else None
    if method in _FETCHED:
        raise ValueError(f"its weights are stored as {method!r}, which needs code that is fetched")
    if isinstance(stored, dict) and method in _UNDONE:
        kept["quantization_config"] = {**stored, "dequantize": True}
    return kept


def _check_counts(value: Any, name: str = "") -> None:
    """Refuse counts above the limit, at any depth; `name` is the entry that `value` belongs to."""
    if isinstance(value, dict):
        for inner, item in value.items():
            _check_counts(item, inner)
    elif isinstance(value, list):
        for item in value:
            _check_counts(item, name)
    elif isinstance(value, int | float) and _COUNTS.search(name) and not _SHAPES.search(name):
        if not -_MOST_OF_THEM <= value <= _MOST_OF_THEM:
            raise ValueError(f"{name} is {value!r:.40}, expected at most {_MOST_OF_THEM:,}")
