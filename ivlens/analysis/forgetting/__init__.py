"""Forgetting, taken apart: does a model forget how to follow an instruction, or what it knew?"""

from ivlens.analysis.forgetting.drops import decompose, decomposition
from ivlens.analysis.forgetting.probabilities import MEASURES, ProbeOptions, has_knowledge, probe
from ivlens.analysis.forgetting.series import probe_series

__all__ = ["MEASURES", "ProbeOptions", "decompose", "decomposition", "has_knowledge", "probe", "probe_series"]
