"""The state of the lab's controls as one immutable value, and the checks of every change to it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn

from ivlens.forward.hooks import SITES
from ivlens.prompts.recipe import TASK, PromptRecipe
from ivlens.prompts.templates import TEMPLATES, PromptTemplate, find_template
from ivlens.steering.edits import POSITIONS
from ivlens.tasks.task import Task

RAW = "raw"  # the template of a prompt that is the text itself
# the words that the fields `told`, `donor` and `source` of `LabState` may have
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
    """The values of all controls of the lab; the same state gives the same texts.

    There are two kinds of prompts. The *measured* prompts are those on which effects are measured. The *shown* prompt
    is the one that is completed.

    Attributes:
        task: the name of the task whose heads and vector are shown.
        text: the input in the shown prompt.
        instruction: the instruction in the shown prompt; empty: none, so that the vector has something to add.
        template: the template of measured prompts and of the shown one. With `raw` the shown prompt is the text itself,
            and measured prompts are made by `plain`.
        n_shots: demonstrations in each measured prompt and in the shown one. None: no demonstrations in the shown
            prompt, and the recipe's default in measured ones (5 without an instruction, 0 with one).
        bare: whether to leave instruction and demonstrations out of the shown prompt.
        told: the instruction in measured prompts: `task` (one of the task's own), `none`, or these texts.
        heads: the heads of the vector; None: the `k` heads of largest effect.
        k: how many heads the vector has if `heads` is None.
        layer, alpha, site: the layer, strength and site at which the vector is added; None: to be searched for.
        positions: the tokens at which it is added, `prompt`, `every` or `all`, as in `steer`.
        random: whether the completion with a random vector of equal norm is shown too, at the same layer, strength and
            site. This is a first look, not a control: a control would be searched for its own best setting.
        seed: draws the random vector.
        max_new_tokens: the length of the completions.
        source: where the vector comes from: the `heads`, or a loaded `file`.
        donor: where two models are compared, the vector that each gets: its `own`, or that of the `first`.
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
        """The recipe of the prompts on which the effects of the task's heads are measured."""
        told = {"task": TASK, "none": None}[self.told] if isinstance(self.told, str) else self.told
        return PromptRecipe("plain" if self.template == RAW else self.template, told, self.n_shots, seed)

    def shown(self, task: Task, seed: int) -> PromptRecipe:
        """The recipe of the prompt that is completed; not to be used with the template `raw`."""
        told = None if self.bare or task.fused else self.instruction.strip() or None
        return PromptRecipe(self.template, told, 0 if self.bare else self.n_shots or 0, seed)


def with_template(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the template read, if it is the name of a JSON file.

    This is for values that a user gives; a page may not name files.

    Raises:
        ValueError, FileNotFoundError: as `find_template`.
    """
    template = values.get("template")
    if isinstance(template, str) and template.lower().endswith(".json"):
        return {**values, "template": find_template(template)}
    return dict(values)


def values_of(recipe: PromptRecipe, task: Task, *, own: bool = True) -> dict[str, Any]:
    """The values of a state that makes its prompts by `recipe`.

    Args:
        own: whether the recipe was made for this task, so that its instruction is used as well.
    """
    recipe = recipe if own else recipe.for_other_tasks()
    told: Any = recipe.instruction
    texts = (told,) if isinstance(told, str) else told if isinstance(told, tuple) else ()
    # None leaves a recipe's default open, which here gives no demonstrations either
    default = recipe.n_shots == replace(recipe, n_shots=None).shots(task) == 0
    values = {"template": recipe.template, "n_shots": None if default else recipe.n_shots}
    if not own:
        return values
    values["told"] = texts or ("none" if told is None else "task")
    # TASK draws one of the task's instructions for each prompt, so no single text can be shown in the field
    return values if told is TASK else {**values, "instruction": texts[0] if texts else ""}


@dataclass(frozen=True)
class Limits:
    """The values that a state may have, for one model and its tasks."""

    tasks: Sequence[str]
    n_layers: int
    n_heads: int
    templates: Sequence[str] = (*TEMPLATES, RAW)

    def changed(self, state: LabState, values: Mapping[str, Any]) -> LabState:
        """The state with some values replaced; each is checked, since it may come from a browser.

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
        """The heads without `head` if it is among them, otherwise with `head` at the end.

        Raises:
            ValueError: the model has no such head.
        """
        (one,) = self._heads("head", [head])
        return tuple(other for other in heads if other != one) if one in heads else (*heads, one)

    def _checks(self) -> dict[str, Callable[[str, Any], Any]]:
        """The check of every value: a function of its name and the value, which returns the value or refuses it."""
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
        # a known name or an object, never a path: a page could name any file of this machine
        return value if isinstance(value, PromptTemplate) else _one_of(self.templates)(name, value)

    def _heads(self, name: str, value: Any) -> tuple[Head, ...]:
        """The heads in a list of pairs, each of them once and within the model's shape."""
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
    """Raise the error that a value is not allowed."""
    raise ValueError(f"{name} is {value!r:.60}, expected {expected}.")


def _one_of(allowed: Sequence[str]) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        return value if isinstance(value, str) and value in allowed else _refuse(name, value, ", ".join(allowed))

    return check


def _or_none(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


def _whole(low: int, high: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        # JavaScript has one kind of number, so that 3.0 may arrive for 3
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
