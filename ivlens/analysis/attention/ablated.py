"""`HeadAblation`: accuracy with sets of heads ablated, beside random heads of the same layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ivlens.analysis.attention.chosen import label
from ivlens.common.arguments import checked
from ivlens.common.html import of_frame
from ivlens.common.intervals import clustered_difference, named, p_of_draws, t_interval, wilson
from ivlens.prompts.recipe import PromptRecipe
from ivlens.steering.summary import Scores
from ivlens.vectors.heads import Heads

if TYPE_CHECKING:
    import pandas as pd

NOTHING = "nothing"
_SHOWN = ("ablated", "drawn", "n_heads", "accuracy", "accuracy_lo", "accuracy_hi", "drop", "drop_lo", "drop_hi", "prob")


@dataclass(frozen=True, eq=False)
class Tried:
    """Sets of heads of one kind, and the scores of every prompt without each of them.

    Attributes:
        ablated: The kind of heads: one of `SETS`, or `nothing`.
        drawn: Whether these are random heads drawn beside that kind.
        sets: The heads of each set: one set, or one for each draw.
        scores: A row for each set; None where there are no such heads.
    """

    ablated: str
    drawn: bool
    sets: tuple[Heads, ...]
    scores: Scores | None


@checked
@dataclass(frozen=True, eq=False)
class HeadAblation:
    """How often the model answers clean prompts right while heads are ablated.

    Attributes:
        table: One row for each set of heads, and below it one for random heads drawn beside it. `ablated`: `nothing`,
            `vector`, `vector_only` (without induction heads), `induction`, `induction_only` (without the vector's
            heads). `drawn`: whether the row is that of random heads, of which `n_sets` sets were drawn. `n_heads`,
            `heads`: how many and which. `accuracy` with Wilson's 95 % interval, `exact`, and `prob` (of the first
            answer token) with a t interval, all over prompts. `drop`: the accuracy that is lost, on the same prompts,
            with a t interval. `n_as_bad`: for how many of the sets drawn beside it the accuracy is as low or lower,
            and `p = (1 + n_as_bad) / (1 + n_sets)` of these. A set without heads has NaN. `n`: prompts.
        settings: Everything that made the table, in plain JSON values.
    """

    table: "pd.DataFrame"
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, tried: Sequence[Tried], settings: Mapping[str, Any]) -> "HeadAblation":
        """The table of these sets; the first one is `nothing`."""
        import pandas as pd

        clean = tried[0].scores
        assert clean is not None and tried[0].ablated == NOTHING
        beside = {one.ablated: one for one in tried if one.drawn}
        rows = [_row(one, clean) | _against(one, beside.get(one.ablated)) for one in tried]
        table = pd.DataFrame(rows)
        table.attrs.update(settings)
        return cls(table, dict(settings))

    @property
    def recipe(self) -> PromptRecipe:
        """How the clean prompts were made."""
        return PromptRecipe.from_dict(self.settings["recipe"])

    def accuracy(self, ablated: str, drawn: bool = False) -> float:
        """Accuracy without a kind of heads, or without random heads drawn beside it.

        Raises:
            KeyError: there is no such row.
        """
        rows = self.table.to_dict("records")
        for row in rows:
            if (row["ablated"], bool(row["drawn"])) == (ablated, drawn):
                return float(row["accuracy"])
        known = ", ".join(dict.fromkeys(str(row["ablated"]) for row in rows if bool(row["drawn"]) == drawn))
        raise KeyError(f"ablated is {ablated!r:.60}, expected one of {known}.")

    def _shown(self) -> "pd.DataFrame":
        """The columns that a reader wants first, rounded."""
        return self.table.reindex(columns=[*_SHOWN, "p", "n"]).round(3)

    def __str__(self) -> str:
        return self._shown().to_string(index=False, na_rep="")

    def __repr__(self) -> str:
        rows = [row for row in self.table.to_dict("records") if not row["drawn"]]
        found = [f"{row['ablated']} {row['accuracy']:.2f}" for row in rows]
        return f"HeadAblation({self.settings.get('task', '')!r}: accuracy without {', '.join(found)})"

    def _repr_html_(self) -> str:
        return of_frame(self._shown(), "What is lost without these heads")


def _row(tried: Tried, clean: Scores) -> dict[str, Any]:
    """The columns of one row."""
    n = clean.accuracy.shape[1]
    sizes = [len(heads) for heads in tried.sets]
    row: dict[str, Any] = {
        "ablated": tried.ablated,
        "drawn": tried.drawn,
        "n_heads": sizes[0] if sizes else 0,
        "heads": "" if tried.drawn else " ".join(map(label, tried.sets[0])) if tried.sets else "",
        "n_sets": len(sizes),
    }
    if tried.scores is None:
        names = ("accuracy", "exact", "prob", "drop")
        return row | {f"{name}{end}": float("nan") for name in names for end in ("", "_lo", "_hi")} | {"n": n}
    for name in ("accuracy", "exact"):
        per_prompt = getattr(tried.scores, name).double().mean(0)
        low, high = wilson(min(float(per_prompt.sum()), n), n)
        row |= {name: float(per_prompt.mean()), f"{name}_lo": low, f"{name}_hi": high}
    # a pass that overflows gives no probability, and counts as 0
    row["prob"], row["prob_lo"], row["prob_hi"] = t_interval(tried.scores.prob.double().nan_to_num(0.0).mean(0).numpy())
    if tried.ablated != NOTHING:
        row["drop"], row["drop_lo"], row["drop_hi"] = _drop(clean, tried.scores)
    return row | {"interval": named("Wilson"), "n": n}


def _drop(clean: Scores, without: Scores) -> tuple[float, float, float]:
    """The accuracy that is lost, on the same prompts, with its interval."""
    own, other = (each.accuracy.double().mean(0).numpy() for each in (clean, without))
    lost, low, high = clustered_difference(own, other, [str(row) for row in range(len(own))])
    if low == high:  # the same on all prompts, where t has no width: Wilson's bound for what was never seen
        most = wilson(0, len(own))[1]
        low, high = lost - most, lost + most
    return lost, max(-1.0, low), min(1.0, high)


def _against(tried: Tried, drawn: Tried | None) -> dict[str, Any]:
    """How many of the sets drawn beside a set do as much harm."""
    if tried.drawn or drawn is None or drawn.scores is None or tried.scores is None:
        return {}
    own = float(tried.scores.accuracy.double().mean())
    n_as_bad = int((drawn.scores.accuracy.double().mean(1) <= own + 1e-9).sum())
    return {"n_as_bad": n_as_bad, "p": p_of_draws(n_as_bad, len(drawn.sets))}
