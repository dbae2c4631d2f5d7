"""The rows `distributed`: the means of the vector's heads are added to their outputs, each head in its own layer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ivlens.common.progress import ticking
from ivlens.models.boot import TransformerBridge
from ivlens.steering.edits import HeadOutputs, head_addition
from ivlens.steering.more_rows import Asked
from ivlens.steering.summary import Edit, Judged, Scores


def distributed(asked: Asked) -> list[Judged]:
    """Accuracy with `z_{l,h} + α z̄_{l,h}` at the last prompt token for every head of the vector.

    The variant `minus_bare` adds `α (z̄ − z̄_bare)` instead. The strength of each set of heads is searched on *select*;
    the control `distributed_random_heads` has random heads of the same layers.
    """
    if not asked.iv.heads:
        return []
    clean = asked.means_over("none")
    values = {"mean": clean}
    if asked.prompts.applied == "drop":
        values["minus_bare"] = clean - asked.means_over("drop")
    sets = [asked.iv.heads, *(asked.matched_heads(asked.iv.heads, draw) for draw in range(asked.n_draws))]
    found: list[Judged] = []
    for variant, means in values.items():
        outputs = [HeadOutputs.chosen(heads, means) for heads in sets]
        rows = [_searched(asked, one) for one in ticking(outputs, "distributed", "sets")]
        own, others = rows[:1], rows[1:]
        found.append(replace(_judged("distributed", own), variant=variant))
        if others:
            drawn = _judged("distributed_random_heads", others)
            found.append(replace(drawn, variant=variant, against="distributed"))
    return found


@dataclass(frozen=True, eq=False)
class _Found:
    """One set of heads at its best strength."""

    alpha: float
    scores: Scores
    edit: Edit


def _searched(asked: Asked, outputs: HeadOutputs) -> _Found:
    """The strength that does best on *select*, and the scores on the judged prompts with it."""
    edits = {float(alpha): _adding(asked.prompts.model, outputs, float(alpha)) for alpha in asked.more.head_alphas}
    best = next(iter(edits))
    if len(edits) > 1:
        select = asked.prompts.trials("select")
        goodness = {alpha: float(select.edited(edit, part="no logprob").goodness()) for alpha, edit in edits.items()}
        best = max(goodness, key=lambda alpha: goodness[alpha])
    return _Found(best, asked.judge.edited(edits[best]), edits[best])


def _adding(model: TransformerBridge, outputs: HeadOutputs, alpha: float) -> Edit:
    return lambda where: outputs.patching(model, head_addition(outputs, alpha, where))


def _judged(condition: str, rows: Sequence[_Found]) -> Judged:
    alphas = {row.alpha for row in rows}
    details = {"n_vectors": len(rows), "alpha": alphas.pop() if len(alphas) == 1 else None, "site": "heads"}
    scores = Scores.stacked([row.scores for row in rows])
    return Judged(condition, scores, details=details, edits=tuple(row.edit for row in rows))
