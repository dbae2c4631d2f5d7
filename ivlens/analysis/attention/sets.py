"""Which heads are ablated: the vector's, induction heads, each without the other, random heads of the same layers."""

from collections.abc import Collection
from random import Random

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


def matched_heads(chosen: Heads, taken: Collection[tuple[int, int]], shape: tuple[int, int], draw: Random) -> Heads:
    """As many random heads as `chosen`, from the same layers, none of them in `taken`.

    Where a layer has too few, heads of the nearest layers with free ones are drawn; fewer heads where none is left.

    Args:
        taken: Heads that are not drawn; those of `chosen` are not drawn in any case.
        shape: Numbers of layers and of heads in each.
    """
    n_layers, n_heads = shape
    barred = {*taken, *chosen}
    free = {at: [(at, head) for head in range(n_heads) if (at, head) not in barred] for at in range(n_layers)}
    found: list[tuple[int, int]] = []
    # layers with the fewest free heads last would find their neighbours used up, so all own layers come first
    waiting = []
    for layer, _ in sorted(chosen):
        if free[layer]:
            found.append(free[layer].pop(draw.randrange(len(free[layer]))))
        else:
            waiting.append(layer)
    for layer in waiting:
        near = min((at for at in free if free[at]), key=lambda at: (abs(at - layer), at), default=None)
        if near is not None:
            found.append(free[near].pop(draw.randrange(len(free[near]))))
    return tuple(sorted(found))
