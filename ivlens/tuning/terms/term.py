"""`Term`: what a term of guidance can do. It has a name, asks the frozen model, adds to the loss and checks itself.

A term is an immutable object that holds its options. The training loop and its log, training on several processes,
estimates of cost and the command line get all they need from the methods here. So a new term is one file, and one line
in `RECIPES` of `ivlens/tuning/builder.py`.
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
    """What a term stores of the frozen model's answers, one entry for each of the task's own examples that are read."""

    @property
    def n_bytes(self) -> int:
        """The memory that the targets take, in bytes."""
        ...

    def rows(self, index: Int[Tensor, " rows"]) -> Any:
        """The targets of some examples."""
        ...


class Term:
    """A term of guidance that does nothing; real terms override the methods that they need.

    Attributes:
        name: The term's column in the log; a second term with the same name gets the column `NAME_2`.
        needs_vector: Whether the term uses the vector of the task in training.
        flags: Options of `ivlens tune` that change the term: the option's name, and the field that it sets.
        lacks: What the error about `flags` says that a guidance without this term has, such as `no heads to hold`.
    """

    name: ClassVar[str]
    needs_vector: ClassVar[bool] = False
    flags: ClassVar[Mapping[str, str]] = {}
    lacks: ClassVar[str] = ""

    # ---- before a training

    @property
    def needs_heads(self) -> bool:
        """Whether `made` chooses heads by the effects of earlier tasks."""
        return False

    @property
    def n_own_prompts(self) -> int:
        """Number of prompts of its own that the term runs in every step, for estimates of cost."""
        return 0

    @property
    def uses_vectors(self) -> bool:
        """Whether the term uses any vector, of the task in training or of earlier tasks."""
        return self.needs_vector

    def n_measured(self, n_earlier: int) -> int:
        """Number of tasks whose effects must be measured for the term, for estimates of cost.

        Args:
            n_earlier: Number of earlier tasks.
        """
        return n_earlier if self.needs_heads else int(self.needs_vector)

    def made(self, before: Before) -> "Term":
        """The term for training on one task, with everything that must be measured in the model before that task."""
        return self

    def changed(self, option: str, value: Any) -> "Term | None":
        """The term with an option of `ivlens tune` set to this value; None where the term has no such option."""
        if option not in self.flags:
            return None
        made: Any = self
        return replace(made, **{self.flags[option]: value})

    def with_vectors(self, change: ChangeVectors) -> "Term":
        """The term with its vectors changed, for a control; a term without vectors returns itself."""
        return self

    def with_heads(self, change: ChangeHeads) -> "Term":
        """The term with its heads changed, for a control; a term without heads returns itself."""
        return self

    def check(self, sites: Sites) -> None:
        """Raise ValueError where the model lacks a place or head that the term uses, or the term is not complete."""

    # ---- in a training

    def ask(self, frozen: InTraining) -> Any:
        """What the term needs to know of the frozen model, asked once when training starts.

        `Targets` if there is an entry for each example of `frozen.own`, those of the task's own that the steps read;
        otherwise anything that `passes` needs.
        """
        return None

    def shift(self, shared: Shift, progress: float) -> Shift | None:
        """The vector to add to the student at the last token of the task's own prompts; None: no vector.

        Args:
            shared: The vector and place that the terms of one guidance share.
            progress: The share of the training that is over, from 0 to 1.
        """
        return None

    @property
    def layers_read(self) -> Sequence[int]:
        """Layers whose head outputs the term reads on the task's own prompts."""
        return ()

    @property
    def streams_read(self) -> Sequence[int]:
        """Layers after which the term reads the residual stream on the task's own prompts."""
        return ()

    def loss(self, student: Student, asked: Any, model: InTraining) -> Float[Tensor, ""] | None:
        """The term's weighted loss on the task's own examples of one pass; None where it has no such loss.

        Args:
            asked: What `ask` returned.
        """
        return None

    def passes(self, step: int, asked: Any, model: InTraining) -> Iterator[Float[Tensor, ""]]:
        """Yield the term's weighted loss on prompts of its own, one pass at a time.

        Each pass is backpropagated before the next one is asked for, so that one graph at a time is in memory.
        """
        yield from ()

    # ---- for logs and stored results

    def describe(self) -> dict[str, Any]:
        """Every option as plain values, for logs and for the keys of stored results."""
        return dict(vars(self))

    def tensors(self) -> Sequence[Tensor | None]:
        """All tensors of the term, which `describe` leaves out."""
        return ()


def check_weight(name: str, value: Any) -> None:
    """Raise ValueError unless the value is a finite number, 0 or more."""
    if fit(value, float) is NOT_FITTING or not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r:.60}, expected a finite number, 0 or more.")


def unique_names(terms: Sequence[Term]) -> list[str]:
    """The log's column for every term: its name, and `NAME_2`, `NAME_3`, ... for further terms of that name."""
    names: list[str] = []
    for term in terms:
        n = 1 + sum(other == term.name or other.startswith(f"{term.name}_") for other in names)
        names.append(term.name if n == 1 else f"{term.name}_{n}")
    return names


def fingerprint_of(term: Term, shared: Shift | None) -> list[Any]:
    """A term's name, options and tensors, by which a saved training recognises it.

    Args:
        shared: The vector and place that the terms of one guidance share; it counts only where the term uses it.
    """
    used = shared if term.needs_vector else None
    place = None if used is None else [used.layer, used.site]
    tensors = [*term.tensors(), None if used is None else used.delta]
    return [term.name, term.describe(), place, digest_of_tensors(tensors)]
