"""The Python that gives what the lab shows."""

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

# options of a measurement that its settings record, by the names there
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
    """What the code of a state needs besides the state.

    Attributes:
        models: names that `load_model` takes, one, or two that are compared.
        task: the task.
        prompt: the text that is completed.
        effects: settings of each model's effects; none where the vector is from a file.
        file: where the vector was loaded from, if it was.
    """

    models: Sequence[str]
    task: Task
    prompt: str
    effects: Sequence[Mapping[str, Any]]
    file: str | None = None


def python_code(state: LabState, listing: Listing) -> str:
    """A script that prints the completions of `state`: as they are, with the vector, and with the random one.

    `state` has its heads, layer, strength and site.
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
        if vector and listing.file is None and (index == 0 or state.donor == "own"):
            lines += _measured(state, listing.effects[index])
        elif vector:
            lines.append("iv = iv.for_model(model)  # whose weights may be others than those it was made on")
        lines.append(_PRINTED)
        if not vector:
            lines += ["# no head is chosen, so there is no vector, and nothing changes", _PRINTED]
        for shown in ["iv"] * vector + [f"iv.random_like({state.seed})"] * (vector and state.random):
            lines += _steered(shown, state)
    return "\n".join(lines) + "\n"


def _measured(state: LabState, settings: Mapping[str, Any]) -> list[str]:
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
    template: Any = recipe.template
    named = f"ivlens.{template!r}" if isinstance(template, PromptTemplate) else repr(template)
    told = "" if recipe.instruction is TASK else f"instruction={recipe.instruction!r}, "
    return f"ivlens.PromptRecipe(template={named}, {told}n_shots={recipe.n_shots}, seed={recipe.seed})"


def _changed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not the default ones."""
    default = EffectOptions()
    found = {name: settings.get(key, getattr(default, name)) for name, key in _OPTIONS.items()}
    return {name: value for name, value in found.items() if value != getattr(default, name)}


def _steered(vector: str, state: LabState) -> list[str]:
    where = f"layer={state.layer}, alpha={state.alpha!r}, site={state.site!r}, positions={state.positions!r}"
    return [
        f"with ivlens.steer(model, {vector}, {where}):",
        f"    {_PRINTED}",
    ]


def _task(task: Task) -> str:
    """The built-in task or the file that it is, by all that counts; otherwise the task spelled out."""
    return _opened(task) or _spelled_out(task)


def _opened(task: Task) -> str:
    """How `load_task` gives just this task; empty where it does not."""
    if task.name in list_tasks() and load_task(task.name).full_hash() == task.full_hash():
        return f"ivlens.load_task({task.name!r})"
    if not task.source or not os.path.exists(task.source):
        return ""
    try:
        is_same = _hash_of_file(task.source, os.stat(task.source).st_mtime_ns) == task.full_hash()
    except (ValueError, OSError):  # it was opened with options, or has changed since
        return ""
    return f"ivlens.load_task({os.path.abspath(task.source)!r})" if is_same else ""


@lru_cache(maxsize=64)
def _hash_of_file(source: str, _: int) -> str:
    return load_task(Path(source)).full_hash()


def _spelled_out(task: Task) -> str:
    given = [(each.name, getattr(task, each.name), each.default) for each in fields(task) if each.name != "skipped"]
    said = [f"{name}={_plain(value)}" for name, value, default in given if value != default]
    return f"ivlens.Task({', '.join(said)})"


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({''.join(f'{_plain(each)}, ' for each in value)})"
    if isinstance(value, TaskExample):
        part = f", {value.part!r}" if value.part else ""
        return f"ivlens.TaskExample({value.input!r}, {value.answers!r}{part})"
    return repr(value)
