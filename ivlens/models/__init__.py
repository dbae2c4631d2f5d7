"""Opening models: checked, wrapped as a bridge, with a fingerprint of what they are."""

from ivlens.models.boot import TransformerBridge
from ivlens.models.fingerprint import ModelIdentity, model_identity
from ivlens.models.known import pocket_path
from ivlens.models.load import load_model

__all__ = [
    "ModelIdentity",
    "TransformerBridge",
    "load_model",
    "model_identity",
    "pocket_path",
]
