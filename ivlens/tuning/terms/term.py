"""What a term of guidance is: what it asks of the frozen model, its loss, its check and its name.

A term is a frozen object with its options. The training loop, its log, several processes, estimates of cost and the
command line read everything they need from these methods, so that a new term is one file and a line in the table of
recipes.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol

from jaxtyping import Float, Int
from torch import Tensor

from ivlens.common.fitting import NOT_FITTING, fit
from ivlens.tuning.terms.measuring import Before
from ivlens.tuning.training.asking import InTraining, Shift, Student
from ivlens.tuning.training.sites import Sites
from ivlens.tuning.training.state import digest_of_tensors

ChangeVectors = Callable[[Tensor], Tensor]
ChangeHeads = Callable[[Any], Any]  # from one `HeadConsistency` to another


class Targets(Protocol):
    """What a term remembers of the frozen model for every one of the task's own examples."""

    @property
    def n_bytes(self) -> int:
        """What they take in memory."""
        ...

    def rows(self, index: Int[Tensor, " rows"]) -> Any:
        """Those of some examples."""
        ...


class Term:
    """One term of guidance, with nothing in it: each method says what a term does that does not override it.

    Attributes:
        name: Its column in the log; of a second term with the same name, `NAME_2`.
        needs_vector: Whether it uses the vector of the task in training.
        flags: Options of `ivlens tune` that change it, and the field that each of them sets.
        lacks: What a guidance without this term is said to have, in the error about one of its `flags`.
    """

    name: ClassVar[str]
    needs_vector: ClassVar[bool] = False
    flags: ClassVar[Mapping[str, str]] = {}
    lacks: ClassVar[str] = ""

    # ---- before a training

    @property
    def needs_heads(self) -> bool:
        """Whether `made` chooses heads by effects of earlier tasks."""
        return False

    @property
    def n_own_prompts(self) -> int:
        """Prompts of its own that it runs in every step, for estimates of cost."""
        return 0

    @property
    def uses_vectors(self) -> bool:
        """Whether vectors, of the task in training or of earlier ones, have a part in it."""
        return self.needs_vector

    def n_measured(self, n_earlier: int) -> int:
        """Tasks whose effects have to be measured for it, of this many earlier ones; for estimates of cost."""
        return n_earlier if self.needs_heads else int(self.needs_vector)

    def made(self, before: Before) -> "Term":
        """This term with what has to be measured in the model before the task, for training on one task."""
        return self

    def changed(self, option: str, value: Any) -> "Term | None":
        """The same with an option of `ivlens tune` at another value; None where it has no such option."""
        if option not in self.flags:
            return None
        made: Any = self
        return replace(made, **{self.flags[option]: value})

    def with_vectors(self, change: ChangeVectors) -> "Term":
        """The same with other vectors, for controls."""
        return self

    def with_heads(self, change: ChangeHeads) -> "Term":
        """The same with other heads, for controls."""
        return self

    def check(self, sites: Sites) -> None:
        """Raise ValueError where the model has no such place, or the term is not complete."""

    # ---- in a training

    def ask(self, frozen: InTraining) -> Any:
        """What it has to know of the frozen model; asked once, when training starts.

        `Targets` where it is one thing for each of the task's own examples, else whatever `passes` needs.
        """
        return None

    def shift(self, shared: Shift, progress: float) -> Shift | None:
        """What is added to the student at the last token of the task's own prompts, at this share of the training."""
        return None

    @property
    def layers_read(self) -> Sequence[int]:
        """Layers whose head outputs it reads on the task's own prompts."""
        return ()

    def loss(self, student: Student, asked: Any, model: InTraining) -> Float[Tensor, ""] | None:
        """Its part of the loss on the task's own examples in one pass, already weighted; None: it has no such part."""
        return None

    def passes(self, step: int, asked: Any, model: InTraining) -> Iterator[Float[Tensor, ""]]:
        """Its part of the loss on prompts of its own, already weighted, a pass at a time.

        Each one is backpropagated before the next is asked for.
        """
        yield from ()

    # ---- what is said of it

    def describe(self) -> dict[str, Any]:
        """Every option, as it goes into logs and into the keys of kept results."""
        return dict(vars(self))

    def tensors(self) -> Sequence[Tensor | None]:
        """Everything it consists of that `describe` does not say."""
        return ()


def check_weight(name: str, value: Any) -> None:
    """Raise ValueError unless it is a finite number, 0 or more."""
    if fit(value, float) is NOT_FITTING or not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r:.60}, expected a finite number, 0 or more.")


def unique_names(terms: Sequence[Term]) -> list[str]:
    """The name of every term in logs: its own, with `_2`, `_3`, ... from the second of a name on."""
    names: list[str] = []
    for term in terms:
        n = 1 + sum(other == term.name or other.startswith(f"{term.name}_") for other in names)
        names.append(term.name if n == 1 else f"{term.name}_{n}")
    return names


def fingerprint_of(term: Term, shared: Shift | None) -> list[Any]:
    """A term's name, options and tensors, by which a saved training knows it; the shared vector only where it is used.

    Args:
        shared: The vector and place that the terms of one guidance share.
    """
    used = shared if term.needs_vector else None
    place = None if used is None else [used.layer, used.site]
    tensors = [*term.tensors(), None if used is None else used.delta]
    return [term.name, term.describe(), place, digest_of_tensors(tensors)]
