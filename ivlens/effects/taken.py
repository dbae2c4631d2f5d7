"""How much of the clean score a corruption takes away, on the prompts that effects are measured on."""

from dataclasses import dataclass, replace
from math import exp, nan

from jaxtyping import Float
from numpy import isfinite
from torch import Tensor, cat

from ivlens.common.intervals import t_interval
from ivlens.forward.inputs import check_answers
from ivlens.forward.scoring import answer_passes, score_answers, scored_columns
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.batch import PromptBatch

LEAST_SHARE = 0.2  # of the clean score that has to be lost, so that heads have something to bring back
_LARGEST_EXPONENT = 700.0  # exp() of a larger number raises OverflowError


@dataclass(frozen=True)
class Taken:
    """Mean of clean − corrupted score over the measured prompts, with its 95 % t interval, paired by prompt.

    Attributes:
        mean, low, high: The mean and the ends of its interval, in the unit of the score; the ends are NaN for a single
            prompt.
        share: The part of the clean score that is lost. For log-probabilities it is the part of the probability,
            `1 - exp(-mean)`; NaN for a logit difference that is not positive on clean prompts.
    """

    mean: float
    low: float
    high: float
    share: float

    @property
    def is_enough(self) -> bool:
        """Whether something was taken away: an interval above 0, and at least a fifth of the clean score."""
        # negated, since comparisons with NaN are False: a value that is not known does not count against it
        return not (self.low <= 0 or self.mean <= 0 or self.share < LEAST_SHARE)

    def __str__(self) -> str:
        # a clean score near 0 makes a share of thousands of percent, which says nothing
        share = f", {100 * self.share:.0f} % of the clean score" if abs(self.share) <= 1 else ""
        between = "" if self.low != self.low else f" ({self.low:+.3g} to {self.high:+.3g})"
        return f"clean minus corrupted score {self.mean:+.3g}{between}{share}"

    @classmethod
    def of(cls, clean: Float[Tensor, " batch"], corrupted: Float[Tensor, " batch"], score: str) -> "Taken":
        """The loss from clean to corrupted scores of the same prompts; NaN where a score is not finite."""
        lost = (clean.double() - corrupted.double()).cpu().numpy()
        if not isfinite(lost).all():
            return cls(nan, nan, nan, nan)
        whole = float(clean.double().mean())
        mean, low, high = t_interval(lost)
        share = 1 - exp(min(-mean, _LARGEST_EXPONENT)) if score == "logprob" else mean / whole if whole > 0 else nan
        return cls(mean, low, high, share)


def scores_of(
    model: TransformerBridge, batch: PromptBatch, score: str, foils: Tensor | None, batch_size: int
) -> Float[Tensor, " batch"]:
    """The score of each prompt, without any patch.

    Raises:
        ValueError: a prompt that does not fit the model.
    """
    answers = scored_columns(score, check_answers(model, batch.answer_tokens, len(batch)))
    foils = None if foils is None else foils.to(answers.device)
    return cat(
        [
            score_answers(score, logits, answers[rows], None if foils is None else foils[rows]).cpu()
            for rows, logits in answer_passes(model, replace(batch, answer_tokens=answers), batch_size=batch_size)
        ]
    )
