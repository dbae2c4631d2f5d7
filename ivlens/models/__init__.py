"""Opening models: checked, wrapped as a bridge, with a fingerprint of what they are.

Names are imported on first use, so that which models there are can be asked without waiting for torch.
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
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ivlens.models' has no attribute {name!r}")
    value = getattr(import_module(f"ivlens.models.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
