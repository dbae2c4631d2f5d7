"""The state of a lab as a text: for the address of its page, and for a file. It holds values and names, never paths.

The text comes from a browser or a stranger's file, so all of it is checked: its size, its form, and every value.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from ivlens.prompts.templates import PromptTemplate
from ivlens.show.lab.chosen import Chosen
from ivlens.show.lab.limits import Limits
from ivlens.show.lab.state import LabState

FORMAT = "ivlens lab 1"
MAX_SHARED = 100_000  # bytes
_MODEL = ("n_layers", "n_heads")  # what must agree, so that layers and heads mean the same


def shared(chosen: Chosen, state: LabState) -> str:
    """The state as a text; `opened` reads it, in this lab or in another one on the same model.

    A vector from a file is not in it: its heads are, and the file's name.
    """
    values = {
        field.name: getattr(state, field.name)
        for field in fields(LabState)
        if field.name == "task" or getattr(state, field.name) != field.default
    }
    if isinstance(state.template, PromptTemplate):
        values["template"] = asdict(state.template)
    about: dict[str, Any] = {"format": FORMAT, "model": chosen.engines[0].facts(), "values": values}
    if values.pop("source", None) == "file":
        values["heads"] = chosen.heads(state)
        about["file"] = chosen.file.replace("\\", "/").rpartition("/")[2]
    options = chosen.engines[0].options
    about["measured"] = {name: getattr(options, name) for name in ("n_prompts", "seed", "score")}
    return json.dumps(about, ensure_ascii=False, separators=(",", ":"))


def opened(text: Any, chosen: Chosen, limits: Limits) -> tuple[LabState, str]:
    """The state that `shared` wrote, and a sentence on what is not as it was; empty where all is.

    Raises:
        ValueError: no such text, another model's, a task that this lab does not have, or a value that is not allowed.
    """
    about = _read(text)
    here = chosen.engines[0].facts()
    there = about["model"]
    if any(there.get(name) != here[name] for name in _MODEL):
        shape = " × ".join(f"{here[name]} {name[2:]}" for name in _MODEL)
        raise ValueError(
            f"the session is of a model with {there.get('n_layers')!r:.20} layers and {there.get('n_heads')!r:.20} "
            f"heads, expected {shape} ({here['name']}); open it in a lab on its own model, {there.get('name')!r:.80}."
        )
    values = dict(about["values"])
    task = values.get("task")
    if not isinstance(task, str) or task not in limits.tasks:
        raise ValueError(
            f"the session is of task {task!r:.80}, expected one of {', '.join(limits.tasks)[:120]}; start the lab with "
            "that task among --task."
        )
    if isinstance(values.get("template"), Mapping):
        values["template"] = template_of(values["template"])
    return limits.changed(LabState(task), {**values, "source": "heads"}), _changes(about, chosen)


def _read(text: Any) -> dict[str, Any]:
    """The parts of a text of `shared`."""
    if not isinstance(text, str) or len(text.encode("utf-8", "replace")) > MAX_SHARED:
        raise ValueError(
            f"the session is no text of at most {MAX_SHARED:,} bytes, expected one that a lab has written."
        )
    try:
        about = json.loads(text)
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError("it is of another format")
        if not all(isinstance(about.get(name), dict) for name in ("model", "values")):
            raise ValueError("it lacks its model or its values")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the session cannot be read ({str(error)[:80]}), expected a text of {FORMAT!r}.") from None
    return about


def _changes(about: Mapping[str, Any], chosen: Chosen) -> str:
    """What makes this lab's numbers differ from those of the lab that wrote the text."""
    engine, found = chosen.engines[0], []
    if isinstance(file := about.get("file"), str) and file:
        found.append(f"its vector came from {file[:80]!r}: load that file again; until then its heads are used")
    if about["model"].get("weights") != engine.facts()["weights"]:
        found.append("it was made on other weights")
    measured = about.get("measured")
    for name in ("n_prompts", "seed", "score"):
        if isinstance(measured, dict) and measured.get(name) != getattr(engine.options, name):
            found.append(f"it was measured with {name} {measured.get(name)!r:.20}")
    return f"The session is open, but {'; '.join(found)}." if found else ""


def template_of(values: Any) -> PromptTemplate:
    """The template with these fields.

    Raises:
        ValueError: they are no fields of a template.
    """
    known = {field.name for field in fields(PromptTemplate)}
    if not isinstance(values, Mapping) or not set(values) <= known:
        raise ValueError(f"template is {values!r:.60}, expected some of {', '.join(sorted(known))}.")
    for name, value in values.items():
        if not isinstance(value, bool if name == "chat" else str):
            raise ValueError(
                f"template has {name} {value!r:.40}, expected {'true or false' if name == 'chat' else 'a text'}."
            )
    return PromptTemplate(**{"name": "own", **values})


def template_text(name: str, text: Any) -> PromptTemplate:
    """The template in a JSON file that a browser sent.

    Raises:
        ValueError: the text holds no template.
    """
    if not isinstance(text, str) or len(text) > MAX_SHARED:
        raise ValueError(f"template {name!r:.80} is larger than {MAX_SHARED:,} letters, expected a few lines of JSON.")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"template {name!r:.80} is no JSON ({str(error)[:60]}), expected one object.") from None
    stem = name.rpartition(".")[0] or name
    return template_of({"name": stem[:60], **values} if isinstance(values, dict) else values)
