"""The loss of the task itself, and the counts by which every term of the loss is divided."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from ivlens.tuning.training.data import IGNORED


@dataclass(frozen=True)
class Totals:
    """The counts by which sums are divided: those of a whole step, of which a pass may be a part.

    So the losses of the passes add up to the mean over the step, however the step is divided.

    Attributes:
        rows: Number of examples.
        tokens: Number of their answer tokens.
        after: Number of answer tokens after the first one of each example.
    """

    rows: int
    tokens: int
    after: int

    @classmethod
    def of(cls, answers: Int[Tensor, "batch answer_len"]) -> "Totals":
        """The counts of these examples."""
        real = answers != IGNORED
        # at least 1: answers of one token have nothing after it, and 0 / 0 would be NaN
        return cls(len(answers), max(1, int(real.sum())), max(1, int(real[:, 1:].sum())))


def answer_loss(
    logits: Float[Tensor, "batch answer_len d_vocab"],
    answers: Int[Tensor, "batch answer_len"],
    totals: Totals | None = None,
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood (nats) of the answer tokens; the tokens of prompts do not count."""
    each = cross_entropy(logits.float().flatten(0, 1), answers.flatten(), ignore_index=IGNORED, reduction="sum")
    return each / (totals or Totals.of(answers)).tokens
