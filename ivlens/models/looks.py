"""A look at a checkpoint folder before a library opens it: its files, and what its configuration says."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ivlens.common.foreign import foreign_json, is_regular
from ivlens.models.opening import SAVE_AGAIN

CONFIG = "config.json"
_MOST_CONFIG = 2**22  # bytes; a thousand labels take a hundredth
MOST_WORDS = 2**26  # bytes of a file of a tokenizer; those of a quarter of a million words have 35 MB
MOST_TEMPLATE = 2**18  # bytes of a chat template; long ones have a tenth
_WORDS = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template", "spiece", "sentencepiece")
_TEMPLATES = "additional_chat_templates"
# What a configuration can name that would be fetched or run; ivlens says itself how attention is computed.
_NAMES_CODE = {
    "_attn_implementation", "_attn_implementation_internal", "attn_implementation", "_experts_implementation",
    "_experts_implementation_internal", "experts_implementation", "auto_map", "custom_pipelines", "custom_generate",
    "fusion_config", "kernel_config", "use_kernels", "_commit_hash", "name_or_path", "_name_or_path", "extra_files",
}  # fmt: skip
# Ways of storing weights whose modules call kernels that are fetched; both can be undone when they are read.
_UNDONE, _FETCHED = {"fp8", "mxfp4"}, {"metal", "fp_quant", "sinq", "four_over_six"}
# Counts of which a configuration makes lists, before there is a model; others become shapes, which are compared, or
# tell of the training.
_COUNTS = re.compile(r"^(num|n)_|labels?$|layer|depth|expert|block|repeat")
_SHAPES = re.compile(
    r"position|ctx|embd|inner|size|dim|vocab|token|param|theta|hidden$|_(steps|samples|sequences|epochs)$"
)
_MOST_OF_THEM = 2**16
_SPECIAL_FILE = "a pipe, a socket or a device"


def check_entries(folder: Path) -> None:
    """Refuse a checkpoint folder in which a file would never end, or is far larger than such files are.

    Raises:
        FileNotFoundError: one of its entries is neither a file nor a folder.
        ValueError: a configuration, a tokenizer or a chat template that is too large.
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
    yield from folder.iterdir()
    if (folder / _TEMPLATES).is_dir():
        yield from (folder / _TEMPLATES).iterdir()


def _limit(path: Path) -> int | None:
    if path.suffix == ".jinja" or path.name.startswith("chat_template"):
        return MOST_TEMPLATE
    if path.name == CONFIG:
        return _MOST_CONFIG
    return MOST_WORDS if path.name.startswith(_WORDS) or path.suffix == ".model" else None


def safe_config(folder: Path) -> dict[str, Any]:
    """What `config.json` says, without what names code, and with counts that can be.

    Raises:
        FileNotFoundError: it cannot be read.
        ValueError: it is no JSON object, counts beyond reason, or weights stored in a way whose code is fetched.
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
    if isinstance(value, dict):
        for inner, item in value.items():
            _check_counts(item, inner)
    elif isinstance(value, list):
        for item in value:
            _check_counts(item, name)
    elif isinstance(value, int | float) and _COUNTS.search(name) and not _SHAPES.search(name):
        if not -_MOST_OF_THEM <= value <= _MOST_OF_THEM:
            raise ValueError(f"{name} is {value!r:.40}, expected at most {_MOST_OF_THEM:,}")
