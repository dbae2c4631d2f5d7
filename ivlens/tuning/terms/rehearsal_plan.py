"""`Rehearse`: a rehearsal as recipes describe it, before its prompts are made for one model and task."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from ivlens.tuning.terms.heads import HeadConsistency
from ivlens.tuning.terms.kl import IVKL
from ivlens.tuning.terms.measuring import Before
from ivlens.tuning.terms.rehearsal import REHEARSED, Rehearsal
from ivlens.tuning.terms.rehearsal_prompts import RehearsalOptions, instruction_rehearsal, vector_rehearsal
from ivlens.tuning.terms.term import ChangeHeads, Term

RehearsedBy = Literal["instructions", "vectors", "translations"]


@dataclass(frozen=True)
class Rehearse(Term):
    """A rehearsal without its prompts; `iv_guidance` makes them for the new task and the earlier ones.

    Attributes:
        by: How the earlier task is given to the models: by its `instructions`, by its `vectors`, or by `translations`,
            where the student gets the instruction and the frozen model the vector.
        kl: How answers are compared; None: they are not.
        heads: Heads whose outputs are held on these prompts, with their weight; None: no heads are.
        n_tokens: Number of tokens of the frozen model's own answers at which `kl` compares.
    """

    name: ClassVar[str] = "rehearsal"
    flags: ClassVar = {
        "rehearsal_weight": "weight",
        "direction": "direction",
        "temperature": "temperature",
        "top_n": "top_n",
        "heads_weight": "weight",
    }
    lacks: ClassVar[str] = "no rehearsal of answers"

    by: RehearsedBy = "instructions"
    kl: IVKL | None = REHEARSED
    heads: HeadConsistency | None = None
    n_tokens: int = 1

    def __post_init__(self) -> None:
        if self.by not in get_args(RehearsedBy):
            raise ValueError(f"by is {self.by!r}, expected {', '.join(get_args(RehearsedBy))}.")

    @property
    def needs_heads(self) -> bool:
        """Whether `made` chooses heads, because they are held and none were named."""
        return self.heads is not None and self.heads.needs_heads

    @property
    def n_own_prompts(self) -> int:
        """Number of rehearsed prompts in every step."""
        return Rehearsal.per_step

    def n_measured(self, n_earlier: int) -> int:
        """Number of tasks whose effects must be measured: all earlier ones, if their heads or vectors are used."""
        return n_earlier if self.needs_heads or self.uses_vectors else 0

    @property
    def uses_vectors(self) -> bool:
        """Whether at least one of the two models gets earlier tasks as vectors."""
        return self.by != "instructions"

    def changed(self, option: str, value: Any) -> "Rehearse | None":
        """The rehearsal with an option of its KL or its heads set to this value; None where it has no such option."""
        if option == "heads_weight":
            return None if self.heads is None else replace(self, heads=self.heads.changed(option, value))
        if option not in self.flags or self.kl is None:
            return None
        return replace(self, kl=replace(self.kl, **{self.flags[option]: value}))

    def with_heads(self, change: ChangeHeads) -> "Rehearse":
        """The rehearsal with its heads changed, for a control; without heads, itself."""
        return self if self.heads is None else replace(self, heads=change(self.heads))

    def made(self, before: Before) -> Rehearsal:
        """The rehearsal with its prompts, which have inputs of the new task, each for one earlier task.

        Raises:
            ValueError: there are no earlier tasks.
        """
        if not before.earlier:
            raise ValueError(f"rehearsal of {self.by} got no earlier tasks, expected those that shall be kept.")
        options = RehearsalOptions(
            layer=before.layer,
            site=before.site,
            kl=self.kl,
            heads=None if self.heads is None else self.heads.made(before),
            n_tokens=self.n_tokens,
            recipe=before.recipe,
        )
        model, task, inputs, seed = before.model, before.task, before.inputs, before.seed
        deltas = before.deltas() if self.uses_vectors else None
        if self.by == "vectors" and deltas is not None:
            return vector_rehearsal(model, task, inputs, deltas, options=options, seed=seed)
        return instruction_rehearsal(model, task, inputs, before.earlier, deltas=deltas, options=options, seed=seed)

    def describe(self) -> dict[str, Any]:
        """Every option as plain values, for logs and for the keys of stored results."""
        parts = {name: part and part.describe() for name, part in (("kl", self.kl), ("heads", self.heads))}
        return {"by": self.by, "n_tokens": self.n_tokens, **parts}
