"""Results as plotly figures, for the screen and for papers: each function takes a result and returns a `Figure`."""

from ivlens.show.figures.answers import answers_plot
from ivlens.show.figures.attention import attention_bars
from ivlens.show.figures.benchmarks import method_summary, score_matrices
from ivlens.show.figures.by_k import by_k_plot
from ivlens.show.figures.causal import causal_plot, guidance_plot
from ivlens.show.figures.conditions import condition_plot
from ivlens.show.figures.dynamics import drift_heatmap, dynamics_curves, prediction_plot
from ivlens.show.figures.forgetting import forgetting_plot
from ivlens.show.figures.heads import head_heatmap
from ivlens.show.figures.interventions import intervention_curves
from ivlens.show.figures.lens import lens_plot
from ivlens.show.figures.maps import head_maps
from ivlens.show.figures.matrix import matrix_plot
from ivlens.show.figures.necessity import necessity_plot
from ivlens.show.figures.other_vectors import other_vectors_plot
from ivlens.show.figures.paper import for_paper
from ivlens.show.figures.similarity import similarity_matrix, similarity_order
from ivlens.show.figures.sweeps import strength_curves, strength_map
from ivlens.show.figures.theme import DARK, LIGHT, Theme, write_figure
from ivlens.show.figures.tokens import attention_tokens
from ivlens.show.figures.training import forgetting_against_learning, training_curves
from ivlens.show.figures.transplants import splice_plot, transplant_plot

__all__ = [
    "DARK",
    "LIGHT",
    "Theme",
    "answers_plot",
    "attention_bars",
    "attention_tokens",
    "by_k_plot",
    "causal_plot",
    "condition_plot",
    "drift_heatmap",
    "dynamics_curves",
    "for_paper",
    "forgetting_against_learning",
    "forgetting_plot",
    "guidance_plot",
    "head_heatmap",
    "head_maps",
    "intervention_curves",
    "lens_plot",
    "matrix_plot",
    "method_summary",
    "necessity_plot",
    "other_vectors_plot",
    "prediction_plot",
    "score_matrices",
    "similarity_matrix",
    "similarity_order",
    "splice_plot",
    "strength_curves",
    "strength_map",
    "training_curves",
    "transplant_plot",
    "write_figure",
]
