"""KL to the frozen model with the vector in it: the student answers as the model did, told by its own vector.

Source: arXiv 2406.12227; docs/method.md, section 9, names the choices that the paper leaves open.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.tuning.terms.term import Term, check_weight
from ivlens.tuning.training.asking import InTraining, Student
from ivlens.tuning.training.data import IGNORED
from ivlens.tuning.training.losses import Totals

Direction = Literal["forward", "reverse"]


@dataclass(frozen=True)
class IVKL(Term):
    """Divergence from the frozen model before the task, run with `α θ` added.

    `last · D(last prompt token) + answers · mean over the answer tokens after it of D`, where `D` is
    `T² KL(teacher ‖ student)` (forward) or `KL(student ‖ teacher)` (reverse, without `T²`), both softened by `T`.

    Attributes:
        weight: `β_kl`.
        direction: forward or reverse.
        temperature: `T`.
        last: weight of the last prompt token, `α1`.
        answers: weight of the answer tokens, `α2`.
        top_n: how many of the teacher's tokens are kept for each position; the others share one tail. Smaller
            vocabularies are kept whole; None: all.
    """

    name: ClassVar[str] = "kl"
    needs_vector: ClassVar[bool] = True
    flags: ClassVar = {
        "kl_weight": "weight",
        "last_weight": "last",
        "answers_weight": "answers",
        "direction": "direction",
        "temperature": "temperature",
        "top_n": "top_n",
    }
    lacks: ClassVar[str] = "no divergence from a teacher with the task's vector"

    weight: float = 0.1
    direction: Direction = "forward"
    temperature: float = 2.0
    last: float = 1.0
    answers: float = 1.0
    top_n: int | None = 4096

    def __post_init__(self) -> None:
        if self.direction not in get_args(Direction):
            raise ValueError(f"direction is {self.direction!r}, expected 'forward' or 'reverse'.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}, expected a number above 0.")
        for name in ("weight", "last", "answers"):
            check_weight(name, getattr(self, name))
        if self.top_n is not None and self.top_n < 1:
            raise ValueError(f"top_n is {self.top_n}, expected 1 or more, or None for all tokens.")

    def ask(self, frozen: InTraining) -> "SoftTargets":
        """The frozen model's distributions for every example, with the vector in it."""
        parts = frozen.ask(frozen.own, lambda answer: SoftTargets.of(answer.logits, self), shift=frozen.shift)
        return SoftTargets.joined(parts)

    def loss(self, student: Student, asked: Any, model: InTraining) -> Float[Tensor, ""]:
        """`weight · L_KL` of one pass."""
        soft = asked.rows(student.index)
        return self.weight * iv_kl(student.answer.logits, soft, student.answers, self, student.totals)


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """The teacher's distribution at every answer position: its likeliest tokens, and what is left.

    A position takes `4 d_vocab + 4` bytes, or `8 top_n + 4` where only the likeliest are kept: 33 kB for the 4,096 of
    `IVKL`, of whatever vocabulary.

    Attributes:
        tokens: the `top_n` likeliest tokens; None: all of them, in order.
        log_probs: log-probabilities (nats) of those, softened by the temperature.
        log_rest: log-probability of all other tokens together, -inf if there are none.
    """

    tokens: Int[Tensor, "batch answer_len top_n"] | None
    log_probs: Float[Tensor, "batch answer_len top_n"]
    log_rest: Float[Tensor, "batch answer_len"]

    @classmethod
    def of(cls, logits: Float[Tensor, "batch answer_len d_vocab"], term: IVKL) -> "SoftTargets":
        """Made from the teacher's logits."""
        log_probs = (logits.float() / term.temperature).log_softmax(-1)
        if term.top_n is None or term.top_n >= log_probs.shape[-1]:
            return cls(None, log_probs, log_probs.new_full(log_probs.shape[:-1], -torch.inf))
        top = log_probs.topk(term.top_n, dim=-1)
        return cls(top.indices.int(), top.values, _log_rest(top.values))  # half of what the index would take

    @classmethod
    def joined(cls, parts: "list[SoftTargets]") -> "SoftTargets":
        """One after the other."""
        tokens = [part.tokens for part in parts if part.tokens is not None]
        return cls(
            torch.cat(tokens) if tokens else None,
            torch.cat([part.log_probs for part in parts]),
            torch.cat([part.log_rest for part in parts]),
        )

    def rows(self, index: Int[Tensor, " rows"]) -> "SoftTargets":
        """Those of some examples."""
        tokens = None if self.tokens is None else self.tokens[index]
        return SoftTargets(tokens, self.log_probs[index], self.log_rest[index])

    @property
    def n_bytes(self) -> int:
        """What they take in memory."""
        tensors = [self.log_probs, self.log_rest, *([] if self.tokens is None else [self.tokens])]
        return sum(tensor.nbytes for tensor in tensors)


def iv_kl(
    logits: Float[Tensor, "batch answer_len d_vocab"],
    targets: SoftTargets,
    answers: Int[Tensor, "batch answer_len"],
    term: IVKL,
    totals: Totals | None = None,
) -> Float[Tensor, ""]:
    """`last · D(last prompt token) + answers · mean D over answer tokens` (nats), see `IVKL`; without its weight.

    The first column of the answer positions is the last prompt token, the others are real answer tokens; padding does
    not count (the reference code sums over it).
    """
    mine = (logits.float() / term.temperature).log_softmax(-1)
    if targets.tokens is not None:
        mine = mine.gather(-1, targets.tokens.long())
        mine = torch.cat([mine, _log_rest(mine)[..., None]], -1)
        theirs = torch.cat([targets.log_probs, targets.log_rest[..., None]], -1)
    else:
        theirs = targets.log_probs
    if term.direction == "forward":
        each = _divergence(theirs, mine) * term.temperature**2
    else:
        each = _divergence(mine, theirs)
    totals = totals or Totals.of(answers)
    after = (each[:, 1:] * (answers[:, 1:] != IGNORED)).sum()
    return term.last * each[:, 0].sum() / totals.rows + term.answers * after / totals.after


def _divergence(p: Float[Tensor, "*rows n"], q: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
    """`KL(p ‖ q)` of log-probabilities; where `p` is 0 nothing is added."""
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1)


def _log_rest(log_probs: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
    """Log of what is left of the probability, kept away from log 0 by the rounding of float32."""
    return torch.log1p(-log_probs.exp().sum(-1).clamp(max=1 - 1e-6))
