"""Scores per prompt, and from them one table row with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.common.checks import as_items
from ivlens.common.intervals import clustered_difference, holm, named, p_of_draws, t_interval, wilson

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("accuracy", "exact", "prob", "logprob")
DRAWN = ("random", "random_heads", "other_tasks")  # controls of which there are several vectors


class Setting(NamedTuple):
    """Where and how strongly a vector is added."""

    layer: int
    alpha: float
    site: str


@dataclass(frozen=True, eq=False)
class Scores:
    """What came of each intervention on each prompt.

    Attributes:
        accuracy: 1 where greedy decoding begins with one of the accepted answers and does not go on inside its last
            word, else 0; see `ivlens.forward.scoring.Correct`.
        exact: 1 where it writes one of them and then ends the text or the line, else 0.
        prob: probability of the first token of the first answer.
        logprob: log-probability of the whole first answer, in nats.
    """

    accuracy: Float[Tensor, "n batch"]
    exact: Float[Tensor, "n batch"]
    prob: Float[Tensor, "n batch"]
    logprob: Float[Tensor, "n batch"]

    @staticmethod
    def stacked(parts: "Sequence[Scores]") -> "Scores":
        """One below the other."""
        return Scores(*(torch.cat([getattr(part, name) for part in parts]) for name in METRICS))

    @staticmethod
    def abreast(parts: "Sequence[Scores]") -> "Scores":
        """Those of more prompts to the right."""
        return Scores(*(torch.cat([getattr(part, name) for part in parts], 1) for name in METRICS))

    def chosen(self, rows: Sequence[int]) -> "Scores":
        """Only these interventions, in this order."""
        return Scores(*(getattr(self, name)[list(rows)] for name in METRICS))

    def goodness(self) -> Float[Tensor, " n"]:
        """What a search maximises: accuracy, and among equals the mean probability (exact up to 10,000 prompts)."""
        # a strength that overflows gives NaN, which argmax would take for the largest
        return self.accuracy.mean(1) + 1e-4 * self.prob.nan_to_num(nan=0.0).mean(1)


@dataclass(frozen=True, eq=False)
class Judged:
    """One condition on the judged prompts: its vectors, each with its setting, or one row without a vector.

    `has_probs` is False for what answers without a model, such as a constant.
    """

    condition: str
    scores: Scores
    names: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    has_probs: bool = True

    def separate(self) -> "list[Judged]":
        """One for each vector; itself where there are none."""
        if not self.settings:
            return [self]
        return [
            Judged(self.condition, self.scores.chosen([at]), self.names[at : at + 1], self.settings[at : at + 1])
            for at in range(len(self.scores.accuracy))
        ]


def summary(judged: Judged) -> dict[str, Any]:
    """Means over prompts and vectors, and their 95 % intervals over prompts (the vectors stay).

    Shares of right answers have Wilson's interval, which `interval` names; probabilities and log-probabilities have a
    t interval.

    A pass that overflows counts as wrong and as probability 0, and is left out of `logprob`; `n_nonfinite` says how
    many pairs of vector and prompt that befell.
    """
    n_rows, n_prompts = judged.scores.accuracy.shape
    shared = {key: _shared([getattr(at, key) for at in judged.settings]) for key in Setting._fields}
    row: dict[str, Any] = {
        "condition": judged.condition,
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
    return {**row, "accuracy_best": float(best.max()) if n_rows else float("nan")}


def beside(judged: Judged, vector: Judged) -> dict[str, Any]:
    """How far a vector leads a condition, as columns of its row; empty where there is nothing to compare.

    Returns:
        `lead`, its accuracy less the condition's on the same prompts, with a 95 % t interval over these (`lead_lo`,
        `lead_hi`); for controls that were drawn also `n_as_good`, how many of them reach its accuracy, and `p`, which
        of 19 draws is never below 0.05.
    """
    prompts = [str(row) for row in range(judged.scores.accuracy.shape[1])]
    own, other = vector.scores.accuracy, judged.scores.accuracy
    if judged is vector or not len(other) or own.shape[1] != len(prompts):
        return {}
    lead, low, high = clustered_difference(own.double().mean(0).numpy(), other.double().mean(0).numpy(), prompts)
    if low == high:  # of prompts that all differ alike, or not at all, a few more might not
        most = wilson(0, len(prompts))[1]
        low, high = max(-1.0, lead - most), min(1.0, lead + most)
    found: dict[str, Any] = {"lead": lead, "lead_lo": low, "lead_hi": high}
    if judged.condition in DRAWN:
        found["n_as_good"] = n_as_good(judged, float(own.double().mean()))
        found["p"] = p_of_draws(found["n_as_good"], len(other))
    return found


def n_as_good(judged: Judged, accuracy: float) -> int:
    """How many of its vectors have at least this mean accuracy."""
    return int((judged.scores.accuracy.double().mean(1) >= accuracy - 1e-9).sum())


def corrected(table: "pd.DataFrame", by: str | Sequence[str] = ("condition",)) -> "pd.DataFrame":
    """The table of several tasks with `p_holm`: `p`, corrected for the number of tasks that have one (Holm)."""
    if "p" not in table:
        return table
    groups = table.groupby(list(as_items("by", by)), sort=False)["p"]
    return table.assign(p_holm=groups.transform(lambda p: holm(p.to_list())))


def accuracy_only(accuracy: Float[Tensor, " batch"]) -> Scores:
    """Scores of something that gives whole answers and has no probabilities: NaN there."""
    nothing = torch.full_like(accuracy, float("nan"))[None]
    return Scores(accuracy[None], accuracy[None], nothing, nothing)


def _interval(values: Float[Tensor, "n batch"]) -> tuple[float, float, float]:
    finite = values.double().masked_fill(~values.isfinite(), torch.nan)
    per_prompt = finite.nanmean(0)
    per_prompt = per_prompt[per_prompt.isfinite()].numpy()
    if not len(per_prompt):
        return float("nan"), float("nan"), float("nan")
    if bool(((finite == 0) | (finite == 1) | finite.isnan()).all()):
        return float(per_prompt.mean()), *wilson(min(float(per_prompt.sum()), len(per_prompt)), len(per_prompt))
    return t_interval(per_prompt)


def _shared(values: Sequence[Any]) -> Any:
    return values[0] if len(set(values)) == 1 else None
