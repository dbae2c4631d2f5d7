"""Scores of interventions on each prompt, and the table rows with means and intervals that are made from them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ivlens.common.checks import as_items
from ivlens.common.intervals import clustered_difference, holm, named, p_of_draws, t_interval, wilson

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("accuracy", "exact", "prob", "logprob")
DRAWN = ("random", "random_heads", "other_tasks")  # conditions with several drawn vectors, which have a p value
# further ones, of the rows that are made on request
DRAWN_TOO = ("by_k_random_heads", "mean_difference_random", "distributed_random_heads")


# opens what is done to passes; it is given the function that tells which positions of the current pass are edited
Edit = Callable[[Callable[[], Tensor]], AbstractContextManager[None]]


class Setting(NamedTuple):
    """Where and how strongly a vector is added."""

    layer: int
    alpha: float
    site: str


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of `n` interventions on each prompt of a batch.

    Attributes:
        accuracy: 1 where greedy decoding begins with one of the accepted answers and does not go on inside its last
            word, else 0; see `ivlens.forward.scoring.Correct`.
        exact: 1 where greedy decoding writes one of the accepted answers and then ends the text or the line, else 0.
        prob: Probability of the first token of the first answer.
        logprob: Log-probability of the whole first answer, in nats.
    """

    accuracy: Float[Tensor, "n batch"]
    exact: Float[Tensor, "n batch"]
    prob: Float[Tensor, "n batch"]
    logprob: Float[Tensor, "n batch"]

    @staticmethod
    def unknown(n: int, batch: int) -> "Scores":
        """The scores of pairs about which nothing is asked: wrong, with probabilities that are not known (NaN)."""
        wrong, nothing = torch.zeros(n, batch), torch.full((n, batch), torch.nan)
        return Scores(wrong, wrong.clone(), nothing, nothing.clone())

    @staticmethod
    def stacked(parts: "Sequence[Scores]") -> "Scores":
        """The scores of several sets of interventions on the same prompts, one below the other."""
        return Scores(*(torch.cat([getattr(part, name) for part in parts]) for name in METRICS))

    @staticmethod
    def abreast(parts: "Sequence[Scores]") -> "Scores":
        """The scores of the same interventions on several batches of prompts, side by side."""
        return Scores(*(torch.cat([getattr(part, name) for part in parts], 1) for name in METRICS))

    def of_prompts(self, asked: Bool[Tensor, " batch"]) -> "Scores":
        """The scores on these prompts alone."""
        return Scores(*(getattr(self, name)[:, asked] for name in METRICS))

    def chosen(self, rows: Sequence[int]) -> "Scores":
        """The scores of these interventions alone, in this order."""
        return Scores(*(getattr(self, name)[list(rows)] for name in METRICS))

    def goodness(self) -> Float[Tensor, " n"]:
        """What a search maximises: accuracy, and among equals the mean probability.

        A difference of one right answer outweighs any probability, for up to 10,000 prompts.
        """
        # a strength that overflows gives NaN, which sorting would take for the largest
        # in double precision: beside an accuracy of 1, single precision sees no difference below 0.001 of probability
        return self.accuracy.double().mean(1) + 1e-4 * self.prob.double().nan_to_num(nan=0.0).mean(1)


@dataclass(frozen=True, eq=False)
class Judged:
    """The scores of one condition on the judged prompts.

    Attributes:
        condition: Its name, such as `random`.
        scores: A row for each of its vectors; one row for a condition without vectors, such as `clean`.
        names: The name of each vector.
        settings: The setting of each vector.
        has_probs: False where no model answers, as for `constant`: then there are no probabilities.
        on_select: The `Scores.goodness` of each vector at its setting in the search; empty where none was searched.
        variant: Which of several rows of one condition this is, such as `k=5`; empty where there is one.
        against: The condition that this one is compared with, in a row of the same variant or of none; empty: none.
        details: Further columns of its row.
        edits: What was done to passes under each of its vectors; empty where nothing was, or where nobody needs it.
    """

    condition: str
    scores: Scores
    names: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    has_probs: bool = True
    on_select: tuple[float, ...] = ()
    variant: str = ""
    against: str = "iv"
    details: Mapping[str, Any] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()

    def separate(self) -> "list[Judged]":
        """The condition split into one `Judged` for each vector; unchanged where it has no vectors."""
        if not self.settings:
            return [self]
        lists = ("names", "settings", "on_select")
        return [
            replace(self, scores=self.scores.chosen([at]), **{name: getattr(self, name)[at : at + 1] for name in lists})
            for at in range(len(self.scores.accuracy))
        ]


# is called with the name of a part of a judgement and a function that makes its rows; returns these rows
Keep = Callable[[str, Callable[[], list[Judged]]], list[Judged]]


def made_now(part: str, make: Callable[[], list[Judged]]) -> list[Judged]:
    """The `Keep` that keeps nothing: every part is made when it is asked for."""
    return make()


