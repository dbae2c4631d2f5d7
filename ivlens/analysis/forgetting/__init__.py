"""Forgetting, taken apart: does a model forget how to follow an instruction, or what it knew?"""

from ivlens.analysis.forgetting.answers import SAID, answers_said, shares_said
from ivlens.analysis.forgetting.drops import decompose, decomposition
from ivlens.analysis.forgetting.general import GENERAL, general_scores
from ivlens.analysis.forgetting.probabilities import MEASURES, ProbeOptions, has_knowledge, probe
from ivlens.analysis.forgetting.series import probe_series

__all__ = [
    "GENERAL",
    "MEASURES",
    "SAID",
    "ProbeOptions",
    "answers_said",
    "decompose",
    "decomposition",
    "general_scores",
    "has_knowledge",
    "probe",
    "probe_series",
    "shares_said",
]
