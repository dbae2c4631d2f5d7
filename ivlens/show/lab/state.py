"""Everything the lab's controls hold, as one value that is checked whenever it changes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn

from ivlens.forward.hooks import SITES
from ivlens.prompts.recipe import TASK, PromptRecipe
from ivlens.prompts.templates import TEMPLATES, PromptTemplate, find_template
from ivlens.steering.edits import POSITIONS
from ivlens.tasks.task import Task

RAW = "raw"
TOLD = ("task", "none")
DONORS = ("own", "first")
SOURCES = ("heads", "file")
MAX_ALPHA = 64.0
MAX_SHOTS = 64
MAX_TEXT = 100_000
MAX_NEW_TOKENS = 256

Head = tuple[int, int]


@dataclass(frozen=True)
class LabState:
    """What the lab shows; the same state gives the same texts.

    Attributes:
        task: name of the task whose heads and vector are shown.
        text: the input that is completed.
        instruction: an instruction in the prompt that is shown; empty: none, where a vector has something to do.
        template: how prompts are made, those that are measured and the one that is shown, which with `raw` is the text
            itself.
        n_shots: demonstrations in both; None: none in the prompt that is shown, and in those that are measured as many
            as tell the task, which is none beside an instruction.
        bare: leave instruction and demonstrations out of the prompt that is shown.
        told: what instruction measured prompts carry: `task` (one of the task's own), `none`, or these texts.
        heads: the heads of the vector; None: the `k` strongest.
        k: how many heads, where none are named.
        layer, alpha, site: where and how strongly the vector is added; None: not yet chosen.
        positions: `prompt` or `every`, as in `steer`.
        random: whether a random vector of equal norm is shown beside, at the same layer, strength and site: a first
            look, and no control, which would have a search of its own.
        seed: which random vector.
        max_new_tokens: length of the completions.
        source: whether the vector is that of `heads` or one loaded from a `file`.
        donor: where two models are compared: each with its `own` vector, or both with that of the `first`.
    """

    task: str
    text: str = ""
    instruction: str = ""
    template: str | PromptTemplate = "plain"
    n_shots: int | None = None
    bare: bool = False
    told: str | tuple[str, ...] = "task"
    heads: tuple[Head, ...] | None = None
    k: int = 10
    layer: int | None = None
    alpha: float | int | None = None
    site: str | None = None
    positions: str = "prompt"
    random: bool = False
    seed: int = 0
    max_new_tokens: int = 12
    source: str = "heads"
    donor: str = "own"

    def measured(self, seed: int) -> PromptRecipe:
        """How the prompts are made on which the task's heads are measured."""
        told = {"task": TASK, "none": None}[self.told] if isinstance(self.told, str) else self.told
        return PromptRecipe("plain" if self.template == RAW else self.template, told, self.n_shots, seed)

    def shown(self, task: Task, seed: int) -> PromptRecipe:
        """How the prompt is made that is completed; not for `raw`."""
        told = None if self.bare or task.fused else self.instruction.strip() or None
        return PromptRecipe(self.template, told, 0 if self.bare else self.n_shots or 0, seed)


def with_template(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a state that a user, not a page, gave: a template's file is read.

    Raises:
        ValueError, FileNotFoundError: as `find_template`.
    """
    template = values.get("template")
    if isinstance(template, str) and template.lower().endswith(".json"):
        return {**values, "template": find_template(template)}
    return dict(values)


def values_of(recipe: PromptRecipe, task: Task, *, own: bool = True) -> dict[str, Any]:
    """The state's values that make prompts by `recipe`; `own`: its instruction, too, is meant for this task."""
    recipe = recipe if own else recipe.for_other_tasks()
    told: Any = recipe.instruction
    texts = (told,) if isinstance(told, str) else told if isinstance(told, tuple) else ()
    default = recipe.n_shots == replace(recipe, n_shots=None).shots(task) == 0
    values = {"template": recipe.template, "n_shots": None if default else recipe.n_shots}
    if not own:
        return values
    values["told"] = texts or ("none" if told is None else "task")
    # which of a task's own instructions a prompt had is drawn: the field stays as it is
    return values if told is TASK else {**values, "instruction": texts[0] if texts else ""}


@dataclass(frozen=True)
class Limits:
    """What values a model and its tasks allow."""

    tasks: Sequence[str]
    n_layers: int
    n_heads: int
    templates: Sequence[str] = (*TEMPLATES, RAW)

    def changed(self, state: LabState, values: Mapping[str, Any]) -> LabState:
        """`state` with some values replaced, all of them checked: they may come from a browser.

        Raises:
            ValueError: an unknown name, or a value that is not allowed.
        """
        known = {field.name for field in fields(LabState)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"the lab has no setting {unknown[0]!r}, expected one of {', '.join(sorted(known))}.")
        checks = self._checks()
        return replace(state, **{name: checks[name](name, value) for name, value in values.items()})

    def toggled(self, heads: Sequence[Head], head: Any) -> tuple[Head, ...]:
        """`heads` without `head`, or with it at the end.

        Raises:
            ValueError: the model has no such head.
        """
        (one,) = self._heads("head", [head])
        return tuple(other for other in heads if other != one) if one in heads else (*heads, one)

    def _checks(self) -> dict[str, Callable[[str, Any], Any]]:
        count = self.n_layers * self.n_heads
        return {
            "task": _one_of(self.tasks),
            "text": _text,
            "instruction": _text,
            "template": self._template,
            "n_shots": _or_none(_whole(0, MAX_SHOTS)),
            "bare": _truth,
            "told": _told,
            "heads": lambda name, value: None if value is None else self._heads(name, value),
            "k": _whole(1, count),
            "layer": _or_none(_whole(0, self.n_layers - 1)),
            "alpha": _or_none(_alpha),
            "site": _or_none(_one_of(SITES)),
            "positions": _one_of(POSITIONS),
            "random": _truth,
            "seed": _whole(0, 2**31 - 1),
            "max_new_tokens": _whole(1, MAX_NEW_TOKENS),
            "source": _one_of(SOURCES),
            "donor": _one_of(DONORS),
        }

    def _template(self, name: str, value: Any) -> str | PromptTemplate:
        # a name or an object, never a file, which a page could name
        return value if isinstance(value, PromptTemplate) else _one_of(self.templates)(name, value)

    def _heads(self, name: str, value: Any) -> tuple[Head, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str):
            _refuse(name, value, "a list of (layer, head) pairs")
        layer_of, head_of = _whole(0, self.n_layers - 1), _whole(0, self.n_heads - 1)
        heads = []
        for pair in value:
            if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
                _refuse(name, pair, "pairs (layer, head)")
            heads.append((layer_of(f"layer of {name}", pair[0]), head_of(f"head of {name}", pair[1])))
        return tuple(dict.fromkeys(heads))


def _refuse(name: str, value: Any, expected: str) -> NoReturn:
    raise ValueError(f"{name} is {value!r:.60}, expected {expected}.")


def _one_of(allowed: Sequence[str]) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        return value if isinstance(value, str) and value in allowed else _refuse(name, value, ", ".join(allowed))

    return check


def _or_none(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


def _whole(low: int, high: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        # a browser knows one kind of number: 3.0 may arrive for 3
        number = not isinstance(value, bool) and isinstance(value, int | float)
        if not (number and low <= value <= high and value == math.floor(value)):
            _refuse(name, value, f"a whole number from {low} to {high}")
        return int(value)

    return check


def _alpha(name: str, value: Any) -> float:
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not (number and abs(value) <= MAX_ALPHA):  # false for NaN
        _refuse(name, value, f"a strength from {-MAX_ALPHA:g} to {MAX_ALPHA:g}")
    return float(value)


def _truth(name: str, value: Any) -> bool:
    return value if isinstance(value, bool) else _refuse(name, value, "true or false")


def _told(name: str, value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str) and value in TOLD:
        return value
    texts = (value,) if isinstance(value, str) else value
    if not (isinstance(texts, Sequence) and texts and all(isinstance(text, str) and text.strip() for text in texts)):
        _refuse(name, value, f"{', '.join(TOLD)}, or instructions that are not empty")
    return tuple(_text(name, text) for text in texts)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        _refuse(name, value, f"a text of at most {MAX_TEXT} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        _refuse(name, value, "whole characters (half a surrogate pair is no text)")
    return value
