"""Forgetting, taken apart: does a model forget what it was asked to do, or what it knew?"""

from ivlens.forgetting.drops import decompose, decomposition
from ivlens.forgetting.probabilities import MEASURES, ProbeOptions, has_knowledge, probe
from ivlens.forgetting.series import probe_series

__all__ = ["MEASURES", "ProbeOptions", "decompose", "decomposition", "has_knowledge", "probe", "probe_series"]
