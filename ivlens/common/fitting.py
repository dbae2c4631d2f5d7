"""Checks whether values fit type annotations, and converts values of other types that can mean only one thing."""

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

LARGEST = 2**63  # the whole numbers of torch and numpy lie below it
NOT_FITTING = object()  # returned where a value does not fit; None would not do, as it can be a valid value
_LISTS = (tuple, list, Sequence, Iterable)


class _Named(type):
    """Stands for a class that is imported for type checkers only; instances are recognised by their class's name."""

    def __instancecheck__(cls, value: object) -> bool:
        return any(one.__name__ == cls.__name__ for one in type(value).__mro__)

    def __getattr__(cls, name: str) -> "_Named":
        if not name[:1].isupper():
            raise AttributeError(name)
        return _Named(name, (), {})  # `pd.DataFrame`, where `pd` is a stand-in too


class _Names(dict[str, Any]):
    """The names of a module; a missing name stands for a class of that name."""

    def __missing__(self, name: str) -> Any:
        return vars(builtins).get(name) or _Named(name, (), {})


@cache
def hints_of(what: Any) -> dict[str, Any]:
    """The annotations of a function or class, by the names of its parameters or fields."""
    try:
        return get_type_hints(what, include_extras=True)
    except NameError:  # a class that is imported for type checkers only: read again, with stand-ins
        names = _Names(vars(sys.modules[what.__module__]))
        given = inspect.get_annotations(what)
        return {name: eval(one, {}, names) if isinstance(one, str) else one for name, one in given.items()}


def sides(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation itself as the only one."""
    if get_origin(hint) is Annotated:
        return sides(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return tuple(each for one in get_args(hint) for each in sides(one))
    return (NoneType if hint is None else hint,)


def is_list(hint: Any) -> bool:
    """Whether an annotation asks for a tuple, a list or another sequence."""
    return (get_origin(hint) or hint) in _LISTS


def fit(value: Any, hint: Any) -> Any:
    """The value, converted to what its annotation names if need be; `NOT_FITTING` where that cannot be."""
    members = sides(hint)
    # first every member of a union without converting: 3 stays a whole number for `float | int`
    for exact in (True, False):
        for member in members:
            found = _exact(value, member) if exact else _alike(value, member)
            if found is not NOT_FITTING:
                return found
    return NOT_FITTING


def _exact(value: Any, hint: Any) -> Any:
    """The value if it is of the annotation's type (items of a list may be converted), otherwise `NOT_FITTING`."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in (Any, object) or isinstance(hint, TypeVar):
        return value
    if isinstance(hint, str):
        hint = _Named(hint, (), {})
    if hint is float:
        # a float64 of numpy is a float to Python, too; `_alike` makes a plain one of it
        ok = isinstance(value, float) and type(value).__module__ == "builtins" and isfinite(value)
    elif hint in (int, SupportsIndex):
        ok = type(value) is int and -LARGEST <= value < LARGEST  # True and False are ints to `isinstance`
    elif origin is Literal:
        ok = any(type(value) is type(one) and value == one for one in inner)
    elif hasattr(hint, "array_type"):
        ok = isinstance(value, hint)  # jaxtyping compares the type of numbers and the dimensions, too
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
    """A value of another type, converted if it can mean only one thing, otherwise `NOT_FITTING`."""
    if hint in (int, SupportsIndex, float, bool):
        return _number(value, hint)
    if hint is Path:
        return Path(value) if isinstance(value, PathLike) else NOT_FITTING
    if hasattr(hint, "_fields") and isinstance(value, tuple) and len(value) == len(hint._fields):
        return _named_values(value, hint)
    if is_list(hint):
        if isinstance(value, str):
            return _listed((value,), hint)  # a text is one item
        # a set has no order, so it is refused unless the order does not matter (Iterable)
        if isinstance(value, bytes | bytearray | Mapping) or (
            isinstance(value, Set) and get_origin(hint) is not Iterable
        ):
            return NOT_FITTING
        # an array of one dimension is a list, a table is not
        if getattr(value, "ndim", None) not in (None, 1) or not isinstance(value, Iterable):
            return NOT_FITTING
        return _listed(tuple(value), hint)
    return NOT_FITTING


def _number(value: Any, hint: Any) -> Any:
    """A plain number of Python for one of numpy or torch, otherwise `NOT_FITTING`."""
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
    """A named tuple with its fields converted; `NOT_FITTING` where one does not fit."""
    parts = [fit(part, hints_of(hint)[name]) for name, part in zip(hint._fields, values, strict=True)]
    if any(part is NOT_FITTING for part in parts):
        return NOT_FITTING
    same = isinstance(values, hint) and all(one is other for one, other in zip(parts, values, strict=True))
    return values if same else hint(*parts)


def _listed(values: list[Any] | tuple[Any, ...], hint: Any) -> Any:
    """A list with its items converted, or the given list where none had to be; `NOT_FITTING` where one does not fit."""
    inner = get_args(hint)
    wants_tuple = get_origin(hint) is tuple
    if wants_tuple and inner and Ellipsis not in inner:
        if len(values) != len(inner):
            return NOT_FITTING
        items = [fit(one, each) for one, each in zip(values, inner, strict=True)]
    elif inner and isinstance(inner[0], type) and get_origin(inner[0]) is None and inner[0] not in (int, float, bool):
        # plain classes: nothing can be converted, and this quick check is enough for long lists of examples
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
