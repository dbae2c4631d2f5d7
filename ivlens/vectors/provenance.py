"""What the settings of a vector say about the effects and the prompts that made it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ivlens.prompts.recipe import PromptRecipe


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


def recipe_of(settings: Mapping[str, Any]) -> PromptRecipe | None:
    """The recipe of the prompts that a vector stands for; None where none is recorded, or several."""
    own = settings.get("effects")
    made_by = [own] if isinstance(own, Mapping) else list(effects_of(settings))
    found = [PromptRecipe.recorded(each) for each in made_by]
    return found[0] if found and all(other == found[0] for other in found) else None


def bracketed(task: str) -> str:
    """A formula that can stand inside another one."""
    return f"({task})" if " " in task else task
