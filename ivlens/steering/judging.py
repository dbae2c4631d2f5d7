"""The conditions of a judgement: each vector at its own best setting, heads replaced, the constant answer."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.forward.writes import added_to_stream
from ivlens.models.boot import TransformerBridge
from ivlens.steering.controls import best_constant, constant_accuracy
from ivlens.steering.edits import HeadOutputs, Where, addition, replacement
from ivlens.steering.prompt_sets import PromptSets
from ivlens.steering.search import Grid, searched, thetas_at
from ivlens.steering.summary import Edit, Judged, Setting, accuracy_only
from ivlens.steering.trials import Trials
from ivlens.vectors.vector import InstructionVector


@dataclass(frozen=True, eq=False)
class Vectors:
    """Vectors that are searched and judged under one condition.

    Attributes:
        names: The name of each.
        thetas: A row for each: one vector, or one for each layer, of which the setting's layer chooses.
    """

    names: tuple[str, ...]
    thetas: Float[Tensor, "n *n_layers d_model"]

    @classmethod
    def of(cls, vectors: Sequence[InstructionVector], like: Float[Tensor, " d_model"]) -> "Vectors":
        """These vectors, which may be none, of the same size as another one."""
        thetas = [vector.theta for vector in vectors]
        return cls(
            tuple(vector.task for vector in vectors), torch.stack(thetas) if thetas else like.new_zeros(0, len(like))
        )


def judged_vectors(
    vectors: Mapping[str, Sequence[InstructionVector]], prompts: PromptSets, judge: Trials, grid: Grid
) -> list[Judged]:
    """The scores of every vector at its own best setting on *select*, one result for each condition.

    Args:
        vectors: For each condition its vectors; all are searched and judged together.
        judge: The judged prompts.
    """
    like = next(vector.theta for several in vectors.values() for vector in several)
    return judged_groups({name: Vectors.of(several, like) for name, several in vectors.items()}, prompts, judge, grid)


def judged_groups(groups: Mapping[str, Vectors], prompts: PromptSets, judge: Trials, grid: Grid) -> list[Judged]:
    """As `judged_vectors`, for vectors that may differ from layer to layer; all groups have the same form."""
    # in one call, since all vectors share their passes
    thetas = torch.cat([group.thetas for group in groups.values()])
    settings = grid.settings(prompts.model)
    if len(settings) == 1:  # nothing to search: *select* prompts are not even built
        best, on_select = settings * len(thetas), ()
    else:
        found = searched(prompts.trials("select"), thetas, settings, grid)
        best, on_select = [setting for setting, _ in found], tuple(goodness for _, goodness in found)
    chosen = thetas_at(thetas, best)
    scores = judge.at(best, chosen)
    edits = [adding(prompts.model, theta, at) for theta, at in zip(chosen, best, strict=True)]
    judged, start = [], 0
    for condition, group in groups.items():
        rows = range(start, start + len(group.names))
        part = slice(start, rows.stop)
        judged.append(
            Judged(
                condition,
                scores.chosen(rows),
                group.names,
                tuple(best[part]),
                on_select=on_select[part],
                edits=tuple(edits[part]),
            )
        )
        start = rows.stop
    return judged


def adding(model: TransformerBridge, theta: Float[Tensor, " d_model"], at: Setting) -> Edit:
    """The edit that adds a vector at its setting."""

    def edit(where: Where) -> AbstractContextManager[None]:
        return added_to_stream(model, at.layer, at.site, addition(at.alpha * theta, where))

    return edit


def judged_heads(iv: InstructionVector, judge: Trials) -> list[Judged]:
    """The condition `iv_heads`; none for a vector without heads."""
    if not iv.heads:
        return []
    # strength 1 gives exactly the means: the patch by which effects were measured, with all heads at once
    means = HeadOutputs.of(iv)
    scores = judge.edited(lambda where: means.patching(judge.model, replacement(means, 1.0, where)))
    return [Judged("iv_heads", scores)]


def judged_constant(prompts: PromptSets, judge: Trials) -> Judged:
    """The condition `constant`: the answer that is right most often on *select*, given to every judged prompt."""
    answer = best_constant(prompts.examples("select"))
    return Judged(
        "constant", accuracy_only(constant_accuracy(answer, judge.batch.examples)), (answer,), has_probs=False
    )
