"""What happens inside one pass: the next token layer by layer, and where along the prompt patching matters."""

from ivlens.analysis.inside.lens import LensOptions, logit_lens
from ivlens.analysis.inside.lens_results import LogitLens
from ivlens.analysis.inside.places import PlaceOptions, patch_places
from ivlens.analysis.inside.places_results import PlaceEffects

__all__ = ["LensOptions", "LogitLens", "PlaceEffects", "PlaceOptions", "logit_lens", "patch_places"]
