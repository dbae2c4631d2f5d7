"""Fine-tuning with guidance, which keeps what a model computed before, and the methods it is compared with."""

from ivlens.tuning.builder import (
    CONTROLS,
    RECIPES,
    GuidanceRecipe,
    control,
    find_guidance,
    guidance_by_name,
    iv_guidance,
)
from ivlens.tuning.exams import Exam, make_exam, mean_score
from ivlens.tuning.finetuning import Along, TuneResult, finetune
from ivlens.tuning.guidance import Guidance
from ivlens.tuning.learner import Learner
from ivlens.tuning.methods import METHODS, Method, new_method
from ivlens.tuning.terms import IVKL, HeadConsistency, Progressive, Rehearsal, Rehearse, Term, strength
from ivlens.tuning.training.options import TuneOptions
from ivlens.tuning.training.processes import data_parallel

__all__ = [
    "CONTROLS",
    "IVKL",
    "METHODS",
    "RECIPES",
    "Along",
    "Exam",
    "Guidance",
    "GuidanceRecipe",
    "HeadConsistency",
    "Learner",
    "Method",
    "Progressive",
    "Rehearsal",
    "Rehearse",
    "Term",
    "TuneOptions",
    "TuneResult",
    "control",
    "data_parallel",
    "find_guidance",
    "finetune",
    "guidance_by_name",
    "iv_guidance",
    "make_exam",
    "mean_score",
    "new_method",
    "strength",
]
