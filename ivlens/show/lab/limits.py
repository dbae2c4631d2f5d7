"""The values that the lab's state may have: every change is checked, since it may come from a browser."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn

from ivlens.forward.hooks import SITES
from ivlens.prompts.templates import TEMPLATES, PromptTemplate
from ivlens.show.lab.state import DONORS, RAW, SOURCES, TOLD, VIEWS, Head, LabState
from ivlens.steering.edits import POSITIONS

MAX_ALPHA = 64.0
MAX_SHOTS = 64
MAX_TEXT = 100_000
MAX_NEW_TOKENS = 256


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
            "demos": _or_none(_demos),
            "demo_seed": _or_none(_whole(0, 2**31 - 1)),
            "system": _text,
            "begins": _text,
            "head": lambda name, value: None if value is None else self._heads(name, [value])[0],
            "view": _one_of(VIEWS),
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


def _demos(name: str, value: Any) -> tuple[tuple[str, str], ...]:
    """Demonstrations as pairs of texts that are not empty."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > MAX_SHOTS:
        _refuse(name, value, f"up to {MAX_SHOTS} pairs (input, answer)")
    for pair in value:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            _refuse(name, pair, "pairs (input, answer)")
        if not all(isinstance(text, str) and text.strip() for text in pair):
            _refuse(name, pair, "an input and an answer that are not empty")
    return tuple((_text(name, asked), _text(name, answer)) for asked, answer in value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        _refuse(name, value, f"a text of at most {MAX_TEXT} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        _refuse(name, value, "whole characters (half a surrogate pair is no text)")
    return value
