"""`IVKL`: the student must answer as the frozen model answers with the Instruction Vector added (KL divergence).

Source: arXiv 2406.12227; docs/method.md, section 9 Guided fine-tuning, names the choices that the paper leaves open.
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
    """KL divergence between the student and a teacher: the frozen model before the task, with `α θ` added.

    `last · D(last prompt token) + answers · mean of D over the answer tokens after it`, where `D` is
    `T² KL(teacher ‖ student)` (forward) or `KL(student ‖ teacher)` (reverse), both models softened by `T`. See
    docs/method.md, section 9 Guided fine-tuning.

    Attributes:
        weight: Weight of the term in the loss, `β_kl`.
        direction: `forward` or `reverse`.
        temperature: Temperature `T`, by which the logits of both models are divided.
        last: Weight of the last prompt token.
        answers: Weight of the answer tokens.
        top_n: Number of the teacher's likeliest tokens that are stored at each position; all other tokens count as one.
            All tokens are stored with None, or if the vocabulary has no more.
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
        # 0 would leave nothing but the tail, whose divergence is 0
        if self.top_n is not None and self.top_n < 1:
            raise ValueError(f"top_n is {self.top_n}, expected 1 or more, or None for all tokens.")

    def ask(self, frozen: InTraining) -> "SoftTargets":
        """The teacher's distributions for every example that is read: the frozen model's, with the vector added."""
        parts = frozen.ask(frozen.own, lambda answer: SoftTargets.of(answer.logits, self), shift=frozen.shift)
        return SoftTargets.joined(parts)

    def loss(self, student: Student, asked: Any, model: InTraining) -> Float[Tensor, ""]:
        """The weighted divergence in one pass, `weight · L_KL`."""
        soft = asked.rows(student.index)
        return self.weight * iv_kl(student.answer.logits, soft, student.answers, self, student.totals)


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """The teacher's distribution at every answer position: its likeliest tokens, and all others as one.

    A position takes `4 d_vocab + 4` bytes with all tokens, `8 top_n + 4` bytes with the likeliest ones: 33 kB for the
    4,096 of `IVKL`, however large the vocabulary is.

    Attributes:
        tokens: The `top_n` likeliest tokens; None: all tokens, in the vocabulary's order.
        log_probs: Log-probabilities (nats) of these tokens, softened by the temperature.
        log_rest: Log-probability (nats) of all other tokens together; -inf if there are none.
    """

    tokens: Int[Tensor, "batch answer_len top_n"] | None
    log_probs: Float[Tensor, "batch answer_len top_n"]
    log_rest: Float[Tensor, "batch answer_len"]

    @classmethod
    def of(cls, logits: Float[Tensor, "batch answer_len d_vocab"], term: IVKL) -> "SoftTargets":
        """The targets that the teacher's logits give, with the temperature and `top_n` of the term."""
        log_probs = (logits.float() / term.temperature).log_softmax(-1)
        if term.top_n is None or term.top_n >= log_probs.shape[-1]:
            return cls(None, log_probs, log_probs.new_full(log_probs.shape[:-1], -torch.inf))
        top = log_probs.topk(term.top_n, dim=-1)
        return cls(top.indices.int(), top.values, _log_rest(top.values))  # int32: half the memory of torch's int64

    @classmethod
    def joined(cls, parts: "list[SoftTargets]") -> "SoftTargets":
        """The targets of several batches in one."""
        tokens = [part.tokens for part in parts if part.tokens is not None]
        return cls(
            torch.cat(tokens) if tokens else None,
            torch.cat([part.log_probs for part in parts]),
            torch.cat([part.log_rest for part in parts]),
        )

    def rows(self, index: Int[Tensor, " rows"]) -> "SoftTargets":
        """The targets of some examples."""
        tokens = None if self.tokens is None else self.tokens[index]
        return SoftTargets(tokens, self.log_probs[index], self.log_rest[index])

    @property
    def n_bytes(self) -> int:
        """The memory that the targets take, in bytes."""
        tensors = [self.log_probs, self.log_rest, *([] if self.tokens is None else [self.tokens])]
        return sum(tensor.nbytes for tensor in tensors)


def iv_kl(
    logits: Float[Tensor, "batch answer_len d_vocab"],
    targets: SoftTargets,
    answers: Int[Tensor, "batch answer_len"],
    term: IVKL,
    totals: Totals | None = None,
) -> Float[Tensor, ""]:
    """The divergence of `IVKL` in nats, `last · D(last prompt token) + answers · mean of D`, without the term's weight.

    Column 0 is the last prompt token; the columns after it are answer tokens. Padding does not count (the reference
    code sums over it).
    """
    # float32: softmax over a large vocabulary loses too much in half precision
    mine = (logits.float() / term.temperature).log_softmax(-1)
    if targets.tokens is not None:
        # the student's probabilities of the teacher's tokens, and of all others as one
        mine = mine.gather(-1, targets.tokens.long())
        mine = torch.cat([mine, _log_rest(mine)[..., None]], -1)
        theirs = torch.cat([targets.log_probs, targets.log_rest[..., None]], -1)
    else:
        theirs = targets.log_probs
    if term.direction == "forward":
        # T² makes up for the gradients, which shrink with 1 / T²
        each = _divergence(theirs, mine) * term.temperature**2
    else:
        each = _divergence(mine, theirs)
    totals = totals or Totals.of(answers)
    after = (each[:, 1:] * (answers[:, 1:] != IGNORED)).sum()
    return term.last * each[:, 0].sum() / totals.rows + term.answers * after / totals.after


def _divergence(p: Float[Tensor, "*rows n"], q: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
    """`KL(p ‖ q)` of log-probabilities; a token with `p = 0` adds nothing (the formula alone would give NaN)."""
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1)


def _log_rest(log_probs: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
    """Log of the probability that is left for all other tokens."""
    # rounding may make the sum 1 or more, and the log -inf or NaN: 1e-6 is a few roundings of float32
    return torch.log1p(-log_probs.exp().sum(-1).clamp(max=1 - 1e-6))
