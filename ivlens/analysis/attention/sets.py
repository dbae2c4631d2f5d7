"""Which heads are ablated: the vector's, induction heads, each without the other."""

from ivlens.analysis.attention.scores import HeadScores
from ivlens.effects.results import HeadEffects
from ivlens.vectors.heads import Heads
from ivlens.vectors.vector import InstructionVector

SETS = ("vector", "vector_only", "induction", "induction_only")


def head_sets(heads: HeadEffects | InstructionVector, scores: HeadScores, k: int, threshold: float) -> dict[str, Heads]:
    """The heads of each of `SETS`, at most `k` in each.

    Without the heads of the other kind, a set is filled up with its next strongest heads, so that sets of one size are
    compared. A vector knows no next heads, so its `vector_only` is smaller; its `k` is the number of its heads.
    """
    induction = scores.induction_heads(threshold)
    if isinstance(heads, InstructionVector):
        vector = ranked = heads.heads
        k = len(vector)
    else:
        ranked = tuple(heads.top_heads(int((~heads.aie.isnan()).sum())))
        vector = ranked[:k]
    return {
        "vector": vector,
        "vector_only": tuple(head for head in ranked if head not in induction)[:k],
        "induction": induction[:k],
        "induction_only": tuple(head for head in induction if head not in vector)[:k],
    }
