"""Renders chat templates, which are programs of other people, within limits of steps and of text.

A template is compiled as transformers compiles it, after changes to its syntax tree: every round of a loop, every macro
and every joining of texts becomes a call that is counted. The arguments of calls, filters and operators are checked
before they run, so that nothing is made that is larger than a chat can be.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache, wraps
from typing import Any

_MOST_STEPS = 100_000  # rounds of loops, calls and filters for one text; a chat of ten turns takes some hundreds
_MOST_LETTERS = 2**19  # in one value
_ITEM = 16  # an item of a list counts as so many letters
_MOST_WORK = 2**26  # letters in all values together
_LARGEST_NUMBER = 10_000  # as an argument of methods and filters: widths, counts
_WIDE = re.compile(r"\*|\d{5}")  # widths in formats: `%*d`, or five digits
_FORMATS = ("format", "format_map")
_OWN_NAMES = ("_loop_vars", "_block_vars")  # arguments that jinja adds to calls
_LEFT_OUT = ("lipsum", "urlize", "striptags", "pprint", "xmlattr", "forceescape")  # for web pages, and slow


class TooMuch(ValueError):
    """A chat template takes more steps, or makes more text, than any chat needs."""


@dataclass
class _Budget:
    """What one rendering may still use."""

    steps: int = _MOST_STEPS
    work: int = _MOST_WORK


_BUDGET: ContextVar[_Budget] = ContextVar("_BUDGET")


def rendered(source: str, values: Mapping[str, Any]) -> str:
    """The text that a chat template writes.

    Args:
        source: The template.
        values: Its variables: messages, special tokens, options.

    Raises:
        TooMuch: the template takes more steps, or makes longer texts, than any chat needs.
        Exception: any error that the template or jinja raises.
    """
    token = _BUDGET.set(_Budget())
    try:
        return _compiled(source).render(**values)
    except (MemoryError, OverflowError) as error:
        raise TooMuch(f"it asks for too much ({type(error).__name__})") from None
    finally:
        _BUDGET.reset(token)


@lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    """A template as compiled by the guarded environment."""
    return _environment().from_string(source)


@cache
def _environment() -> Any:
    """The jinja environment of transformers, with guards around all that a template can call."""
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from transformers.utils.chat_template_utils import _compile_jinja_template

    plain: Any = _compile_jinja_template("").environment

    class Guarded(ImmutableSandboxedEnvironment):
        """A sandbox that counts steps and letters, and checks arguments before anything runs."""

        intercepted_binops = frozenset(("+", "*", "**", "%"))  # operators whose results can be large

        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            """The syntax tree, in which every round of a loop and every macro begins with a counted call."""
            tree = super()._parse(source, name, filename)
            for loop in [*tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))]:
                loop.body.insert(0, nodes.ExprStmt(_call("count_step", [])).set_lineno(loop.lineno))
            return _with_joined(tree)

        def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
            spend(1)
            if obj is self.count_step:  # `spend` has counted it
                return ""
            if obj is self.join_texts or obj is self.weighed:
                return obj(*args)
            # jinja passes a loop's variables to every call in it, for its own use
            given = (*args, *(value for name, value in kwargs.items() if name not in _OWN_NAMES))
            sized(given)
            # a method of a text or a list may repeat it: `ljust`, `join`, `format`
            own = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
            if isinstance(own, str | list | tuple):
                if getattr(obj, "__name__", "") in _FORMATS:
                    check_format(own)
                check_given(own, given)
            return sized(super().call(context, obj, *args, **kwargs))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            spend(1)
            check_operands(operator, left, right)
            return sized(super().call_binop(context, operator, left, right))

        @staticmethod
        def count_step() -> str:
            """Never runs: `call` counts a step instead."""
            return ""

        @staticmethod
        def weighed(value: Any) -> Any:
            """The value, after a check of its size."""
            return sized(value)

        @staticmethod
        def join_texts(*parts: Any) -> str:
            """What `a ~ b` stands for in a template."""
            sized(list(parts))
            return "".join(map(str, parts))

    def _call(name: str, args: list[Any]) -> nodes.Call:
        """A call of one of the environment's own functions, as a node of a syntax tree."""
        return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None)

    def _weighed(node: Any) -> Any:
        """An expression whose value is checked for its size before it is used."""
        return _call("weighed", [node]).set_lineno(node.lineno).set_environment(node.environment)

    def _with_joined(node: Any) -> Any:
        """The tree with calls in place of `a ~ b`, and checks around values that are compared, cut or looped over."""
        for field, value in node.iter_fields():
            if isinstance(value, list):
                setattr(node, field, [_with_joined(item) if isinstance(item, nodes.Node) else item for item in value])
            elif isinstance(value, nodes.Node):
                setattr(node, field, _with_joined(value))
        if isinstance(node, nodes.Compare):
            node.expr = _weighed(node.expr)
            for operand in node.ops:
                operand.expr = _weighed(operand.expr)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            node.node = _weighed(node.node)
        if isinstance(node, nodes.For):
            node.iter = _weighed(node.iter)
        if isinstance(node, nodes.Concat):
            owner: Any = node.environment
            return _call("join_texts", node.nodes).set_lineno(node.lineno).set_environment(owner)
        return node

    # a copy of transformers' environment with another class; running no constructor keeps all its settings
    made: Any = object.__new__(Guarded)
    made.__dict__.update(plain.__dict__)
    made.cache = None  # the plain environment's cache holds templates without guards
    made.extensions = {name: extension.bind(made) for name, extension in plain.extensions.items()}
    made.filters = {name: _guarded(made_filter) for name, made_filter in plain.filters.items() if name not in _LEFT_OUT}
    made.globals = {name: value for name, value in plain.globals.items() if name not in _LEFT_OUT}
    made.finalize = sized  # is called with every value that a template writes
    made.concat = _joined  # joins the parts of the text at the end
    return made


