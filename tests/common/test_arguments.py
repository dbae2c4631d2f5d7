"""Arguments held against signatures: what is taken, what means the same, what is refused, and in which words."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.common.arguments import checked, fitted, said, shown
from ivlens.common.checks import check_count, check_counts
from ivlens.common.names import path_of

NAN = float("nan")


class Place(NamedTuple):
    layer: int
    alpha: float


@checked
@dataclass(frozen=True)
class Options:
    n: int = 1
    alphas: Sequence[float] = (1.0,)
    names: tuple[str, ...] = ()
    table: "NotHere | None" = None

    def taken(self, k: int) -> int:
        return k


class NotHere:
    """Of the name that `Options` asks for."""


@pytest.mark.parametrize(
    ("value", "hint", "wanted"),
    [
        (np.int64(2), int, 2),
        (torch.tensor(2), int, 2),
        (np.float32(0.5), float, 0.5),
        (np.int64(2), float | int, 2),
        (np.bool_(True), bool, True),
        ("one", Sequence[str], ("one",)),
        ("one", tuple[str, ...] | None, ("one",)),
        (["a", "b"], tuple[str, ...], ("a", "b")),
        (np.array([1, 2]), Sequence[int], (1, 2)),
        ((n for n in range(2)), Sequence[int], (0, 1)),
        ({3}, Iterable[int], (3,)),
        ((1, np.float32(2)), Place | None, Place(1, 2.0)),
        (None, int | None, None),
        (len, Callable[[int], object] | bool, len),
        ({"a": 1}, Mapping[str, Any], {"a": 1}),
        (Path("x"), str | Path, Path("x")),
        (torch.zeros(2, 3), Float[Tensor, "a b"], torch.zeros(2, 3)),
    ],
)
def test_what_means_the_same_is_taken(value: Any, hint: Any, wanted: Any):
    found = fitted("x", value, hint)
    assert type(found) is type(wanted)
    assert torch.equal(found, wanted) if isinstance(found, Tensor) else found == wanted


@pytest.mark.parametrize(
    ("value", "hint", "error", "words"),
    [
        (True, int, ValueError, "x is True, expected a whole number."),
        (2.5, int, ValueError, "x is 2.5, expected a whole number."),
        (10**400, int, ValueError, "x is a number of more than 18 digits, expected a whole number."),
        (NAN, float, ValueError, "x is nan, expected a finite number."),
        (np.float64("inf"), float, ValueError, "expected a finite number."),
        (1, bool, ValueError, "x is 1, expected True or False."),
        (object(), int, ValueError, "x is object, expected a whole number."),
        (b"a", Sequence[str], TypeError, "x is b'a', expected a list"),
        ({"b", "a"}, Sequence[str], TypeError, "expected a list"),
        (torch.zeros(2, 2), Sequence[float], TypeError, "expected a list"),
        ([1, "b"], Sequence[int], ValueError, r"x\[1\] is 'b', expected a whole number."),
        ("c", Literal["a", "b"], ValueError, "x is 'c', expected one of a, b."),
        (1, str | Path, TypeError, "x is 1, expected a path."),
        (Place(1, NAN), Place | None, ValueError, "alpha is nan, expected a finite number."),
        (torch.zeros(2), Float[Tensor, "a b"], TypeError, r"x is Tensor, expected a tensor \[a b\] of floats."),
        (torch.zeros(2, 2, dtype=torch.long), Float[Tensor, "a b"], TypeError, "expected a tensor"),
        (1, Callable[[], None], TypeError, "expected a function"),
        ("x" * 10**6, int, ValueError, r"x is 'x+\.\.\., expected"),
        (int, str, TypeError, "x is int, expected a text."),
    ],
)
def test_what_is_something_else_is_refused(value: Any, hint: Any, error: type[Exception], words: str):
    with pytest.raises(error, match=words) as raised:
        fitted("x", value, hint)
    assert len(str(raised.value)) <= 160 and "\n" not in str(raised.value)


def test_what_is_right_stays_as_it_is():
    for value, hint in (([1, 2], Sequence[int]), (("a",), tuple[str, ...]), ([0.5, 1], Sequence[float | int])):
        assert fitted("x", value, hint) is value


def test_a_dataclass_takes_what_means_the_same_and_its_methods_check():
    made = Options(np.int64(3), np.array([0.5, 2.0]), "one")
    assert made == Options(3, (0.5, 2.0), ("one",)) and type(made.n) is int and made.taken(np.int64(2)) == 2
    with pytest.raises(ValueError, match="k is None, expected a whole number"):
        made.taken(None)
    with pytest.raises(TypeError, match="table is 5, expected a NotHere or None"):
        Options(table=5)
    assert Options(table=NotHere()).table is not None


def test_a_name_that_does_not_exist_is_pythons_error():
    @checked
    def called(a: int) -> int:
        return a

    for wrong in (lambda: called(b=1), lambda: called(1, 2), lambda: called()):
        with pytest.raises(TypeError, match=r"called\(\)"):
            wrong()


def test_words():
    assert said(int | float | None) == "a finite number or None"
    assert said(Literal["a"] | None) == "one of a or None"
    assert shown(None) == "None" and shown([]) == "[]" and shown([1]) == "list" and shown(len) == "len"


def test_counts_and_paths():
    assert check_count("n", np.int64(2), 1) == 2 and check_count("n", None, 1) is None
    for value in (0, -1, True, 2.5, NAN, object(), "2", 2**60):
        with pytest.raises(ValueError, match=r"^n is .*, expected a whole number, 1 or more\.$"):
            check_count("n", value, 1)
    with pytest.raises(ValueError, match="expected a whole number, 0 to 10,000"):
        check_count("n", 10**9, 0, 10_000)
    made = Options()
    object.__setattr__(made, "n", np.int64(7))
    check_counts(made, n=1)
    assert type(made.n) is int
    for path in ("", " ", "a\0b", "x" * 300, "a/" * 3000):
        with pytest.raises(ValueError, match="^out is .*expected the path"):
            path_of(path, "out")
    assert path_of("a/b", "out") == Path("a/b")
