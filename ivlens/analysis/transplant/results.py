"""`Transplant` and `Splices`: how often a model answers right with parts of another one at work in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ivlens.analysis.attention.chosen import label
from ivlens.common.arguments import checked
from ivlens.common.intervals import p_of_draws
from ivlens.prompts.recipe import PromptRecipe
from ivlens.steering.summary import Judged, Scores, n_as_good, paired, summary
from ivlens.vectors.heads import Heads

if TYPE_CHECKING:
    import pandas as pd

INTO = ("after", "before")  # the model that receives: the tuned one, which may be restored, or the first one
OWN, VECTOR, RANDOM, EVERY = "own", "vector", "random", "every"
LEAST_APART = 0.05  # a smaller difference of two accuracies has no share
_NUMBERS = ("accuracy", "exact", "prob", "logprob")


@dataclass(frozen=True, eq=False)
class Received:
    """The scores of one model with outputs of the other one's heads.

    Attributes:
        into: The model that receives: one of `INTO`.
        heads: `own` (nothing is received), `vector`, `random` or `every`.
        k: The number of heads that are received.
        sets: The heads of each set: one set, or one for each draw.
        scores: A row for each set.
    """

    into: str
    heads: str
    k: int
    sets: tuple[Heads, ...]
    scores: Scores


class _Table:
    """What both results have in common: a table with its settings."""

    table: "pd.DataFrame"
    settings: Mapping[str, Any]
    _SHOWN: ClassVar[tuple[str, ...]] = ()

    @property
    def recipe(self) -> PromptRecipe:
        """How the prompts were made."""
        return PromptRecipe.from_dict(self.settings["recipe"])

    def _shown(self) -> "pd.DataFrame":
        """The columns that a reader wants first, rounded."""
        return self.table.reindex(columns=[*self._SHOWN]).dropna(axis=1, how="all").round(3)

    def __str__(self) -> str:
        return self._shown().to_string(index=False, na_rep="")

    def _repr_html_(self) -> str:
        return self._shown().to_html(index=False, border=0, na_rep="")


@checked
@dataclass(frozen=True, eq=False)
class Transplant(_Table):
    """How often each of two models answers right with the outputs of the other one's heads in the place of its own.

    Attributes:
        table: One row for each model that receives (`into`: `after`, `before`), and kind and number of heads. `heads`:
            `own` (nothing is received), `vector` (the `k` heads of largest effect in the first model), `random` (as
            many of the same layers, `n_sets` draws), `every` (all heads of the model). `accuracy` and `exact` with
            Wilson's 95 % interval, `prob` (of the answer's first token) and `logprob` (of the whole answer, nats) with
            a t interval, all over prompts. `gain`: the accuracy less the model's own on the same prompts, with a t
            interval. `share`: the gain divided by what the giving model has more than the receiving one (negative
            where it has less, so that 1 means all of the difference); NaN where the two differ by less than 0.05.
            `n_as_good`: for how many of the random sets the gain is as large as that of the vector's heads, or, into
            the first model, the loss; and `p = (1 + n_as_good) / (1 + n_sets)`, where there is a share. `n`: prompts.
        settings: Everything that made the table, in plain JSON values.
    """

    table: "pd.DataFrame"
    settings: Mapping[str, Any]
    _SHOWN: ClassVar[tuple[str, ...]] = (
        "into", "heads", "k", "accuracy", "accuracy_lo", "accuracy_hi", "gain", "gain_lo", "gain_hi", "share", "p", "n",
    )  # fmt: skip

    @classmethod
    def of(cls, received: Sequence[Received], settings: Mapping[str, Any]) -> "Transplant":
        """The table of these scores."""
        import pandas as pd

        own = {one.into: one.scores for one in received if one.heads == OWN}
        vectors = {(one.into, one.k): one for one in received if one.heads == VECTOR}
        rows = [_row(one, own, vectors.get((one.into, one.k))) for one in received]
        table = pd.DataFrame(rows)
        table.attrs.update(settings)
        return cls(table, dict(settings))

    def accuracy(self, into: str, heads: str = VECTOR, k: int | None = None) -> float:
        """Accuracy of a model with these heads of the other one; without `k` with the largest number of them.

        Raises:
            KeyError: there is no such row.
        """
        found = [row for row in self.table.to_dict("records") if (row["into"], row["heads"]) == (into, heads)]
        found = [row for row in found if k is None or row["k"] == k]
        if not found:
            known = ", ".join(f"{row['into']}/{row['heads']}/{row['k']}" for row in self.table.to_dict("records"))
            raise KeyError(f"into/heads/k is {into!r:.20}/{heads!r:.20}/{k}, expected one of {known}.")
        return float(found[-1]["accuracy"])

    def __repr__(self) -> str:
        ks = sorted({int(row["k"]) for row in self.table.to_dict("records") if row["heads"] == VECTOR})
        return f"Transplant({self.settings.get('task', '')!r}: {', '.join(INTO)}, k = {', '.join(map(str, ks))})"


@checked
@dataclass(frozen=True, eq=False)
class Splices(_Table):
    """How often a model answers right whose lower blocks are those of one model, and its upper ones of another.

    Attributes:
        table: One row for each pair of `lower` (the model whose blocks run below `layer`: `before` or `after`) and
            `layer`: 0 is the other model as it is, and the last one has only its final norm and unembedding. Scores and
            intervals are as in `Transplant`.
        settings: Everything that made the table, in plain JSON values.
    """

    table: "pd.DataFrame"
    settings: Mapping[str, Any]
    _SHOWN: ClassVar[tuple[str, ...]] = ("lower", "layer", "accuracy", "accuracy_lo", "accuracy_hi", "prob", "n")

    @classmethod
    def of(cls, found: Sequence[tuple[str, int, Scores]], settings: Mapping[str, Any]) -> "Splices":
        """The table of scores by lower model and layer."""
        import pandas as pd

        rows = [{"lower": lower, "layer": layer, **_numbers(scores)} for lower, layer, scores in found]
        table = pd.DataFrame(rows)
        table.attrs.update(settings)
        return cls(table, dict(settings))

    def __repr__(self) -> str:
        return f"Splices({self.settings.get('task', '')!r}: {self.table['layer'].nunique()} layers)"


def _numbers(scores: Scores) -> dict[str, Any]:
    """Scores with their intervals, the kind of interval, and the number of prompts."""
    row = summary(Judged("", scores))
    return {name + end: row[name + end] for name in _NUMBERS for end in ("", "_lo", "_hi")} | {
        name: row[name] for name in ("interval", "n", "n_nonfinite")
    }


def _row(one: Received, own: Mapping[str, Scores], vector: Received | None) -> dict[str, Any]:
    """The row of one kind and number of heads."""
    row: dict[str, Any] = {"into": one.into, "heads": one.heads, "k": one.k, "n_sets": len(one.sets)}
    row |= {"of": " ".join(map(label, one.sets[0])) if one.heads == VECTOR else ""} | _numbers(one.scores)
    if one.heads == OWN:
        return row
    before, after = own[one.into], own[next(name for name in INTO if name != one.into)]
    row["gain"], row["gain_lo"], row["gain_hi"] = paired(one.scores.accuracy, before.accuracy)
    apart = float(after.accuracy.double().mean() - before.accuracy.double().mean())
    row["share"] = row["gain"] / apart if abs(apart) >= LEAST_APART else float("nan")
    # between models that are alike nothing can be restored, and every draw would be as good
    if one.heads == RANDOM and vector is not None and abs(apart) >= LEAST_APART:
        row["n_as_good"] = _as_good(one, vector, apart)
        row["p"] = p_of_draws(row["n_as_good"], len(one.sets))
    return row


def _as_good(drawn: Received, vector: Received, apart: float) -> int:
    """The number of random sets that move the accuracy as far toward the giving model as the vector's heads do."""
    mean = float(vector.scores.accuracy.double().mean())
    if apart >= 0:
        return n_as_good(Judged(RANDOM, drawn.scores), mean)
    return int((drawn.scores.accuracy.double().mean(1) <= mean + 1e-9).sum())
