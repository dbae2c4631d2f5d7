"""Chat templates rendered within limits of steps and letters: they are programs of other people.

A template is compiled as transformers compiles it, after changes to its syntax tree: every round of a loop, every macro
and every joining of texts is a call that is counted. Calls, filters and operators are looked at before they run,
so that nothing is made that is larger than a chat can be.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache, wraps
from typing import Any

_MOST_STEPS = 100_000  # rounds, calls and filters for one text; a chat of ten turns takes some hundreds
_MOST_LETTERS = 2**19  # of one value
_ITEM = 16  # letters that an item of a list counts as
_MOST_WORK = 2**26  # letters of all values together
_LARGEST_NUMBER = 10_000  # that a method or filter is given: widths, counts
_WIDE = re.compile(r"\*|\d{5}")  # in a format
_FORMATS = ("format", "format_map")
_OWN_NAMES = ("_loop_vars", "_block_vars")
_LEFT_OUT = ("lipsum", "urlize", "striptags", "pprint", "xmlattr", "forceescape")  # of web pages, and slow


class TooMuch(ValueError):
    """A template that goes on and on."""


@dataclass
class _Budget:
    steps: int = _MOST_STEPS
    work: int = _MOST_WORK


_BUDGET: ContextVar[_Budget] = ContextVar("_BUDGET")


def rendered(source: str, values: Mapping[str, Any]) -> str:
    """What a chat template writes.

    Args:
        source: The template.
        values: What it is told: messages, special tokens, options.

    Raises:
        TooMuch: it takes more steps or makes longer texts than any chat does.
        Exception: whatever the template raises, and its language for what it cannot do.
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
    return _environment().from_string(source)


@cache
def _environment() -> Any:
    """That of transformers, with guards."""
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from transformers.utils.chat_template_utils import _compile_jinja_template

    plain: Any = _compile_jinja_template("").environment

    class Guarded(ImmutableSandboxedEnvironment):
        """Counts and looks."""

        intercepted_binops = frozenset(("+", "*", "**", "%"))

        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            tree = super()._parse(source, name, filename)
            for loop in [*tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))]:
                loop.body.insert(0, nodes.ExprStmt(_call("count_step", [])).set_lineno(loop.lineno))
            return _with_joined(tree)

        def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
            spend(1)
            if obj is self.count_step:
                return ""
            if obj is self.join_texts or obj is self.weighed:
                return obj(*args)
            # a call in a loop gets the loop's names from jinja as well, which it is not told
            given = (*args, *(value for name, value in kwargs.items() if name not in _OWN_NAMES))
            sized(given)
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
            return ""

        @staticmethod
        def weighed(value: Any) -> Any:
            return sized(value)

        @staticmethod
        def join_texts(*parts: Any) -> str:
            sized(list(parts))
            return "".join(map(str, parts))

    def _call(name: str, args: list[Any]) -> nodes.Call:
        return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None)

    def _weighed(node: Any) -> Any:
        return _call("weighed", [node]).set_lineno(node.lineno).set_environment(node.environment)

    def _with_joined(node: Any) -> Any:
        """The tree with a call in the place of every `a ~ b`, and around what is compared, cut or looped over."""
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

    made: Any = object.__new__(Guarded)
    made.__dict__.update(plain.__dict__)
    made.cache = None
    made.extensions = {name: extension.bind(made) for name, extension in plain.extensions.items()}
    made.filters = {name: _guarded(made_filter) for name, made_filter in plain.filters.items() if name not in _LEFT_OUT}
    made.globals = {name: value for name, value in plain.globals.items() if name not in _LEFT_OUT}
    made.finalize = sized
    made.concat = _joined
    return made


def _guarded(made_filter: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is counted and looks at what it is given; `wraps` keeps what jinja marked it with."""

    @wraps(made_filter)
    def call(*args: Any, **kwargs: Any) -> Any:
        spend(1)
        # marked filters get jinja's own objects first
        given = [value for value in (*args, *kwargs.values()) if not _is_own(value)]
        if given:
            sized(given)
            if made_filter.__name__ == "do_format":
                check_format(given[0])
            check_given(given[0], given[1:])
        return sized(made_filter(*args, **kwargs))

    return call


def _is_own(value: Any) -> bool:
    return type(value).__module__.startswith("jinja2.") or hasattr(value, "intercepted_binops")


def spend(steps: int, letters: int = 0) -> None:
    """Take from what one rendering may use."""
    budget = _BUDGET.get(None)
    if budget is None:  # while a template is compiled
        return
    budget.steps -= steps
    budget.work -= letters
    if budget.steps < 0 or budget.work < 0:
        raise TooMuch("it takes more steps, or makes more text, than a chat needs")


def sized(value: Any) -> Any:
    """The value, if it is no larger than what a chat may hold."""
    n = size_of(value)
    if n > _MOST_LETTERS:
        raise TooMuch("it makes a text that is longer than a chat can be")
    spend(0, n)
    return value


def size_of(value: Any) -> int:
    """Letters of a value, and of all that it consists of; just more than the limit where it is larger."""
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
            total += 1 + one.bit_length() // 3
        else:
            total += 1
    return total


def check_given(subject: Any, others: Iterable[Any]) -> None:
    """Refuse numbers, and pairs of long texts, of which a method or filter would make too much."""
    own = size_of(subject)
    for other in others:
        if isinstance(other, int | float) and not isinstance(other, bool) and abs(other) > _LARGEST_NUMBER:
            raise TooMuch(f"it counts to {other:.3g}")
        by = abs(int(other)) if isinstance(other, int) else size_of(other)
        if own * max(1, by) > 16 * _MOST_LETTERS:
            raise TooMuch("it makes a text that is longer than a chat can be")


def check_operands(operator: str, left: Any, right: Any) -> None:
    """The same for `+`, `*`, `**` and `%`."""
    if operator == "%" and isinstance(left, str):
        check_format(left)
    numbers = [value for value in (left, right) if isinstance(value, int | float)]
    if len(numbers) == 2:
        bits = [value.bit_length() if isinstance(value, int) else 0 for value in (left, right)]
        if max(bits) > 2**12 or (operator == "**" and bits[0] * abs(right) > 2**12):
            raise TooMuch("it reckons with numbers of thousands of digits")
    elif operator == "*" and numbers:
        (n,) = numbers
        if size_of(right if n is left else left) * max(1, n) > _MOST_LETTERS:
            raise TooMuch("it makes a text that is longer than a chat can be")
    elif operator == "+":
        sized([left, right])


def check_format(text: Any) -> None:
    """Refuse a format that fills up with thousands of blanks."""
    if _WIDE.search(str(text)):
        raise TooMuch("it formats to a width of thousands of letters")


def _joined(parts: Iterable[str]) -> str:
    """`"".join`, which stops when it has too much."""
    found, total = [], 0
    for part in parts:
        total += len(part)
        if total > _MOST_LETTERS:
            raise TooMuch("it makes a text that is longer than a chat can be")
        found.append(part)
    spend(1, total)
    return "".join(found)
