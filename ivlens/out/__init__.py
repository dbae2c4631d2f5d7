"""Vectors for other tools: lm-evaluation-harness, plain transformers, llama.cpp.

Names are imported on first use, so that a list of the formats does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_MODULE_OF = {
    "HarnessOptions": "harness",
    "HarnessTable": "harness",
    "export_vector": "export",
    "lm_eval_model": "harness",
    "lm_eval_table": "harness",
}

if TYPE_CHECKING:
    from ivlens.out.export import export_vector
    from ivlens.out.harness import HarnessOptions, HarnessTable, lm_eval_model, lm_eval_table

__all__ = [
    "HarnessOptions",
    "HarnessTable",
    "export_vector",
    "lm_eval_model",
    "lm_eval_table",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for the first time."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ivlens.out' has no attribute {name!r}")
    value = getattr(import_module(f"ivlens.out.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # the next use finds it without this function
    return value
