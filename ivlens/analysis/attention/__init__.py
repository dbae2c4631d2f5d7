"""Where heads look, what kind of heads they are, and what is lost without them."""

from ivlens.analysis.attention.ablated import HeadAblation
from ivlens.analysis.attention.ablation import AblationOptions, ablate_heads
from ivlens.analysis.attention.looked import SEGMENTS
from ivlens.analysis.attention.looking import AttentionOptions, head_attention
from ivlens.analysis.attention.results import HeadAttention
from ivlens.analysis.attention.scores import HeadScores, ScoreOptions, head_scores

__all__ = [
    "SEGMENTS",
    "AblationOptions",
    "AttentionOptions",
    "HeadAblation",
    "HeadAttention",
    "HeadScores",
    "ScoreOptions",
    "ablate_heads",
    "head_attention",
    "head_scores",
]
