"""Fine-tuning that keeps the old computation alive, and the methods it is compared with."""

from ivlens.tuning.guidance import IVKL, Guidance, HeadConsistency, Progressive, strength
from ivlens.tuning.learner import Learner, TuneResult, finetune
from ivlens.tuning.loop import TuneOptions
from ivlens.tuning.methods import METHODS, Method, new_method

__all__ = [
    "IVKL",
    "METHODS",
    "Guidance",
    "HeadConsistency",
    "Learner",
    "Method",
    "Progressive",
    "TuneOptions",
    "TuneResult",
    "finetune",
    "new_method",
    "strength",
]
