"""Opening models: each is checked, wrapped as a bridge, and identified by hashes.

Names are imported on first use, so that a list of the known models does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_MODULE_OF = {
    "ModelIdentity": "fingerprint",
    "TransformerBridge": "boot",
    "get_model": "getting",
    "load_model": "load",
    "model_identity": "fingerprint",
    "pocket_path": "known",
}

if TYPE_CHECKING:
    from ivlens.models.boot import TransformerBridge
    from ivlens.models.fingerprint import ModelIdentity, model_identity
    from ivlens.models.getting import get_model
    from ivlens.models.known import pocket_path
    from ivlens.models.load import load_model

__all__ = [
    "ModelIdentity",
    "TransformerBridge",
    "get_model",
    "load_model",
    "model_identity",
    "pocket_path",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for the first time."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ivlens.models' has no attribute {name!r}")
    value = getattr(import_module(f"ivlens.models.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # the next use finds it without this function
    return value
