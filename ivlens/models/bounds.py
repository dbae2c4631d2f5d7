"""Refuses adapters whose description would cost peft too much memory or time.

The checks cover sizes, copied modules, repeated layers, and patterns that take too long to match.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ivlens.common.arguments import briefly
from ivlens.common.programs import finishes
from ivlens.models.adapters import Adapter, unusable

_MOST = 2**16  # largest number that a description may have, unless the model has a larger size
_MOST_NAMES = 10_000  # names in one list; a model has some hundreds of modules
_MOST_TIMES = 8  # how often all layers of a model may be repeated (layer_replication)
# numbers under names with these parts are no sizes and may be large; the last four are steps of AdaLoRA's training
_NO_SIZES = ("seed", "key", "alpha", "id", "token", "version", "total_step", "tinit", "tfinal", "deltaT")
_PATTERNS = ("target_modules", "exclude_modules", "feedforward_modules", "layers_pattern", "modules_to_save")
_SPECIAL = set("*+?{}()[]|^$\\")
_SLOW = 500  # patterns; Python keeps about as many compiled, and compiles any further one at each use
# run in a process of its own, which can be ended: the three ways in which peft matches a pattern with a name
_TRY = """
import re
for pattern in given["patterns"]:
    for name in given["names"]:
        try:
            re.fullmatch(pattern, name)
            re.match(rf"(.*\\.)?({pattern})$", name)
            re.match(rf"(^|.*\\.){pattern}($|\\..*)", name)
        except re.error:
            pass
"""


def check_bounds(adapter: Adapter, plain: Any) -> None:
    """Refuse an adapter that would need far more memory or time than its weights and the model explain.

    Raises:
        ValueError: numbers, copies or repeated layers that are far too many, code of another library, or a pattern
            that takes too long on the names of the model's modules.
    """
    about, config = adapter.about, adapter.config
    if about.get("megatron_config"):
        raise unusable(config, "names a library that is to be imported (megatron_core)", "adapters without it", "")
    sizes = {size for weight in (*plain.parameters(), *adapter.tensors.values()) for size in weight.shape}
    most = max([_MOST, *sizes])
    for name, value in _numbers(about):
        if abs(value) > most and not any(part in name for part in _NO_SIZES):
            got = f"says {name:.80} is {briefly(value)}"
            raise unusable(config, got, f"at most {most:,}, the model's largest size")
    for name, value in about.items():
        if isinstance(value, list | dict) and len(value) > _MOST_NAMES and "token" not in name:
            raise unusable(config, f"lists {len(value):,} items as {name}", f"at most {_MOST_NAMES:,}")
    _check_replication(adapter, plain)
    _check_copies(adapter, plain)
    _check_patterns(adapter, plain)


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a description, with the name of its entry."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            # the keys of a pattern's mapping are names of modules, which would hide that its values are ranks
            yield from _numbers(item, str(key) if not name.endswith("_pattern") else name)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _check_replication(adapter: Adapter, plain: Any) -> None:
    """Refuse a repetition of layers that names layers which the model does not have, or repeats them too often."""
    pairs = adapter.about.get("layer_replication")
    if not pairs:
        return
    n_layers = getattr(plain.config.get_text_config(), "num_hidden_layers", 0)
    whole = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(end) is int for end in pair) for pair in pairs
    )
    inside = whole and all(0 <= start < end <= n_layers for start, end in pairs)
    if not inside or sum(end - start for start, end in pairs) > _MOST_TIMES * n_layers:
        got, expected = f"has the layer_replication {pairs!r:.60}", f"pairs from 0 to {n_layers}, at most {_MOST_TIMES}"
        raise unusable(adapter.config, got, f"{expected} times as many layers in all")


def _check_copies(adapter: Adapter, plain: Any) -> None:
    """Refuse `modules_to_save` that are far larger than the adapter's own weights: peft copies every such module."""
    saved = adapter.about.get("modules_to_save")
    if not isinstance(saved, list) or not saved:
        return
    ends_of = tuple(str(name) for name in saved)
    copied = [module for name, module in plain.named_modules() if name and name.endswith(ends_of)]
    n_copied = sum(weight.numel() for module in copied for weight in module.parameters())
    n_own = sum(tensor.numel() for tensor in adapter.tensors.values())
    # 2**20 numbers: small modules are cheap to copy, whatever the file holds
    if n_copied > 2 * n_own + 2**20:
        got = f"says that modules of {n_copied:,} numbers are saved with it (modules_to_save)"
        raise unusable(adapter.config, got, f"at most the {n_own:,} that it has")


def _check_patterns(adapter: Adapter, plain: Any) -> None:
    """Refuse patterns that take too long, after trying them in a process of their own."""
    patterns = sorted(set(_patterns(adapter.about)))
    if len(patterns) <= _SLOW and not any(_SPECIAL & set(pattern) for pattern in patterns):
        return
    names = sorted(name for name, _ in plain.named_modules())
    if not finishes(_TRY, {"patterns": patterns, "names": names}):
        got = f"has a pattern that takes too long on the names of modules ({max(patterns, key=len)!r:.60})"
        raise unusable(adapter.config, got, "names of modules, or simple patterns")


def _patterns(about: Mapping[str, Any]) -> Iterator[str]:
    """All texts of a description that peft uses as regular expressions."""
    for name, value in about.items():
        if name in _PATTERNS:
            yield from [value] if isinstance(value, str) else filter(_is_text, value if isinstance(value, list) else [])
        elif name.endswith("_pattern") and isinstance(value, dict):
            yield from value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
