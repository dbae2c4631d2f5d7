"""Results as plotly figures: each function takes a result and returns a `Figure`, for the screen and for paper."""

from ivlens.figures.causal import causal_plot, guidance_plot
from ivlens.figures.conditions import condition_plot
from ivlens.figures.dynamics import drift_heatmap, dynamics_curves, prediction_plot
from ivlens.figures.forgetting import forgetting_plot
from ivlens.figures.heads import head_heatmap
from ivlens.figures.similarity import similarity_matrix, similarity_order
from ivlens.figures.sweeps import strength_curves
from ivlens.figures.theme import DARK, LIGHT, Theme, write_figure

__all__ = [
    "DARK",
    "LIGHT",
    "Theme",
    "causal_plot",
    "condition_plot",
    "drift_heatmap",
    "dynamics_curves",
    "forgetting_plot",
    "guidance_plot",
    "head_heatmap",
    "prediction_plot",
    "similarity_matrix",
    "similarity_order",
    "strength_curves",
    "write_figure",
]
