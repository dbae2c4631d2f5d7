"""The check of types that functions of ivlens get while tests run: without that of shapes where they name none.

`jaxtyping.jaxtyped` binds the arguments of every call to its signature, which takes most of the time of all checks (a
prompt is made six times slower). A function whose annotations name no array has no shape to compare: it gets the same
check of beartype without that, and the same error. To be imported before ivlens.
"""

import inspect
import typing
from collections.abc import Mapping
from typing import Any

import beartype
import jaxtyping
from jaxtyping import AbstractArray

whole = jaxtyping.jaxtyped


class Refused(jaxtyping.TypeCheckError):
    """As `jaxtyped` raises it, a TypeError, and known by the same words."""

    def __str__(self) -> str:
        return f"Type-check error: {super().__str__()}"


checked = beartype.beartype(conf=beartype.BeartypeConf(violation_type=Refused))


def resolved(annotation: Any, known: Mapping[str, Any]) -> Any:
    """An annotation without texts; as in `jaxtyped`, `Any` where it names what only type checkers know."""

    def of(value: annotation) -> None: ...

    try:
        return typing.get_type_hints(of, dict(known), include_extras=True)["value"]
    except Exception:
        return Any


def names_an_array(annotation: Any) -> bool:
    """Whether an annotation, or a part of it, is an array with a shape."""
    if isinstance(annotation, list | tuple):  # the arguments of a Callable
        return any(names_an_array(part) for part in annotation)
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    return any(names_an_array(part) for part in typing.get_args(annotation))


def jaxtyped(fn: Any = None, *, typechecker: Any = None) -> Any:
    """In the place of `jaxtyping.jaxtyped`, as its import hook calls it."""
    if fn is None:
        return lambda given: jaxtyped(given, typechecker=typechecker)
    if not inspect.isfunction(fn) or typechecker is None:
        return whole(fn, typechecker=typechecker)
    spelled = fn.__annotations__
    found = {name: resolved(annotation, fn.__globals__) for name, annotation in spelled.items()}
    if any(names_an_array(annotation) for annotation in found.values()):
        return whole(fn, typechecker=typechecker)
    fn.__annotations__ = found
    made = checked(fn)
    fn.__annotations__ = spelled
    made.__annotations__ = spelled
    return made


jaxtyping.jaxtyped = jaxtyped
