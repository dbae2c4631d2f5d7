"""`measure_again`: measures the strongest heads again, on prompts that had no part in choosing them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, SupportsIndex

import torch

from ivlens.common.arguments import checked
from ivlens.common.progress import Progress, bar, showing_progress
from ivlens.effects.bands import ChosenHeads
from ivlens.effects.engines import run_engine
from ivlens.effects.plan import Plan, usable_rows
from ivlens.effects.request import PatchOptions, make_request
from ivlens.effects.results import HeadEffects
from ivlens.forward.hooks import check_unsteered
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.fingerprint import model_identity
from ivlens.models.mixers import head_label
from ivlens.prompts.batch import PromptBatch
from ivlens.tasks.task import SplitName, Task


@checked
def measure_again(
    effects: HeadEffects,
    task: Task,
    *,
    model: TransformerBridge | None = None,
    heads: int | Sequence[tuple[SupportsIndex, SupportsIndex]] = 10,
    split: SplitName = "select",
    others: Sequence[Task] | Mapping[str, Task] | None = None,
    progress: bool | Progress = False,
) -> HeadEffects:
    """The given effects, with their strongest heads measured again on other prompts (`HeadEffects.again`).

        >>> effects = ivlens.measure_again(effects, task)
        >>> effects.again.to_frame()

    The largest of many noisy numbers is, on average, too large on the prompts on which it was chosen. Here only the
    chosen heads are patched, with the same means, into prompts of another split that are made in the same way, as many
    as before or as many as the split has.

    Args:
        effects: From `head_effects`.
        task: The task that the effects were measured on.
        model: The model; None: the one that the effects were measured on, while it is in memory.
        heads: The number of strongest heads, at most as many as were measured; or the heads, as `(layer, head)`.
        split: The split that the prompts come from: another one than the split that chose the heads.
        others: Tasks that counterfactual prompts come from, as they were given to `head_effects`.
        progress: True shows a bar. A function is called with (done, total).

    Raises:
        TypeError: a model that `load_model` did not return.
        ValueError: another model or task than that of the effects, other tasks for counterfactuals, the split that
            chose the heads, a split without prompts of the same kind, or heads that were not measured.
        RuntimeError: inside a `steer` context.

    Source: docs/method.md, 13 Intervals.
    """
    bridge = _checked(effects, task, model, split)
    chosen = _chosen(effects, heads)
    settings = effects.settings
    plan = Plan(task, effects.recipe, str(settings["corruption"]), others)
    _check_others(settings, plan.settings())
    batch = _prompts(bridge, effects, plan, split)
    request = make_request(
        bridge, batch.tokens, batch.attention_mask, batch.answer_tokens, effects.mean_z.to(bridge.cfg.device),
        foil_tokens=batch.foil_tokens,
        # engines measure all combinations of layers and heads; that costs little more than the chosen pairs alone
        options=PatchOptions(
            str(settings["mode"]), {layer for layer, _ in chosen}, {head for _, head in chosen}, str(settings["score"])
        ),
    )  # fmt: skip
    with showing_progress(progress is True), bar(f"{task.name}: chosen heads") as report:
        told = report if isinstance(progress, bool) else progress
        found = run_engine(bridge, replace(request, progress=told), effects.method)
    cie = torch.stack([found.cie[:, layer, head] for layer, head in chosen], 1).cpu()
    inputs = tuple(example.input for example in batch.examples)
    return replace(effects, again=ChosenHeads(chosen, cie, inputs, split))


def _checked(effects: HeadEffects, task: Task, model: TransformerBridge | None, split: str) -> TransformerBridge:
    """The model to measure on; a model, task or split that does not go with the effects is refused."""
    bridge = model or effects.live_model
    if bridge is None:
        raise ValueError(
            f"the model that the effects of {effects.task!r} were measured on is not in memory; pass model=, or load "
            "them with HeadEffects.load(path, model)."
        )
    check_unsteered(check_model(bridge))
    identity = model_identity(bridge)
    if other := identity.differs(effects.model):
        raise ValueError(
            f"model {identity} has {other}, expected {effects.model} as it was when the effects were measured; measure "
            "them again with head_effects."
        )
    if task.content_hash() != effects.settings.get("task_hash"):
        raise ValueError(
            f"task is {task.name!r}, expected the task {effects.task!r} as it was when its effects were "
            "measured, with the same examples; measure them again with head_effects."
        )
    if split == effects.settings["split"]:
        raise ValueError(
            f"split is {split!r}, which chose the heads, expected another one: chosen heads look too good there."
        )
    return bridge


def _check_others(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse other tasks for counterfactuals than before: in other prompts a patch has another effect."""
    # files of older versions do not record the hash, and pass
    if before.get("others_hash", now["others_hash"]) != now["others_hash"]:
        was, given = (", ".join(names or ()) or "the built-in tasks" for names in (before["others"], now["others"]))
        raise ValueError(
            f"others are {given:.60}, expected {was:.60} as they were when the effects were measured; pass others=, or "
            "measure them again with head_effects."
        )


def _chosen(
    effects: HeadEffects, heads: int | Sequence[tuple[SupportsIndex, SupportsIndex]]
) -> tuple[tuple[int, int], ...]:
    """The heads to measure again; those that were not measured the first time are refused."""
    measured = ~effects.aie.isnan()
    if isinstance(heads, int):
        return tuple(effects.top_heads(min(heads, int(measured.sum()))))
    chosen = tuple((int(layer), int(head)) for layer, head in heads)
    n_layers, n_heads = measured.shape
    for layer, head in chosen:
        if not (0 <= layer < n_layers and 0 <= head < n_heads and measured[layer, head]):
            name = head_label(layer, head, effects.model.n_heads)
            raise ValueError(f"heads has {name}, which was not measured; expected heads that were.")
    if not chosen:
        raise ValueError("heads is empty, expected a number of heads, or some (layer, head).")
    return chosen


def _prompts(model: TransformerBridge, effects: HeadEffects, plan: Plan, split: SplitName) -> PromptBatch:
    """Prompts of the split, corrupted like those of the effects, and as many if the split has enough.

    Raises:
        ValueError: the split has no such prompt.
    """
    task, recipe, kind = plan.task, plan.recipe, effects.corruptions[0]
    examples = list(task.split(split, recipe.seed))
    Random(f"{recipe.seed}\0{task.name}\0again").shuffle(examples)
    batch = plan.pairs(model, examples, str(effects.settings["score"])).corrupted
    rows = usable_rows(batch, kind, str(effects.settings["score"]))[: len(effects.cie)]
    if not rows:
        raise ValueError(
            f"task {task.name!r} has no {kind!r} prompt in {split!r}, expected one or more; choose another split."
        )
    return batch.rows(rows)
