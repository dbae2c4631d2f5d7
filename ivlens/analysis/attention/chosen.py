"""Heads as users name them: labels, pairs, effects or a vector; and the recipe that comes with these."""

import re
from collections.abc import Sequence
from dataclasses import replace

from ivlens.effects.results import HeadEffects
from ivlens.forward.remembered import Auto, recipe_for
from ivlens.models.attention import all_heads, attention_layers, without_heads
from ivlens.models.boot import TransformerBridge
from ivlens.models.mixers import head_label
from ivlens.prompts.recipe import PromptRecipe
from ivlens.steering.prompt_sets import followed_recipe
from ivlens.tasks.task import SplitName, Task
from ivlens.vectors.heads import Heads, checked_model
from ivlens.vectors.vector import InstructionVector, base_task, check_belongs

Named = HeadEffects | InstructionVector | Sequence[tuple[int, int] | str] | str | None
_LABEL = re.compile(r"L([0-9]{1,6})H([0-9]{1,6})", re.IGNORECASE)


def label(head: tuple[int, int]) -> str:
    """The name of a head in tables: `L20H5` is head 5 of layer 20, both counted from 0."""
    return f"L{head[0]}H{head[1]}"


def chosen_heads(model: TransformerBridge, heads: Named, k: int = 10) -> Heads:
    """The heads that are meant, as `(layer, head)`, in the order given.

    Args:
        heads: Pairs, labels (`L20H5`; one text may hold several, separated by commas), the `k` strongest heads of
            effects, the heads of a vector; None: all heads of the model.

    Raises:
        ValueError: a text that is no label, a head that the model does not have, a layer without heads, the same head
            twice, or none.
    """
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    if heads is None:
        return tuple(all_heads(model))
    if isinstance(heads, HeadEffects):
        measured = int((~heads.aie.isnan()).sum())
        pairs: list[tuple[int, int]] = heads.top_heads(min(k, measured))
    elif isinstance(heads, InstructionVector):
        pairs = list(heads.heads)
    else:
        listed = heads.split(",") if isinstance(heads, str) else heads
        pairs = [pair for one in listed for pair in ([one] if not isinstance(one, str) else _labelled(one))]
    off = [pair for pair in pairs if not (0 <= pair[0] < n_layers and 0 <= pair[1] < n_heads)]
    if off or not pairs or len(set(pairs)) < len(pairs):
        # heads of recurrent mixers come from effects and vectors, and have no attention weights
        named = head_label(*off[0], n_heads) if off and isinstance(heads, HeadEffects | InstructionVector) else ""
        what = f"{named or label(off[0])} among them" if off else "one of them twice" if pairs else "none of them"
        raise ValueError(
            f"heads have {what}, expected one or more different heads of {n_layers} layers and {n_heads} heads, "
            "counted from 0."
        )
    for layer, _ in pairs:
        if layer not in attention_layers(model):
            raise ValueError(without_heads(model, layer))
    return tuple(pairs)


def _labelled(text: str) -> list[tuple[int, int]]:
    """The heads that a text names."""
    found = [_LABEL.fullmatch(part.strip()) for part in text.split(",")]
    if any(one is None for one in found):
        raise ValueError(f"heads have {text!r:.40}, expected a layer and a head such as 'L20H5', counted from 0.")
    return [(int(one[1]), int(one[2])) for one in found if one is not None]


def followed(model: TransformerBridge, task: Task, heads: Named, recipe: PromptRecipe | Auto | None) -> PromptRecipe:
    """The given recipe; None: that of the effects or the vector, if the heads come from one, otherwise the default.

    Of another task's effects or vector only the form is taken over: `task` keeps its own instruction.
    """
    if recipe is None and isinstance(heads, HeadEffects | InstructionVector) and heads.recipe is not None:
        of = heads.task if isinstance(heads, HeadEffects) else base_task(heads)
        return heads.recipe if of == task.name else heads.recipe.for_other_tasks()
    return recipe_for(model, task, recipe)


def judged_recipe(
    model: TransformerBridge,
    task: Task,
    heads: HeadEffects | InstructionVector,
    given: PromptRecipe | Auto | None,
    split: SplitName,
) -> PromptRecipe:
    """The recipe of clean prompts on which heads are judged, with the seed of the splits that these were measured on.

    Raises:
        ValueError: heads of another model, or measured on the judged split.
    """
    recipe = given if given is None else recipe_for(model, task, given)
    if isinstance(heads, InstructionVector):
        check_belongs(heads, model)
        return followed_recipe([heads], recipe, task, split).resolved(task)
    checked_model(heads, model)
    if heads.settings.get("split") == split:
        raise ValueError(
            f"the heads' effects were measured on the split {split!r}, on which they would be judged, expected two "
            "different ones; use split='select' or 'test', and effects measured on 'fit'."
        )
    own = heads.recipe if heads.task == task.name else heads.recipe.for_other_tasks()
    # splits of another seed would judge inputs that chose the heads
    return replace(own if recipe is None else recipe, seed=own.seed).resolved(task)
