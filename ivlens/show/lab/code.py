"""The Python that gives what the lab shows."""

from collections.abc import Sequence
from dataclasses import dataclass

from ivlens.show.lab.state import RAW, LabState
from ivlens.tasks.bank import list_tasks
from ivlens.tasks.task import Task


@dataclass(frozen=True)
class Listing:
    """What the code of a state needs besides the state.

    Attributes:
        models: names that `load_model` takes, one, or two that are compared.
        task: the task.
        prompt: the text that is completed.
        n_prompts, effects_seed: how effects were measured.
        file: where the vector was loaded from, if it was.
    """

    models: Sequence[str]
    task: Task
    prompt: str
    n_prompts: int
    effects_seed: int
    file: str | None = None


def python_code(state: LabState, listing: Listing) -> str:
    """A script that prints the completions of `state`: as they are, with the vector, and with the random one.

    `state` has its heads, layer, strength and site.
    """
    lines = ["import ivlens", "from ivlens.forward.completions import complete", ""]
    lines += [f"prompt = {listing.prompt!r}", f"n_new = {state.max_new_tokens}"]
    if listing.file is None:
        lines.append(f"task = ivlens.load_task({_task_name(listing.task)!r})")
    for index, name in enumerate(listing.models):
        lines += ["", f"model = ivlens.load_model({name!r})"]
        if index == 0 or (state.donor == "own" and listing.file is None):
            lines += _vector_lines(state, listing)
        lines.append("print(complete(model, [prompt], max_new_tokens=n_new))")
        foreign = listing.file is not None or (index > 0 and state.donor == "first")
        vectors = ["iv"] if listing.file is not None or state.heads else []
        for vector in vectors + [f"iv.random_like({state.seed})"] * (state.random and bool(vectors)):
            lines += _steered(vector, state, foreign=foreign)
    return "\n".join(lines) + "\n"


def _vector_lines(state: LabState, listing: Listing) -> list[str]:
    if listing.file is not None:
        return [f"iv = ivlens.InstructionVector.load({listing.file!r})"]
    if not state.heads:
        return ["# no head is chosen, so there is no vector"]
    template = "plain" if state.template == RAW else state.template
    how = f"n_prompts={listing.n_prompts}, template={template!r}, seed={listing.effects_seed}"
    return [
        f"effects = ivlens.head_effects(model, task, {how})",
        f"iv = ivlens.InstructionVector.from_effects(effects, heads={list(state.heads)})",
    ]


def _steered(vector: str, state: LabState, *, foreign: bool) -> list[str]:
    where = f"layer={state.layer}, alpha={state.alpha!r}, site={state.site!r}, positions={state.positions!r}"
    allowed = ", allow_other_weights=True" if foreign else ""
    return [
        f"with ivlens.steer(model, {vector}, {where}{allowed}):",
        "    print(complete(model, [prompt], max_new_tokens=n_new))",
    ]


def _task_name(task: Task) -> str:
    return task.name if task.name in list_tasks() else task.source or task.name
