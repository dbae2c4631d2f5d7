"""Instruction Vectors while a model is tuned: do they change, and does the model still write and read them?"""

from ivlens.analysis.dynamics.causal import TESTS, CausalOptions, CausalTest, causal_tests, leads
from ivlens.analysis.dynamics.comparison import Dynamics, compare
from ivlens.analysis.dynamics.cosines import hierarchical_order, similarity
from ivlens.analysis.dynamics.predict import predictors
from ivlens.analysis.dynamics.recording import Recorder, track
from ivlens.analysis.dynamics.stages import Stage, TrackOptions, measure_stage

__all__ = [
    "TESTS",
    "CausalOptions",
    "CausalTest",
    "Dynamics",
    "Recorder",
    "Stage",
    "TrackOptions",
    "causal_tests",
    "compare",
    "hierarchical_order",
    "leads",
    "measure_stage",
    "predictors",
    "similarity",
    "track",
]
