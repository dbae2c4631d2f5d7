"""`compare_heads`: whether two measurements, such as by an instruction and by demonstrations, find the same heads."""

from dataclasses import dataclass
from math import atanh, comb, nan, sqrt, tanh
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.common.arguments import checked
from ivlens.common.intervals import LEVEL
from ivlens.effects.results import HeadEffects
from ivlens.models.mixers import head_label

if TYPE_CHECKING:
    import pandas as pd

Pairs = tuple[tuple[int, int], ...]


@checked
@dataclass(frozen=True, eq=False)
class HeadComparison:
    """How far the strongest heads of two measurements are the same.

    Attributes:
        first, second: What was measured, in words: task, instruction and demonstrations.
        k: The number of strongest heads of each that are compared.
        n_heads: The number of heads that both measured.
        shared: Heads among the `k` strongest of both, in the order of the first.
        only_first, only_second: The others of each.
        expected: How many would be shared by chance, `k² / n_heads`.
        p: The probability that chance shares as many or more (hypergeometric, exact).
        correlation: Spearman's rank correlation of the effects of all heads.
        low, high: Its 95 % interval over heads (Bonett and Wright).
        reliability: For each measurement, the rank correlation of its effects with those of such a measurement of other
            prompts, estimated from its halves; NaN for a single prompt. A correlation of both can hardly be larger than
            the root of their product.
        warnings: What speaks against either measurement (`HeadEffects.warnings`).
        table: One row for each head: `label`, `layer`, `head`, the effects `first` and `second`, and their ranks.
    """

    first: str
    second: str
    k: int
    n_heads: int
    shared: Pairs
    only_first: Pairs
    only_second: Pairs
    expected: float
    p: float
    correlation: float
    low: float
    high: float
    reliability: tuple[float, float]
    warnings: tuple[str, ...]
    table: "pd.DataFrame"

    @property
    def overlap(self) -> int:
        """The number of shared heads."""
        return len(self.shared)

    def labels(self, heads: Pairs) -> str:
        """The names of heads in one line."""
        rows = self.table[["layer", "head", "label"]].itertuples(index=False)
        named = {(layer, head): label for layer, head, label in rows}
        return " ".join(named[head] for head in heads)

    def __str__(self) -> str:
        named = {"shared": self.shared, "only first": self.only_first, "only second": self.only_second}
        heads = "\n".join(f"{what}: {self.labels(own) or '-'}" for what, own in named.items())
        warned = "".join(f"{text}\n" for text in self.warnings)
        return (
            f"{warned}first: {self.first}\nsecond: {self.second}\n"
            f"{self.overlap} of {self.k} strongest heads are shared (by chance {self.expected:.2f}, p = {self.p:.2g})\n"
            f"rank correlation of {self.n_heads} heads: {self.correlation:.2f} ({self.low:.2f} to {self.high:.2f}); "
            f"of each with itself: {self.reliability[0]:.2f} and {self.reliability[1]:.2f}\n{heads}"
        )

    def __repr__(self) -> str:
        return f"HeadComparison({self.overlap} of {self.k} shared, rank correlation {self.correlation:.2f})"

    def _repr_html_(self) -> str:
        from ivlens.show.tables import comparison_html

        return comparison_html(self)


