"""The record inside a vector's settings: what it was made from (effects, or a training), written, read and checked."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ivlens.effects.results import HeadEffects
from ivlens.forward.ability import Ability
from ivlens.prompts.recipe import PromptRecipe

# entries of a vector's settings that are read later: their types, and how an error calls these
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "effects": ((Mapping,), "a mapping"),
    "trained": ((Mapping,), "a mapping"),
    "used_with": ((Mapping,), "a mapping"),
    "scaled": ((str,), "a text"),
    "factor": ((int, float), "a number"),
    "k": ((int,), "a whole number"),
    "operands": ((list, tuple), "a list"),
}


def effects_of(settings: Any) -> Iterator[Mapping[str, Any]]:
    """Settings of all effects and trainings behind a vector; of its operands' too, if it was computed from others."""
    if isinstance(settings, Mapping):
        yield from (settings[name] for name in ("effects", "trained") if isinstance(settings.get(name), Mapping))
        for value in settings.values():
            yield from effects_of(value)
    elif isinstance(settings, Sequence) and not isinstance(settings, str):
        for value in settings:
            yield from effects_of(value)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse a file's settings in which an entry has another type than the code that reads it later expects.

    Raises:
        TypeError: an entry has another type.
    """
    for name, (kinds, what) in _KINDS.items():
        value = settings.get(name)
        # a bool is an int to isinstance, and no number here
        if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise TypeError(f"{name} in its settings is {value!r:.60}, expected {what}")
    if settings.get("effects"):
        Ability.recorded(settings["effects"])
    for operand in settings.get("operands") or ():
        if not (isinstance(operand, Mapping) and isinstance(operand.get("task"), str)):
            raise TypeError(f"an operand in its settings is {operand!r:.60}, expected a mapping with its task")
        if not isinstance(operand.get("settings"), Mapping):
            raise TypeError(f"an operand in its settings has {operand.get('settings')!r:.60}, expected its settings")
        check_settings(operand["settings"])


def seeds_of(settings: Any) -> Iterator[int]:
    """The seeds of the splits on which the effects behind a vector were measured."""
    for found in effects_of(settings):
        recipe = found.get("recipe")  # in files of older versions the seed is a setting of its own
        seed = recipe.get("seed") if isinstance(recipe, Mapping) else found.get("seed")
        if seed is not None:
            yield int(seed)


def recipe_of(settings: Mapping[str, Any]) -> PromptRecipe | None:
    """The recipe of the prompts behind a vector; None where none is recorded, or several different ones."""
    # the task's own effects come first: `universal` ones may have other recipes, and only chose heads
    own = settings.get("effects")
    made_by = [own] if isinstance(own, Mapping) else list(effects_of(settings))
    found = [PromptRecipe.recorded(each) for each in made_by]
    return found[0] if found and all(other == found[0] for other in found) else None


def made_from(effects: HeadEffects, chosen_by: Sequence[HeadEffects]) -> dict[str, Any]:
    """The record of the effects that made a vector, and of the effects of other tasks that chose its heads, if any."""
    return {
        "universal": [{"task": at.task, "effects": dict(at.settings)} for at in chosen_by] or False,
        "bias": False,
        "write_scaled": bool((effects.write_scale.nan_to_num(1.0) != 1).any()),
        "n_effect_prompts": len(effects.corruptions),
        "corruptions": dict(sorted(Counter(effects.corruptions).items())),
        "effects": dict(effects.settings),
    }


def shares_of(writes: Float[Tensor, "k d_model"], theta: Float[Tensor, " d_model"]) -> list[float] | None:
    """The share of `θ` that each head writes, `w·θ / |θ|²`; shares sum to 1. None where `θ` is zero."""
    # float64: shares of heads that nearly cancel would otherwise not sum to 1
    square = float(theta.double() @ theta.double())
    return (writes.double() @ theta.double() / square).tolist() if square else None


def bracketed(task: str) -> str:
    """A task's name, in brackets where it is a formula, so that it can stand inside another formula."""
    return f"({task})" if " " in task else task
