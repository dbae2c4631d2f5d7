"""Whether a value is what an annotation names, or means the same."""

import builtins
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import cache
from math import isfinite
from operator import index
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, SupportsIndex, TypeVar, Union, get_args, get_origin, get_type_hints

LARGEST = 2**63  # what a whole number of torch and numpy can hold
NOT_FITTING = object()
_LISTS = (tuple, list, Sequence, Iterable)


class _Named(type):
    """A class that is known here by its name alone, since it is imported for type checkers only."""

    def __instancecheck__(cls, value: object) -> bool:
        return any(one.__name__ == cls.__name__ for one in type(value).__mro__)

    def __getattr__(cls, name: str) -> "_Named":
        if not name[:1].isupper():
            raise AttributeError(name)
        return _Named(name, (), {})  # pd.DataFrame


class _Names(dict[str, Any]):
    """The names of a module; one that it has not stands for a class of that name."""

    def __missing__(self, name: str) -> Any:
        return vars(builtins).get(name) or _Named(name, (), {})


@cache
def hints_of(what: Any) -> dict[str, Any]:
    """Annotations by name."""
    try:
        return get_type_hints(what, include_extras=True)
    except NameError:
        names = _Names(vars(sys.modules[what.__module__]))
        given = inspect.get_annotations(what)
        return {name: eval(one, {}, names) if isinstance(one, str) else one for name, one in given.items()}


def sides(hint: Any) -> tuple[Any, ...]:
    """The sides of a union, or the annotation itself."""
    if get_origin(hint) is Annotated:
        return sides(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return tuple(each for one in get_args(hint) for each in sides(one))
    return (NoneType if hint is None else hint,)


def is_list(hint: Any) -> bool:
    return (get_origin(hint) or hint) in _LISTS


def fit(value: Any, hint: Any) -> Any:
    """The value as its annotation has it, or `NOT_FITTING`."""
    members = sides(hint)
    for exact in (True, False):
        for member in members:
            found = _exact(value, member) if exact else _alike(value, member)
            if found is not NOT_FITTING:
                return found
    return NOT_FITTING


def _exact(value: Any, hint: Any) -> Any:
    """A value that is what the annotation says."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in (Any, object) or isinstance(hint, TypeVar):
        return value
    if isinstance(hint, str):
        hint = _Named(hint, (), {})
    if hint is float:
        ok = isinstance(value, float) and type(value).__module__ == "builtins" and isfinite(value)
    elif hint in (int, SupportsIndex):
        ok = type(value) is int and -LARGEST <= value < LARGEST
    elif origin is Literal:
        ok = any(type(value) is type(one) and value == one for one in inner)
    elif hasattr(hint, "array_type"):
        ok = isinstance(value, hint)  # its kind of numbers and its dimensions, too
    elif hasattr(hint, "_fields"):
        return _named_values(value, hint) if isinstance(value, hint) else NOT_FITTING
    elif is_list(hint):
        return _listed(value, hint) if isinstance(value, list | tuple) else NOT_FITTING
    elif origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        items = {key: fit(one, inner[1]) if inner else one for key, one in value.items()}
        ok = not inner or all(fit(key, inner[0]) is not NOT_FITTING for key in items)
        ok = ok and not any(one is NOT_FITTING for one in items.values())
    else:
        kind = origin or hint
        ok = isinstance(value, kind) if isinstance(kind, type) else True
    return value if ok else NOT_FITTING


def _alike(value: Any, hint: Any) -> Any:
    """What a value of another kind means, where it can mean but one thing."""
    if hint in (int, SupportsIndex, float, bool):
        return _number(value, hint)
    if hint is Path:
        return Path(value) if isinstance(value, PathLike) else NOT_FITTING
    if hasattr(hint, "_fields") and isinstance(value, tuple) and len(value) == len(hint._fields):
        return _named_values(value, hint)
    if is_list(hint):
        if isinstance(value, str):
            return _listed((value,), hint)  # a text is one item
        if isinstance(value, bytes | bytearray | Mapping) or (
            isinstance(value, Set) and get_origin(hint) is not Iterable
        ):
            return NOT_FITTING
        if getattr(value, "ndim", None) not in (None, 1) or not isinstance(value, Iterable):
            return NOT_FITTING
        return _listed(tuple(value), hint)
    return NOT_FITTING


def _number(value: Any, hint: Any) -> Any:
    """The plain number of a scalar of numpy or torch."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if hint is bool:
        return value if isinstance(value, bool) else NOT_FITTING
    if isinstance(value, bool | type) or not isinstance(value, SupportsIndex | float) or getattr(value, "ndim", 0):
        return NOT_FITTING
    if isinstance(value, SupportsIndex):
        whole = index(value)
        return whole if -LARGEST <= whole < LARGEST else NOT_FITTING
    return float(value) if hint is float and isfinite(value) else NOT_FITTING


def _named_values(values: tuple[Any, ...], hint: Any) -> Any:
    """A named tuple whose fields fit."""
    parts = [fit(part, hints_of(hint)[name]) for name, part in zip(hint._fields, values, strict=True)]
    if any(part is NOT_FITTING for part in parts):
        return NOT_FITTING
    same = isinstance(values, hint) and all(one is other for one, other in zip(parts, values, strict=True))
    return values if same else hint(*parts)


def _listed(values: list[Any] | tuple[Any, ...], hint: Any) -> Any:
    """A list whose items fit; the same one where all of them are right as they are."""
    inner = get_args(hint)
    wants_tuple = get_origin(hint) is tuple
    if wants_tuple and inner and Ellipsis not in inner:
        if len(values) != len(inner):
            return NOT_FITTING
        items = [fit(one, each) for one, each in zip(values, inner, strict=True)]
    elif inner and isinstance(inner[0], type) and get_origin(inner[0]) is None and inner[0] not in (int, float, bool):
        if not all(isinstance(one, inner[0]) for one in values):
            return NOT_FITTING
        items = values
    else:
        items = [fit(one, inner[0]) for one in values] if inner else values
    if any(one is NOT_FITTING for one in items):
        return NOT_FITTING
    if isinstance(values, tuple) is not wants_tuple and (wants_tuple or not isinstance(values, tuple | list)):
        return tuple(items)
    same = all(one is other for one, other in zip(items, values, strict=True))
    return values if same else tuple(items)