@checked
def compare_heads(first: HeadEffects, second: HeadEffects, k: int = 10) -> HeadComparison:
    """Compare the strongest heads of two measurements on one model.

    Heads by an instruction and heads by demonstrations, for example:

        >>> told = ivlens.head_effects(model, task, recipe=ivlens.PromptRecipe())
        >>> shown = ivlens.head_effects(model, task, recipe=ivlens.PromptRecipe(instruction=None, n_shots=5))
        >>> print(ivlens.compare_heads(told, shown))

    The number of shared heads is compared with chance, `P(X >= overlap)` where `X` is how many of `k` heads drawn from
    all lie among `k` fixed ones. The rank correlation is over all heads, most of which do nothing, so it is lower than
    the overlap suggests; see `HeadComparison.reliability`.

    Args:
        first, second: Effects of the same model, usually of one task.
        k: How many of the strongest heads are compared.

    Raises:
        ValueError: effects of two models, or `k` is not between 1 and the number of heads that both measured.

    Source: docs/method.md, 15 Where heads look; arXiv 2505.12075 compares heads in this way. Added here: chance, the
        rank correlation and its limit.
    """
    if (other := first.model.differs(second.model)) or first.cie.shape[1:] != second.cie.shape[1:]:
        raise ValueError(
            f"first and second were measured on two models ({second.model.name!r} has {other or 'another shape'}), "
            "expected one model; measure both on it."
        )
    known = (first.aie.isfinite() & second.aie.isfinite()).flatten().cpu()
    places = known.nonzero()[:, 0].tolist()
    if not 1 <= k <= len(places):
        raise ValueError(f"k is {k}, expected 1 to {len(places)}, the number of heads that both measured.")
    aies = [each.aie.flatten()[places].double().cpu() for each in (first, second)]
    ranks = [_places_by(each) for each in aies]
    n_heads = first.cie.shape[2]
    tops = [[divmod(places[at], n_heads) for at in rank.argsort().tolist()[:k]] for rank in ranks]
    shared = tuple(head for head in tops[0] if head in tops[1])
    correlation = spearman(*aies)
    low, high = _bonett_wright(correlation, len(places))
    return HeadComparison(
        first=_in_words(first),
        second=_in_words(second),
        k=k,
        n_heads=len(places),
        shared=shared,
        only_first=tuple(head for head in tops[0] if head not in shared),
        only_second=tuple(head for head in tops[1] if head not in shared),
        expected=k * k / len(places),
        p=_p_of_overlap(len(shared), k, len(places)),
        correlation=correlation,
        low=low,
        high=high,
        reliability=(_reliability(first, places), _reliability(second, places)),
        warnings=tuple(dict.fromkeys((*first.warnings, *second.warnings))),
        table=_table(places, first, aies, ranks),
    )


def spearman(a: Float[Tensor, " heads"], b: Float[Tensor, " heads"]) -> float:
    """Spearman's rank correlation, with mean ranks for equal values; NaN where one side has no spread."""
    ranks = torch.stack([_mean_ranks(each) for each in (a, b)])
    centred = ranks - ranks.mean(1, keepdim=True)
    scale = centred.norm(dim=1).prod()
    return float((centred[0] @ centred[1]) / scale) if scale > 0 else nan


def _mean_ranks(values: Float[Tensor, " heads"]) -> Float[Tensor, " heads"]:
    _, group, sizes = values.unique(return_inverse=True, return_counts=True)
    ends = sizes.cumsum(0).double()
    return (ends - (sizes - 1) / 2)[group]


def _places_by(values: Float[Tensor, " heads"]) -> Tensor:
    """The rank of each value, 0 for the largest; stable, so that ties are the same everywhere."""
    ranks = torch.empty(len(values), dtype=torch.long)
    ranks[values.argsort(descending=True, stable=True)] = torch.arange(len(values))
    return ranks


def _p_of_overlap(overlap: int, k: int, n: int) -> float:
    """P(X >= overlap): as whole numbers, whose quotient alone is rounded."""
    ways = sum(comb(k, shared) * comb(n - k, k - shared) for shared in range(overlap, k + 1))
    return ways / comb(n, k)


def _bonett_wright(rho: float, n: int) -> tuple[float, float]:
    """The interval of a rank correlation of `n` pairs, by Fisher's transformation with their standard error."""
    if n < 4 or rho != rho:
        return nan, nan
    if abs(rho) > 1 - 1e-12:  # where the transformation is infinite
        return rho, rho
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2) * sqrt((1 + rho * rho / 2) / (n - 3))
    return tanh(atanh(rho) - reach), tanh(atanh(rho) + reach)


def _reliability(effects: HeadEffects, places: list[int]) -> float:
    """Rank correlation with a measurement of other prompts: of both halves, raised to full length (Spearman-Brown)."""
    values = effects.cie.flatten(1)[:, places].double().cpu()
    if len(values) < 2:
        return nan
    halves = spearman(values[::2].mean(0), values[1::2].mean(0))
    return 2 * halves / (1 + halves) if halves > -1 else nan


def _in_words(effects: HeadEffects) -> str:
    return f"{effects.task} ({effects.recipe}; {len(effects.cie)} prompts)"


def _table(places: list[int], measured: HeadEffects, aies: list[Tensor], ranks: list[Tensor]) -> "pd.DataFrame":
    import pandas as pd

    rows = []
    for at, place in enumerate(places):
        layer, head = divmod(place, measured.cie.shape[2])
        effects = {"first": float(aies[0][at]), "second": float(aies[1][at])}
        order = {"rank_first": int(ranks[0][at]) + 1, "rank_second": int(ranks[1][at]) + 1}
        label = head_label(layer, head, measured.model.n_heads)
        rows.append({"label": label, "layer": layer, "head": head} | effects | order)
    return pd.DataFrame(rows).sort_values("rank_first", ignore_index=True)
