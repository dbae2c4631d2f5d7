"""Arguments held against the types that a signature names: one place where wrong ones are refused.

`checked` does it for a function, and for a class with its methods. What means the same is taken (see `fitting`): a
whole number of numpy or torch, a list for a tuple, one text where several are asked for. Ranges are checked where the
values are used.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import Any, Literal, SupportsIndex, TypeVar, cast, get_args, get_origin

from ivlens.common.fitting import LARGEST, NOT_FITTING, fit, hints_of, is_list, sides

What = TypeVar("What", bound=Callable[..., Any])
_SAID: dict[Any, str] = {
    int: "a whole number",
    SupportsIndex: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "a text",
    Path: "a path",
    NoneType: "None",
}
_SAID_OF = {  # by name, as the classes are of rooms below
    "Module": "the TransformerBridge that ivlens.load_model returns; wrap a Hugging Face model with "
    "load_model(hf_model=model, tokenizer=tokenizer)",
    "TransformerBridge": "the TransformerBridge that ivlens.load_model returns",
    "Task": "a Task, as ivlens.load_task returns",
    "InstructionVector": "an InstructionVector",
    "HeadEffects": "the HeadEffects that ivlens.head_effects returns",
}


def checked(what: What) -> What:
    """A function with its arguments held against its annotations before it runs; a class with all its public methods.

    Raises:
        TypeError, ValueError: of the new function: an argument of another kind, by the name of its parameter.
    """
    if isinstance(what, type):
        for name, value in list(vars(what).items()):
            if inspect.isfunction(value) and (name == "__init__" or not name.startswith("_")):
                setattr(what, name, checked(value))
            elif isinstance(value, classmethod) and not name.startswith("_"):
                setattr(what, name, classmethod(checked(value.__func__)))
        return cast(What, what)
    names = list(inspect.signature(what).parameters)

    @wraps(what)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        hints = hints_of(what)
        given = [fitted(name, value, hints.get(name, Any)) for name, value in zip(names, args, strict=False)]
        named = {name: fitted(name, value, hints.get(name, Any)) for name, value in kwargs.items()}
        return what(*given, *args[len(given) :], **named)  # what is too much or unknown, Python says

    return cast(What, wrapper)


def check_fields(made: Any) -> None:
    """Hold a dataclass's fields against their types, and put in their place what means the same.

    Raises:
        TypeError, ValueError: a field of another kind, by its name.
    """
    hints = hints_of(type(made))
    for field in fields(made):
        value = getattr(made, field.name)
        found = fitted(field.name, value, hints.get(field.name, Any))
        if found is not value:
            object.__setattr__(made, field.name, found)


def fitted(name: str, value: Any, hint: Any) -> Any:
    """The value as its annotation has it.

    Raises:
        ValueError: a number, or one of several names, that is another one than those that are expected.
        TypeError: something of another kind.
    """
    if hint is Any or (type(value) is hint and hint in (str, bool)):  # most arguments, and nothing more to look at
        return value
    found = fit(value, hint)
    if found is not NOT_FITTING:
        return found
    name, value, hint = _inner(name, value, hint)
    kinds = {int, float, SupportsIndex, bool} & set(sides(hint))
    wrong = ValueError if kinds or Literal in [get_origin(one) for one in sides(hint)] else TypeError
    raise wrong(f"{name} is {briefly(value)}, expected {said(hint)}.")


def briefly(value: Any) -> str:
    """A value as an error shows it: short, in one line; of what is no plain value its type alone."""
    if isinstance(value, type) or callable(value):
        return f"{getattr(value, '__name__', type(value).__name__):.40}"
    plain = value is None or isinstance(value, str | bytes | bool | int | float | complex | Path)
    if isinstance(value, int) and not -LARGEST <= value < LARGEST:
        return "a number of more than 18 digits"
    is_empty = isinstance(value, list | tuple | dict | set) and not value
    text = repr(value) if plain or is_empty else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def said(hint: Any) -> str:
    """What an annotation expects, in words."""
    members = [one for one in sides(hint) if not (one is str and Path in sides(hint))]  # a text that is a path
    if len(members) > 1:
        if set(members) & {int, SupportsIndex} and float in members:
            members = [one for one in members if one not in (int, SupportsIndex)]
        words = [said(one) for one in members]
        return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    (hint,) = members
    origin, inner = get_origin(hint), get_args(hint)
    if hint in _SAID:
        return _SAID[hint]
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple and inner and Ellipsis not in inner:
        return f"{len(inner)} values in brackets"
    if hasattr(hint, "array_type"):
        return f"a tensor [{hint.dim_str.strip()}] of {hint.__name__.partition('[')[0].lower()}s"
    if is_list(hint):
        return f"a list (of each: {said(inner[0])})" if inner else "a list"
    name = getattr(origin or hint, "__name__", str(hint))
    known = {"Mapping": "a mapping", "dict": "a mapping", "Callable": "a function"} | _SAID_OF
    return known.get(name, f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}")


def _inner(name: str, value: Any, hint: Any) -> tuple[str, Any, Any]:
    """The first item that does not fit, where it is a list of the right kind that has one."""
    if isinstance(value, list | tuple):
        for member in sides(hint):
            if hasattr(member, "_fields") and len(value) == len(member._fields):
                for field, one in zip(member._fields, value, strict=True):
                    if fit(one, hints_of(member)[field]) is NOT_FITTING:
                        return _inner(field, one, hints_of(member)[field])
            inner = get_args(member)
            if is_list(member) and inner and not (get_origin(member) is tuple and Ellipsis not in inner):
                for number, one in enumerate(value):
                    if fit(one, inner[0]) is NOT_FITTING:
                        return _inner(f"{name}[{number}]", one, inner[0])
    return name, value, hint
