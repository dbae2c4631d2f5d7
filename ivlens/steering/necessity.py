"""The rows `necessity`: is the task still done on clean prompts when the vector's heads say something else?"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.common.intervals import p_of_draws
from ivlens.common.progress import ticking
from ivlens.forward.means import mean_head_outputs
from ivlens.models.mixers import mixer_with
from ivlens.steering.controls import tasks_sharing_inputs
from ivlens.steering.edits import HeadOutputs, replacement
from ivlens.steering.more_rows import Asked
from ivlens.steering.summary import Judged, Scores, paired
from ivlens.steering.trials import Trials
from ivlens.tasks.bank import load_bank
from ivlens.tasks.task import Task
from ivlens.vectors.heads import Heads

logger = logging.getLogger(__name__)

Means = Float[Tensor, "n_layers n_heads d_head"]


def necessity(asked: Asked) -> list[Judged]:
    """Accuracy on clean prompts with the outputs of chosen heads replaced by means over other prompts.

    For each kind of means (the variants `corrupted`, `other_tasks`, `bare`) there are three rows: `necessity`, the
    vector's heads; `necessity_random_heads`, random heads of the same layers; `necessity_next_heads`, the heads that
    come next in strength, where effects are given. Outputs are replaced at the last prompt token, or with the grid's
    positions `every` at each token of the answer too.
    """
    if not asked.iv.heads:
        return []
    clean = asked.prompts.trials(asked.split, corrupted=False)
    unchanged = clean.unsteered()
    sets: dict[str, list[Heads]] = {
        "necessity": [asked.iv.heads],
        "necessity_random_heads": [asked.matched_heads(asked.iv.heads, draw) for draw in range(asked.n_draws)],
        "necessity_next_heads": [next_heads(asked)] if next_heads(asked) else [],
    }
    found: list[Judged] = []
    for variant, means in _sources(asked).items():
        own = [_replaced(clean, condition, several, means) for condition, several in sets.items() if several and means]
        found += [replace(_with_losses(one, own[0], unchanged), variant=variant) for one in own]
    return found


def next_heads(asked: Asked) -> Heads:
    """As many heads as the vector has, those that come next in strength; none where no effects are given."""
    if asked.effects is None:
        return ()
    measured = int((~asked.effects.aie.isnan()).sum())
    ranked = asked.effects.top_heads(measured)
    return tuple([head for head in ranked if head not in asked.iv.heads][: asked.iv.k])


def _sources(asked: Asked) -> dict[str, list[Means]]:
    """For each variant the means that replace outputs; an empty list where there are none."""
    applied, model = asked.prompts.applied, asked.prompts.model
    # prompts of another length would differ in more than in what they say of the task
    is_matched = asked.corruption in ("counterfactual", "counterfactual_inputs", "shuffle")
    if not is_matched:
        logger.info("necessity: corruption %s keeps no prompt's length, so 'corrupted' is left out.", asked.corruption)
    return {
        "corrupted": [asked.means_over(asked.corruption)] if is_matched else [],
        "other_tasks": [means.to("cpu") for means in _other_means(asked)],
        "bare": [asked.means_over("drop")] if applied == "drop" and model is not None else [],
    }


def _other_means(asked: Asked) -> Iterator[Means]:
    """Mean head outputs on clean prompts of other tasks."""
    if asked.more.others is not None:
        yield from (other.mean_z for other in asked.more.others if other.task not in (asked.task.name, asked.iv.task))
        return
    recipe = replace(asked.prompts.recipe.for_other_tasks(), seed=asked.prompts.recipe.seed)
    for task in _other_tasks(asked):
        source = replace(asked.fit_prompts(None), task=task, recipe=recipe)
        batch = source.batch("fit", corrupted=False)
        mixer = mixer_with(asked.prompts.model, asked.iv.heads)
        yield mean_head_outputs(asked.prompts.model, batch.tokens, batch.attention_mask, mixer=mixer)


def _other_tasks(asked: Asked) -> list[Task]:
    """Built-in tasks, drawn with the seed; first those that share inputs, which differ in nothing but the task."""
    same = tasks_sharing_inputs(asked.task)
    names = {task.name for task in same} | {asked.task.name, asked.iv.task}
    rest = [task for task in load_bank().values() if task.name not in names and not task.fused and task.in_training]
    generator = torch.Generator().manual_seed(asked.prompts.seed)
    drawn = [pool[index] for pool in (same, rest) for index in torch.randperm(len(pool), generator=generator).tolist()]
    return drawn[: asked.more.n_others]


def _replaced(clean: Trials, condition: str, sets: Sequence[Heads], means: Sequence[Means]) -> Judged:
    """The scores of each set of heads; with several means a single set has each of them, several sets take turns."""
    turns = max(len(sets), len(means)) if len(sets) == 1 else len(sets)
    scores = []
    for turn in ticking(range(turns), condition.replace("_", " "), "sets"):
        outputs = HeadOutputs.chosen(sets[turn % len(sets)], means[turn % len(means)])

        def context(where, outputs=outputs):
            return outputs.patching(clean.model, replacement(outputs, 1.0, where))

        scores.append(clean.edited(context))
    return Judged(condition, Scores.stacked(scores), against="", details={"n_vectors": turns})


def _with_losses(judged: Judged, own: Judged, unchanged: Scores) -> Judged:
    """The row with what it loses on the same prompts, and for random heads how many lose as much as the vector's."""
    after = judged.scores.accuracy
    lost, low, high = paired(unchanged.accuracy, after)
    details: Mapping[str, float | int] = {**judged.details, "lost": lost, "lost_lo": low, "lost_hi": high}
    if judged.condition == "necessity_random_heads":
        as_much = int((after.double().mean(1) <= float(own.scores.accuracy.double().mean()) + 1e-9).sum())
        details = {**details, "n_as_good": as_much, "p": p_of_draws(as_much, len(after))}
    return replace(judged, details=details)