def _guarded(made_filter: Callable[..., Any]) -> Callable[..., Any]:
    """The same filter, counted, and with its arguments and its result checked."""

    @wraps(made_filter)  # keeps the marks by which jinja knows what to pass
    def call(*args: Any, **kwargs: Any) -> Any:
        spend(1)
        # to marked filters jinja passes objects of its own, before the template's arguments
        given = [value for value in (*args, *kwargs.values()) if not _is_own(value)]
        if given:
            sized(given)
            if made_filter.__name__ == "do_format":
                check_format(given[0])
            check_given(given[0], given[1:])
        return sized(made_filter(*args, **kwargs))

    return call


def _is_own(value: Any) -> bool:
    """Whether an argument is one of jinja's own objects, such as the environment."""
    return type(value).__module__.startswith("jinja2.") or hasattr(value, "intercepted_binops")


def spend(steps: int, letters: int = 0) -> None:
    """Take steps and letters from what the present rendering may use.

    Raises:
        TooMuch: nothing is left.
    """
    budget = _BUDGET.get(None)
    if budget is None:  # a template is being compiled, which may run filters on constants
        return
    budget.steps -= steps
    budget.work -= letters
    if budget.steps < 0 or budget.work < 0:
        raise TooMuch("it takes more steps, or makes more text, than a chat needs")


def sized(value: Any) -> Any:
    """The value, if it is not too large; its letters are taken from what the rendering may use.

    Raises:
        TooMuch: the value is larger than a chat can be.
    """
    n = size_of(value)
    if n > _MOST_LETTERS:
        raise TooMuch("it makes a text that is longer than a chat can be")
    spend(0, n)
    return value


def size_of(value: Any) -> int:
    """Letters of a value, with all its items; above the limit the count stops, at a number larger than the limit."""
    total, left = 0, [value]
    while left and total <= _MOST_LETTERS:
        one = left.pop()
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, Mapping):
            total += 1 + _ITEM * len(one)
            left += [*one.keys(), *one.values()]
        elif isinstance(one, range):
            total += _ITEM * len(one)
        elif isinstance(one, list | tuple | set | frozenset):
            total += 1 + _ITEM * len(one)
            left += one
        elif isinstance(one, int) and not isinstance(one, bool):
            total += 1 + one.bit_length() // 3  # a digit has a little more than three bits
        else:
            total += 1
    return total


def check_given(subject: Any, others: Iterable[Any]) -> None:
    """Refuse arguments with which a method or filter could make too much text: large numbers, pairs of long texts.

    Args:
        subject: The text or list whose method is called, or the filter's first argument.
        others: The other arguments.

    Raises:
        TooMuch: the result could be too large.
    """
    own = size_of(subject)
    for other in others:
        if isinstance(other, int | float) and not isinstance(other, bool) and abs(other) > _LARGEST_NUMBER:
            raise TooMuch(f"it counts to {other:.3g}")
        # at worst the subject is repeated as often as a number says, or once for every letter of a text
        by = abs(int(other)) if isinstance(other, int) else size_of(other)
        if own * max(1, by) > 16 * _MOST_LETTERS:
            raise TooMuch("it makes a text that is longer than a chat can be")


def check_operands(operator: str, left: Any, right: Any) -> None:
    """Refuse operands of `+`, `*`, `**` and `%` whose result could be too large.

    Raises:
        TooMuch: the result could be too large.
    """
    if operator == "%" and isinstance(left, str):
        check_format(left)
    numbers = [value for value in (left, right) if isinstance(value, int | float)]
    if len(numbers) == 2:
        bits = [value.bit_length() if isinstance(value, int) else 0 for value in (left, right)]
        if max(bits) > 2**12 or (operator == "**" and bits[0] * abs(right) > 2**12):
            raise TooMuch("it computes with numbers of thousands of digits")
    elif operator == "*" and numbers:
        (n,) = numbers
        if size_of(right if n is left else left) * max(1, n) > _MOST_LETTERS:
            raise TooMuch("it makes a text that is longer than a chat can be")
    elif operator == "+":
        sized([left, right])


def check_format(text: Any) -> None:
    """Refuse a format that fills up with thousands of blanks.

    Raises:
        TooMuch: the format has such a width.
    """
    if _WIDE.search(str(text)):
        raise TooMuch("it formats to a width of thousands of letters")


def _joined(parts: Iterable[str]) -> str:
    """The parts as one text, like `"".join`, but it stops when they become too long."""
    found, total = [], 0
    for part in parts:
        total += len(part)
        if total > _MOST_LETTERS:
            raise TooMuch("it makes a text that is longer than a chat can be")
        found.append(part)
    spend(1, total)
    return "".join(found)
