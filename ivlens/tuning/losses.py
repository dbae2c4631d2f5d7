"""The terms of the training loss: pure functions of logits, head outputs and the teacher's targets."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from ivlens.tuning.data import IGNORED
from ivlens.tuning.terms import IVKL


@dataclass(frozen=True)
class Totals:
    """What means are taken over: the counts of a whole step, of which a pass may be a part.

    Attributes:
        rows: examples.
        tokens: their answer tokens.
        after: those after the first of each.
    """

    rows: int
    tokens: int
    after: int

    @classmethod
    def of(cls, answers: Int[Tensor, "batch answer_len"]) -> "Totals":
        """Those of these examples."""
        real = answers != IGNORED
        return cls(len(answers), max(1, int(real.sum())), max(1, int(real[:, 1:].sum())))


def answer_loss(
    logits: Float[Tensor, "batch answer_len d_vocab"],
    answers: Int[Tensor, "batch answer_len"],
    totals: Totals | None = None,
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood (nats) of the answer tokens; prompts are not learned."""
    each = cross_entropy(logits.float().flatten(0, 1), answers.flatten(), ignore_index=IGNORED, reduction="sum")
    return each / (totals or Totals.of(answers)).tokens


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


def head_distance(
    z: Float[Tensor, "batch parts width"], before: Float[Tensor, "batch parts width"], totals: Totals | None = None
) -> Float[Tensor, ""]:
    """`Σ ‖z - z⁰‖² / width` over the parts (heads, or the vector they write), averaged over the batch."""
    return (z.float() - before.float()).square().mean(-1).sum() / (len(z) if totals is None else totals.rows)


def _divergence(p: Float[Tensor, "*rows n"], q: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
    """`KL(p ‖ q)` of log-probabilities; where `p` is 0 nothing is added."""
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1)


def _log_rest(log_probs: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
    """Log of what is left of the probability, kept away from log 0 by the rounding of float32."""
    return torch.log1p(-log_probs.exp().sum(-1).clamp(max=1 - 1e-6))
