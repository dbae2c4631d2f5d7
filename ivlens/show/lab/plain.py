"""All that a session shows, as values that JSON can hold."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ivlens.common.names import one_line
from ivlens.show.lab.engine import Engine, begins_right
from ivlens.show.lab.state import Head, LabState
from ivlens.show.lab.streams import Completion
from ivlens.steering.summary import Setting
from ivlens.tasks.task import Task
from ivlens.vectors.vector import InstructionVector

N_INPUTS = 60  # inputs of a task that the page offers to choose from


def ability_facts(engine: Engine, state: LabState) -> dict[str, Any]:
    """The model's clean and bare accuracy on the state's task, and a warning if it cannot do the task."""
    found, about = engine.ability(state), engine.facts()
    if found is None:
        return {"name": about["name"], "text": "", "warning": "", "n": 0, "rates": []}
    rates = [[name, getattr(found, name), low, high] for name, (low, high) in found.intervals.items()]
    warning = found.warning(state.task, about["name"])
    return {"name": about["name"], "text": str(found), "warning": warning, "n": found.n, "rates": rates}


def vector_facts(vector: InstructionVector | None, engine: Engine) -> dict[str, Any] | None:
    """What the page shows about a vector: task, norm, number of heads, and the tokens that it decodes to."""
    if vector is None:
        return None
    heads: Sequence[Head] = vector.heads
    return {"task": vector.task, "norm": vector.norm, "k": len(heads), "tokens": vector.decode(engine.model, k=10)}


def column(name: str, one: Completion, answers: Sequence[str]) -> dict[str, Any]:
    """One completion under its name, with the likeliest first tokens, and whether it is right."""
    return {"name": name, "text": one.text, "done": one.done, "top": one.top, "right": begins_right(one.text, answers)}


def inputs_of(task: Task, seed: int) -> list[str]:
    """The inputs that the page offers: those of *test*, or of a task without test inputs the first ones."""
    try:
        shown = task.split("test", seed)
    except ValueError:  # a small task has no test inputs
        shown = task.examples
    return [example.input for example in shown[:N_INPUTS]]


def task_facts(task: Task, seed: int) -> dict[str, Any]:
    """The inputs and instructions that the page offers for a task."""
    instructions = () if task.fused else (*task.instructions, *task.held_out_instructions)
    return {"name": task.name, "inputs": inputs_of(task, seed), "instructions": list(instructions)}


def results(
    engines: Sequence[Engine],
    state: LabState,
    vectors: Sequence[InstructionVector | None] | None,
    prompt: str,
    shots: Sequence[tuple[str, str]] = (),
) -> Iterator[dict[str, Any]]:
    """The completions of all models as far as they have come, yielded after every token.

    Args:
        vectors: what is added to each model; None: nothing is measured yet, and only the plain model completes.
        shots: the demonstrations in the prompt, which the page offers to change.
    """
    answers, setting = engines[0].answers(state), None
    if vectors is not None:
        assert state.layer is not None and state.alpha is not None and state.site is not None
        setting = Setting(state.layer, state.alpha, state.site)
    pairs = list(zip(engines, vectors or [None] * len(engines), strict=True))
    about = [
        {"name": engine.facts()["name"], "prompt": prompt, "vector": vector_facts(vector, engine)}
        for engine, vector in pairs
    ]
    streams = [engine.stream(state, prompt, vector, setting) for engine, vector in pairs]
    latest: list[dict[str, Completion]] = [{} for _ in streams]
    # models may take different numbers of tokens; the one that has ended keeps its last completions
    for shown in zip_longest(*streams):
        latest = [new or old for new, old in zip(shown, latest, strict=True)]
        models = [
            {**facts, "columns": [column(name, one, answers) for name, one in rows.items()]}
            for facts, rows in zip(about, latest, strict=True)
        ]
        yield {"models": models, "answers": list(answers), "measured": vectors is not None, "shots": list(shots)}


@contextmanager
def as_file(content: bytes) -> Iterator[Path]:
    """The path of a temporary file with this content, which is removed after the body."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vector.safetensors"
        path.write_bytes(content)
        yield path


def sentence(error: Exception) -> str:
    """The text of an error in one line."""
    return one_line(error, 1000)