def summary(judged: Judged) -> dict[str, Any]:
    """A table row of one condition: means over prompts and vectors, with 95 % intervals over prompts.

    The vectors count as fixed: intervals are over the means that each prompt has over vectors. Shares of right answers
    have Wilson's interval, as the column `interval` says; probabilities and log-probabilities have a t interval.

    A pass that overflows counts as wrong and as probability 0, and is left out of `logprob`. `n_nonfinite` is the
    number of pairs of vector and prompt with such a pass.
    """
    n_rows, n_prompts = judged.scores.accuracy.shape
    shared = {key: _shared([getattr(at, key) for at in judged.settings]) for key in Setting._fields}
    row: dict[str, Any] = {
        "condition": judged.condition,
        "variant": judged.variant,
        "vector": judged.names[0] if len(judged.names) == 1 else "",
        "n_vectors": len(judged.settings),
        **shared,
        "n": n_prompts,
        "n_nonfinite": int((~judged.scores.prob.isfinite()).sum()) if judged.has_probs else 0,
    }
    for metric in METRICS:
        values = getattr(judged.scores, metric)
        if metric == "prob" and judged.has_probs:
            values = values.nan_to_num(nan=0.0)
        row[metric], row[f"{metric}_lo"], row[f"{metric}_hi"] = _interval(values)
    best = judged.scores.accuracy.mean(1)
    row["interval"] = named("Wilson")
    return {**row, "accuracy_best": float(best.max()) if n_rows else float("nan"), **judged.details}


def beside(judged: Judged, vector: Judged) -> dict[str, Any]:
    """Columns that compare a condition with the vector that it is a control of; none where nothing can be compared.

    Returns:
        `lead`: the vector's accuracy minus the condition's on the same prompts, with a 95 % t interval over prompts
        (`lead_lo`, `lead_hi`). For drawn controls also `n_as_good`, the number of them that reach the vector's
        accuracy, and `p`, which with 19 draws is never below 0.05.
    """
    own, other = vector.scores.accuracy, judged.scores.accuracy
    if judged is vector or not len(other) or own.shape[1] != other.shape[1]:
        return {}
    lead, low, high = paired(own, other)
    found: dict[str, Any] = {"lead": lead, "lead_lo": low, "lead_hi": high}
    if judged.condition in DRAWN + DRAWN_TOO:
        found["n_as_good"] = n_as_good(judged, float(own.double().mean()))
        found["p"] = p_of_draws(found["n_as_good"], len(other))
    return found


def paired(own: Float[Tensor, "n batch"], other: Float[Tensor, "m batch"]) -> tuple[float, float, float]:
    """Mean difference `own - other` of two accuracies on the same prompts, and the ends of its 95 % t interval.

    Each is first averaged over its rows. The ends lie within -1 and 1. Where the difference is the same on all prompts,
    t has no width, and Wilson's bound for an event that was never seen is taken instead.
    """
    prompts = [str(row) for row in range(own.shape[1])]
    lead, low, high = clustered_difference(own.double().mean(0).numpy(), other.double().mean(0).numpy(), prompts)
    if low == high:
        most = wilson(0, len(prompts))[1]
        low, high = lead - most, lead + most
    return lead, max(-1.0, low), min(1.0, high)


def n_as_good(judged: Judged, accuracy: float) -> int:
    """The number of a condition's vectors with at least this mean accuracy."""
    # 1e-9: means of the same number of right answers may differ in their last digit
    return int((judged.scores.accuracy.double().mean(1) >= accuracy - 1e-9).sum())


def corrected(table: "pd.DataFrame", by: str | Sequence[str] = ("condition",)) -> "pd.DataFrame":
    """A table of several tasks with one more column, `p_holm`: Holm's correction of `p` for the number of tasks.

    Args:
        table: Rows of several evaluations, one below the other.
        by: Columns within whose values the correction is made.
    """
    if "p" not in table:
        return table
    groups = table.groupby(list(as_items("by", by)), sort=False)["p"]
    return table.assign(p_holm=groups.transform(lambda p: holm(p.to_list())))


def accuracy_only(accuracy: Float[Tensor, " batch"]) -> Scores:
    """Scores of something that gives whole answers without probabilities: `prob` and `logprob` are NaN."""
    nothing = torch.full_like(accuracy, float("nan"))[None]
    return Scores(accuracy[None], accuracy[None], nothing, nothing)


def _interval(values: Float[Tensor, "n batch"]) -> tuple[float, float, float]:
    """The mean over vectors and prompts, and the ends of its interval over prompts."""
    finite = values.double().masked_fill(~values.isfinite(), torch.nan)
    per_prompt = finite.nanmean(0)
    per_prompt = per_prompt[per_prompt.isfinite()].numpy()
    if not len(per_prompt):
        return float("nan"), float("nan"), float("nan")
    # zeros and ones alone are right and wrong answers; anything else is a probability or its logarithm
    if bool(((finite == 0) | (finite == 1) | finite.isnan()).all()):
        return float(per_prompt.mean()), *wilson(min(float(per_prompt.sum()), len(per_prompt)), len(per_prompt))
    return t_interval(per_prompt)


def _shared(values: Sequence[Any]) -> Any:
    """The value that all have in common, None if they differ."""
    return values[0] if len(set(values)) == 1 else None
