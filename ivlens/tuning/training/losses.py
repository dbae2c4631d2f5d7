"""The loss of the task itself, and what the means of every term are taken over."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from ivlens.tuning.training.data import IGNORED


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
