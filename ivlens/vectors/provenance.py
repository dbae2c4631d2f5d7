"""What the settings of a vector say about the effects and the prompts that made it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ivlens.effects.results import HeadEffects
from ivlens.forward.ability import Ability
from ivlens.prompts.recipe import PromptRecipe

# of what is read from the settings of a vector: its kinds, and how they are called
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "effects": ((Mapping,), "a mapping"),
    "used_with": ((Mapping,), "a mapping"),
    "scaled": ((str,), "a text"),
    "factor": ((int, float), "a number"),
    "k": ((int,), "a whole number"),
    "operands": ((list, tuple), "a list"),
}


def effects_of(settings: Any) -> Iterator[Mapping[str, Any]]:
    """Settings of all effects that went into a vector or chose its heads, through any arithmetic."""
    if isinstance(settings, Mapping):
        if isinstance(settings.get("effects"), Mapping):
            yield settings["effects"]
        for value in settings.values():
            yield from effects_of(value)
    elif isinstance(settings, Sequence) and not isinstance(settings, str):
        for value in settings:
            yield from effects_of(value)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings, from a file, in which something is of another kind than what is read from it later.

    Raises:
        TypeError: it is.
    """
    for name, (kinds, what) in _KINDS.items():
        value = settings.get(name)
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
    """Seeds of the splits that all these effects were measured on."""
    for found in effects_of(settings):
        recipe = found.get("recipe")
        seed = recipe.get("seed") if isinstance(recipe, Mapping) else found.get("seed")
        if seed is not None:
            yield int(seed)


def recipe_of(settings: Mapping[str, Any]) -> PromptRecipe | None:
    """The recipe of the prompts that a vector stands for; None where none is recorded, or several."""
    own = settings.get("effects")
    made_by = [own] if isinstance(own, Mapping) else list(effects_of(settings))
    found = [PromptRecipe.recorded(each) for each in made_by]
    return found[0] if found and all(other == found[0] for other in found) else None


def made_from(effects: HeadEffects, chosen_by: Sequence[HeadEffects]) -> dict[str, Any]:
    """What is recorded of the effects that a vector was made from, and of those that chose its heads, if others did."""
    return {
        "universal": [{"task": at.task, "effects": dict(at.settings)} for at in chosen_by] or False,
        "bias": False,
        "write_scaled": bool((effects.write_scale != 1).any()),
        "n_effect_prompts": len(effects.corruptions),
        "corruptions": dict(sorted(Counter(effects.corruptions).items())),
        "effects": dict(effects.settings),
    }


def shares_of(writes: Float[Tensor, "k d_model"], theta: Float[Tensor, " d_model"]) -> list[float] | None:
    """How much of `θ` each head is: its write along `θ`, `w·θ / |θ|²`; they sum to 1. None of a vector that is zero."""
    square = float(theta.double() @ theta.double())
    return (writes.double() @ theta.double() / square).tolist() if square else None


def bracketed(task: str) -> str:
    """A formula that can stand inside another one."""
    return f"({task})" if " " in task else task
