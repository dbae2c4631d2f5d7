"""Write the Python script that gives the same completions as the lab shows."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from ivlens.effects.measure import EffectOptions
from ivlens.prompts.recipe import TASK, PromptRecipe
from ivlens.prompts.templates import PromptTemplate
from ivlens.show.lab.state import LabState
from ivlens.tasks.bank import list_tasks, load_task
from ivlens.tasks.task import Task, TaskExample

# each field of `EffectOptions` that the settings of effects record, and its name in those settings
_OPTIONS = {
    "mode": "mode",
    "method": "method_asked",
    "split": "split",
    "n_mean_prompts": "n_mean_prompts_asked",
    "correct_only": "correct_only",
}
_PRINTED = "print(complete(model, [prompt], max_new_tokens=n_new))"


@dataclass(frozen=True)
class Listing:
    """What a script needs to know besides the lab's state.

    Attributes:
        models: the name of the model, as `load_model` takes it, or of the two models that are compared.
        task: the task that is shown.
        prompt: the text that is completed.
        effects: the settings of each model's effects; empty if the vector was loaded from a file.
        file: the file that the vector was loaded from; None: it was made from effects.
    """

    models: Sequence[str]
    task: Task
    prompt: str
    effects: Sequence[Mapping[str, Any]]
    file: str | None = None


def python_code(state: LabState, listing: Listing) -> str:
    """A script that prints the completions of `state`: without a vector, with it, and with the random one if shown.

    In `state` heads, layer, strength and site must be filled in (`Session.resolved`).
    """
    lines = ["import ivlens", "from ivlens.forward.completions import complete"]
    lines += ["", f"prompt = {listing.prompt!r}", f"n_new = {state.max_new_tokens}"]
    if listing.file is None:
        lines.append(f"task = {_task(listing.task)}")
    vector = listing.file is not None or bool(state.heads)
    for index, name in enumerate(listing.models):
        lines += ["", f"model = ivlens.load_model({name!r})"]
        if listing.file is not None and index == 0:
            lines.append(f"iv = ivlens.InstructionVector.load({listing.file!r})")
        # the first model measures its vector; the second one too, unless it gets the first one's
        if vector and listing.file is None and (index == 0 or state.donor == "own"):
            lines += _measured(state, listing.effects[index])
        elif vector:
            lines.append("iv = iv.for_model(model)  # these weights may differ from those that the vector was made on")
        lines.append(_PRINTED)
        if not vector:
            lines += ["# no head is chosen, so there is no vector, and nothing changes", _PRINTED]
        for shown in ["iv"] * vector + [f"iv.random_like({state.seed})"] * (vector and state.random):
            lines += _steered(shown, state)
    return "\n".join(lines) + "\n"


def _measured(state: LabState, settings: Mapping[str, Any]) -> list[str]:
    """The lines that measure the effects and make the vector; options with default values are left out."""
    recipe = PromptRecipe.recorded(settings) or PromptRecipe()
    how = f"recipe=recipe, corruption={settings['corruption']!r}, n_prompts={settings['n_prompts']}"
    if settings["score"] != "prob":
        how += f", score={settings['score']!r}"
    if changed := _changed(settings):
        how += f", options=ivlens.EffectOptions({', '.join(f'{name}={value!r}' for name, value in changed.items())})"
    return [
        f"recipe = {_recipe(recipe)}",
        f"effects = ivlens.head_effects(model, task, {how})",
        f"iv = ivlens.InstructionVector.from_effects(effects, heads={list(state.heads or ())})",
    ]


def _recipe(recipe: PromptRecipe) -> str:
    """The expression that makes this recipe."""
    template: Any = recipe.template
    named = f"ivlens.{template!r}" if isinstance(template, PromptTemplate) else repr(template)
    told = "" if recipe.instruction is TASK else f"instruction={recipe.instruction!r}, "
    return f"ivlens.PromptRecipe(template={named}, {told}n_shots={recipe.n_shots}, seed={recipe.seed})"


def _changed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded options of a measurement that differ from the defaults of `EffectOptions`."""
    default = EffectOptions()
    found = {name: settings.get(key, getattr(default, name)) for name, key in _OPTIONS.items()}
    return {name: value for name, value in found.items() if value != getattr(default, name)}


def _steered(vector: str, state: LabState) -> list[str]:
    """The lines that print the completions with a vector, given as an expression, at the state's setting."""
    where = f"layer={state.layer}, alpha={state.alpha!r}, site={state.site!r}, positions={state.positions!r}"
    return [
        f"with ivlens.steer(model, {vector}, {where}):",
        f"    {_PRINTED}",
    ]


def _task(task: Task) -> str:
    """The expression that makes the task: `load_task(...)` if that gives exactly this one, otherwise `Task(...)`."""
    return _opened(task) or _spelled_out(task)


def _opened(task: Task) -> str:
    """The call of `load_task` that gives exactly this task; empty if there is none."""
    if task.name in list_tasks() and load_task(task.name).full_hash() == task.full_hash():
        return f"ivlens.load_task({task.name!r})"
    if not task.source or not os.path.exists(task.source):
        return ""
    try:
        is_same = _hash_of_file(task.source, os.stat(task.source).st_mtime_ns) == task.full_hash()
    except (ValueError, OSError):  # the file was opened with options, or has changed since
        return ""
    return f"ivlens.load_task({os.path.abspath(task.source)!r})" if is_same else ""


@lru_cache(maxsize=64)
def _hash_of_file(source: str, _: int) -> str:
    """The hash of the task in a file; the second argument, its time of change, makes the cache notice changes."""
    return load_task(Path(source)).full_hash()


def _spelled_out(task: Task) -> str:
    """The expression `ivlens.Task(...)` with all fields that are not at their defaults."""
    # `skipped` tells about reading the file, not about the task
    given = [(each.name, getattr(task, each.name), each.default) for each in fields(task) if each.name != "skipped"]
    arguments = [f"{name}={_literal(value)}" for name, value, default in given if value != default]
    return f"ivlens.Task({', '.join(arguments)})"


def _literal(value: Any) -> str:
    """The expression that makes a field's value; `repr` of an example would lack the prefix `ivlens.`."""
    if isinstance(value, tuple):
        return f"({''.join(f'{_literal(each)}, ' for each in value)})"
    if isinstance(value, TaskExample):
        part = f", {value.part!r}" if value.part else ""
        return f"ivlens.TaskExample({value.input!r}, {value.answers!r}{part})"
    return repr(value)
