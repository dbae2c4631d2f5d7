"""Checks the arguments of public functions against the types in their signatures, and refuses wrong ones.

`checked` does this for a function, or for the public methods of a class. A value of another type that can mean only one
thing is converted (see `fitting`): a whole number of numpy or torch, a list in the place of a tuple, one text where
several are asked for. Ranges, such as "0 or more", are checked where the values are used.
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
_TYPE_WORDS: dict[Any, str] = {
    int: "a whole number",
    SupportsIndex: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "a text",
    Path: "a path",
    NoneType: "None",
}
_CLASS_WORDS = {  # by the name of the class: rooms below this one define them, so they cannot be imported here
    "Module": "the TransformerBridge that ivlens.load_model returns; wrap a Hugging Face model with "
    "load_model(hf_model=model, tokenizer=tokenizer)",
    "TransformerBridge": "the TransformerBridge that ivlens.load_model returns",
    "Task": "a Task, as ivlens.load_task returns",
    "InstructionVector": "an InstructionVector",
    "HeadEffects": "the HeadEffects that ivlens.head_effects returns",
}


def checked(what: What) -> What:
    """Decorate a function or class, so that calls check their arguments against its annotations.

    In a class, calls of `__init__` and of the public methods are checked.

    Raises:
        TypeError, ValueError: raised by the new function, for an argument that does not fit; the message names the
            parameter.
    """
    if isinstance(what, type):
        # `checked` stands above `dataclass`, which has added `__init__` by now
        for name, value in list(vars(what).items()):
            if inspect.isfunction(value) and (name == "__init__" or not name.startswith("_")):
                setattr(what, name, checked(value))
            elif isinstance(value, classmethod) and not name.startswith("_"):
                setattr(what, name, classmethod(checked(value.__func__)))
        return cast(What, what)
    names = list(inspect.signature(what).parameters)

    @wraps(what)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        # read at the call: annotations may name classes that are defined further down in the module
        hints = hints_of(what)
        given = [fitted(name, value, hints.get(name, Any)) for name, value in zip(names, args, strict=False)]
        named = {name: fitted(name, value, hints.get(name, Any)) for name, value in kwargs.items()}
        return what(*given, *args[len(given) :], **named)  # Python refuses the rest: surplus and unknown arguments

    return cast(What, wrapper)


def check_fields(made: Any) -> None:
    """Check the fields of a dataclass against their types; a value that means the same is converted to the right type.

    Raises:
        TypeError, ValueError: a field that does not fit; the message names it.
    """
    hints = hints_of(type(made))
    for field in fields(made):
        value = getattr(made, field.name)
        found = fitted(field.name, value, hints.get(field.name, Any))
        if found is not value:
            object.__setattr__(made, field.name, found)  # frozen dataclasses refuse plain assignment


def fitted(name: str, value: Any, hint: Any) -> Any:
    """The value, converted to the type of its annotation where it is of another type but means the same.

    Args:
        name: What the error calls the value.
        value: An argument, or the value of a field.
        hint: Its annotation.

    Raises:
        ValueError: the value does not fit an annotation for numbers, or for one of several fixed names.
        TypeError: the value does not fit another annotation.
    """
    if hint is Any or (type(value) is hint and hint in (str, bool)):  # a quick way for most arguments
        return value
    found = fit(value, hint)
    if found is not NOT_FITTING:
        return found
    name, value, hint = _inner(name, value, hint)  # the error names the wrong item, not the whole list
    kinds = {int, float, SupportsIndex, bool} & set(sides(hint))
    wrong = ValueError if kinds or Literal in [get_origin(one) for one in sides(hint)] else TypeError
    raise wrong(f"{name} is {briefly(value)}, expected {said(hint)}.")


def briefly(value: Any) -> str:
    """A value in one short line for an error: functions and classes by name, objects and filled lists by type."""
    if isinstance(value, type) or callable(value):
        return f"{getattr(value, '__name__', type(value).__name__):.40}"
    plain = value is None or isinstance(value, str | bytes | bool | int | float | complex | Path)
    # Python refuses to write out a number of more than 4,300 digits
    if isinstance(value, int) and not -LARGEST <= value < LARGEST:
        return "a number of more than 18 digits"
    is_empty = isinstance(value, list | tuple | dict | set) and not value
    text = repr(value) if plain or is_empty else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def said(hint: Any) -> str:
    """What an annotation expects, in words: `int | None` is "a whole number or None"."""
    # `str | Path` is called "a path"
    members = [one for one in sides(hint) if not (one is str and Path in sides(hint))]
    if len(members) > 1:
        # "a finite number" includes whole numbers
        if set(members) & {int, SupportsIndex} and float in members:
            members = [one for one in members if one not in (int, SupportsIndex)]
        words = [said(one) for one in members]
        return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    (hint,) = members
    origin, inner = get_origin(hint), get_args(hint)
    if hint in _TYPE_WORDS:
        return _TYPE_WORDS[hint]
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple and inner and Ellipsis not in inner:
        return f"{len(inner)} values in brackets"
    if hasattr(hint, "array_type"):
        return f"a tensor [{hint.dim_str.strip()}] of {hint.__name__.partition('[')[0].lower()}s"
    if is_list(hint):
        return f"a list (of each: {said(inner[0])})" if inner else "a list"
    name = getattr(origin or hint, "__name__", str(hint))
    known = {"Mapping": "a mapping", "dict": "a mapping", "Callable": "a function"} | _CLASS_WORDS
    return known.get(name, f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}")


def _inner(name: str, value: Any, hint: Any) -> tuple[str, Any, Any]:
    """Name, value and annotation of the first item that does not fit; the arguments as given if there is none."""
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
