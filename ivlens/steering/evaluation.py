"""`Evaluation`: the result of a judgement, with a table, the best setting and a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ivlens.common.arguments import checked
from ivlens.common.html import of_frame
from ivlens.prompts.recipe import PromptRecipe
from ivlens.steering.summary import Judged, Setting, beside, summary

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_SHOWN = ("condition", "variant", "accuracy", "accuracy_lo", "accuracy_hi", "layer", "alpha", "site", "n_vectors", "n")


@checked
@dataclass(frozen=True, eq=False)
class Evaluation:
    """How often a vector makes the model answer right, beside its controls.

    Attributes:
        table: One row for each condition. `condition` is `clean`, `bare`, `iv`, `random`, `random_heads`,
            `other_tasks`, `iv_heads` or `constant`. `vector` is the name of its vector, if it has only one.
            `n_vectors` is the number of its vectors, 0 for a control that could not be made (no heads left, no other
            tasks). `layer`, `alpha` and `site` are empty where its vectors have different ones. `n` is the number of
            prompts.
            `accuracy`, `exact`, `prob` (first answer token) and `logprob` (whole answer, nats) are means over prompts
            and vectors, with 95 % intervals over prompts (`accuracy_lo`, `accuracy_hi`, ...): Wilson's for the first
            two, as `interval` says, t for the others. `accuracy_best` is the accuracy of its best vector;
            `n_nonfinite` counts passes that overflowed (wrong, probability 0).
            `variant` tells several rows of one condition apart, such as `k=5`; see `MoreRows`, whose rows have further
            columns.
            `lead` is the accuracy of `iv` minus that of the condition on the same prompts (`lead_lo`, `lead_hi`: 95 %
            t). For drawn controls, `n_as_good` is the number of vectors that reach the accuracy of `iv`, and
            `p = (1 + n_as_good) / (1 + n_vectors)`, which with 19 draws is never below 0.05.
            `table.attrs` are the `settings`.
        best: The setting at which the vector was judged: the best one on *select*, or the one given.
        settings: Everything that made the table, in plain JSON values; among them the `recipe`, and the split that was
            `searched_on`, None where nothing was searched.
        judged: The scores behind the table, on each prompt.
    """

    table: "pd.DataFrame"
    best: Setting
    settings: Mapping[str, Any]
    judged: tuple[Judged, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls, judged: Sequence[Judged], *, per_vector: bool = False, settings: Mapping[str, Any] | None = None
    ) -> "Evaluation":
        """The evaluation of these conditions, one of which is the vector itself (`iv`).

        Args:
            judged: All conditions with their scores.
            per_vector: Whether the table has a row for each vector, and then no column `lead`.
            settings: Everything that made the scores.

        Raises:
            ValueError: there is no condition `iv`.
        """
        import pandas as pd

        vector = next((one for one in judged if one.condition == "iv"), None)
        if vector is None:
            raise ValueError("judged has no condition 'iv', expected one for the vector itself.")
        if per_vector:
            table = _by_vector(judged)
        else:
            named = {(one.condition, one.variant): one for one in judged}
            # details come last: a row may have its own comparison
            table = pd.DataFrame([summary(one) | _compared(one, named) | dict(one.details) for one in judged])
        table.attrs.update(settings or {})
        (best,) = vector.settings  # the condition has one vector, and so one setting
        # without the edits, which hold the model
        return cls(table, best, dict(settings or {}), tuple(replace(one, edits=()) for one in judged))

    def by_vector(self) -> "pd.DataFrame":
        """A table with a row for each vector of a condition, instead of one for each condition."""
        return _by_vector(self.judged)

    @property
    def recipe(self) -> PromptRecipe:
        """How the clean prompts were made."""
        return PromptRecipe.from_dict(self.settings["recipe"])

    def accuracy(self, condition: str = "iv", variant: str | None = None) -> float:
        """Mean accuracy under a condition; of one with several variants, under this variant or on average.

        Raises:
            KeyError: there is no such condition or variant.
        """
        chosen = self.table["condition"].to_numpy() == condition
        if not chosen.any():
            known = ", ".join(self.table["condition"].unique())
            raise KeyError(f"condition is {condition!r:.60}, expected one of {known}.")
        if variant is not None:
            known = ", ".join(map(repr, self.table.loc[chosen, "variant"]))
            chosen = chosen & (self.table["variant"].to_numpy() == variant)
            if not chosen.any():
                raise KeyError(f"variant is {variant!r:.60}, expected one of {known} for {condition}.")
        return float(self.table.loc[chosen, "accuracy"].mean())

    def plot(self) -> "go.Figure":
        """A figure of the accuracy under every condition, with intervals."""
        # imported late: `show` is a lower room, and plotly loads slowly
        from ivlens.show.figures.conditions import condition_plot

        return condition_plot(self.table.assign(task=self.settings.get("task", "")))

    def _shown(self) -> "pd.DataFrame":
        """The columns that a reader wants first, rounded."""
        shown = [name for name in _SHOWN if name != "variant" or bool(self.table["variant"].any())]
        return self.table.reindex(columns=shown).round(2)

    def __str__(self) -> str:
        return self._shown().to_string(index=False, na_rep="")

    def __repr__(self) -> str:
        layer, alpha, site = self.best
        scores = ", ".join(f"{name} {self.accuracy(name):.2f}" for name in ("iv", "bare", "clean"))
        return f"Evaluation({self.settings.get('task', '')!r}: {scores}; layer {layer}, alpha {alpha:g}, {site})"

    def _repr_html_(self) -> str:
        return of_frame(self._shown(), f"Accuracy by condition: {self.settings.get('task', '')}")


def _compared(one: Judged, named: Mapping[tuple[str, str], Judged]) -> dict[str, Any]:
    """The columns that compare a condition with the one that it names; none where it names none."""
    other = named.get((one.against, one.variant)) or named.get((one.against, ""))
    return {} if other is None else beside(one, other)


def _by_vector(judged: Sequence[Judged]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame([summary(one) for many in judged for one in many.separate()])
