"""Which heads carry an instruction: patch each head's clean mean into corrupted prompts and see what it restores."""

from ivlens.effects.again import measure_again
from ivlens.effects.compare import HeadComparison, compare_heads
from ivlens.effects.engines import METHODS, causal_indirect_effect
from ivlens.effects.measure import EffectOptions, head_effects
from ivlens.effects.over import interval_over
from ivlens.effects.results import HeadEffects

__all__ = [
    "METHODS",
    "EffectOptions",
    "HeadComparison",
    "HeadEffects",
    "causal_indirect_effect",
    "compare_heads",
    "head_effects",
    "interval_over",
    "measure_again",
]
