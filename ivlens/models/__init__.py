"""Opening models: checked, wrapped as a bridge, with a fingerprint of what they are."""

from ivlens.models.boot import TransformerBridge
from ivlens.models.load import ModelIdentity, load_model, model_identity, pocket_path

__all__ = [
    "ModelIdentity",
    "TransformerBridge",
    "load_model",
    "model_identity",
    "pocket_path",
]
