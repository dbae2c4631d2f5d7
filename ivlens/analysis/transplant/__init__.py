"""Parts of one model at work in another: outputs of heads, and blocks above a layer."""

from ivlens.analysis.transplant.heads import TransplantOptions, transplant
from ivlens.analysis.transplant.results import Splices, Transplant
from ivlens.analysis.transplant.several import TransplantPlan, transplants
from ivlens.analysis.transplant.splicing import SpliceOptions, splice

__all__ = [
    "SpliceOptions",
    "Splices",
    "Transplant",
    "TransplantOptions",
    "TransplantPlan",
    "splice",
    "transplant",
    "transplants",
]
