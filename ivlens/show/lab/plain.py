"""What a session shows, in values that JSON can hold."""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ivlens.show.figures.heads import unit_of
from ivlens.show.lab.engine import Engine, begins_right
from ivlens.show.lab.state import Head, LabState
from ivlens.show.lab.streams import Completion
from ivlens.vectors.vector import InstructionVector


def ability_facts(engine: Engine, state: LabState) -> dict[str, str]:
    """Whether the model can do the state's task as it is asked, in words, and what to do where it cannot."""
    found, about = engine.ability(state), engine.facts()
    warning = found.warning(state.task, engine.identity.name) if found else ""
    return {"name": about["name"], "text": str(found) if found else "", "warning": warning}


def effects_map(engine: Engine, state: LabState) -> Mapping[str, Any]:
    """The effects of all heads, with their intervals and the kind of these; null where a head was not measured."""
    effects = engine.effects(state)
    shown = effects.interval(simultaneous=True)
    named = {"aie": effects.aie, "low": shown.low, "high": shown.high}
    values = {
        name: [[round(x, 5) if math.isfinite(x) else None for x in row] for row in part.tolist()]
        for name, part in named.items()
    }
    taken = {"taken": str(effects.taken or ""), "warning": effects.taken_warning}
    return {
        **engine.facts(),
        **values,
        **taken,
        "interval": shown.kind,
        "unit": unit_of(effects),
        "n_prompts": len(effects.cie),
    }


def vector_facts(vector: InstructionVector | None, engine: Engine) -> dict[str, Any] | None:
    """What the page says about a vector."""
    if vector is None:
        return None
    heads: Sequence[Head] = vector.heads
    return {"task": vector.task, "norm": vector.norm, "k": len(heads), "tokens": vector.decode(engine.model, k=10)}


def column(name: str, one: Completion, answers: Sequence[str]) -> dict[str, Any]:
    """One completion, and whether it is right."""
    return {"name": name, "text": one.text, "done": one.done, "top": one.top, "right": begins_right(one.text, answers)}


@contextmanager
def as_file(content: bytes) -> Iterator[Path]:
    """A file with this content, as long as it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vector.safetensors"
        path.write_bytes(content)
        yield path


def sentence(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
