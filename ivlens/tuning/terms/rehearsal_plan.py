"""Plans of a rehearsal, as recipes name them: what tells the earlier task, and which part of the answer is held."""

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
    """A rehearsal whose prompts `iv_guidance` will make for one task and the earlier ones.

    Attributes:
        by: What tells the earlier task: its `instructions`, its `vectors`, or `translations`: instructions that the
            frozen model gets as vectors.
        kl: How the answers are compared; None leaves them out.
        heads: Heads that are held there, with their weight; None leaves them out.
        n_tokens: Of the frozen model's own answers that are rehearsed.
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
        """Whether `made` chooses heads."""
        return self.heads is not None and self.heads.needs_heads

    @property
    def n_own_prompts(self) -> int:
        """Prompts in every step."""
        return Rehearsal.per_step

    def n_measured(self, n_earlier: int) -> int:
        """Tasks whose effects have to be measured: the earlier ones, for their heads or vectors."""
        return n_earlier if self.needs_heads or self.uses_vectors else 0

    @property
    def uses_vectors(self) -> bool:
        """Whether earlier tasks are told by their vectors, to one of the two models at least."""
        return self.by != "instructions"

    def changed(self, option: str, value: Any) -> "Rehearse | None":
        """With an option of its divergence, or of the heads that it holds, at another value."""
        if option == "heads_weight":
            return None if self.heads is None else replace(self, heads=self.heads.changed(option, value))
        if option not in self.flags or self.kl is None:
            return None
        return replace(self, kl=replace(self.kl, **{self.flags[option]: value}))

    def with_heads(self, change: ChangeHeads) -> "Rehearse":
        """With other heads, where it holds any."""
        return self if self.heads is None else replace(self, heads=change(self.heads))

    def made(self, before: Before) -> Rehearsal:
        """With prompts of the new task's inputs, asked for the earlier tasks.

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
        """Every option, as it goes into the keys of kept results."""
        parts = {name: part and part.describe() for name, part in (("kl", self.kl), ("heads", self.heads))}
        return {"by": self.by, "n_tokens": self.n_tokens, **parts}
