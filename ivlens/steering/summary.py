"""Scores per prompt, and from them one table row with bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.common.intervals import percentiles, resampled_means

METRICS = ("accuracy", "exact", "prob", "logprob")


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


def summary(judged: Judged, seed: int) -> dict[str, Any]:
    """Means over prompts and vectors, and their percentile intervals over resampled prompts (the vectors stay).

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
        row[metric], row[f"{metric}_lo"], row[f"{metric}_hi"] = _interval(values, seed)
    best = judged.scores.accuracy.mean(1)
    return {**row, "accuracy_best": float(best.max()) if n_rows else float("nan")}


def accuracy_only(accuracy: Float[Tensor, " batch"]) -> Scores:
    """Scores of something that gives whole answers and has no probabilities: NaN there."""
    nothing = torch.full_like(accuracy, float("nan"))[None]
    return Scores(accuracy[None], accuracy[None], nothing, nothing)


def _interval(values: Float[Tensor, "n batch"], seed: int) -> tuple[float, float, float]:
    finite = values.double().masked_fill(~values.isfinite(), torch.nan).nanmean(0)
    per_prompt = finite[finite.isfinite()].numpy()
    if not len(per_prompt):
        return float("nan"), float("nan"), float("nan")
    return float(per_prompt.mean()), *percentiles(resampled_means(per_prompt, seed))


def _shared(values: Sequence[Any]) -> Any:
    return values[0] if len(set(values)) == 1 else None
