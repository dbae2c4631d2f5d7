"""`Evaluation`: what came of a judgement, as a table, the best setting and a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ivlens.common.arguments import checked
from ivlens.prompts.recipe import PromptRecipe
from ivlens.steering.summary import Judged, Setting, beside, summary

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_SHOWN = ("condition", "accuracy", "accuracy_lo", "accuracy_hi", "layer", "alpha", "site", "n_vectors", "n")


@checked
@dataclass(frozen=True, eq=False)
class Evaluation:
    """A vector on the judged prompts, beside its controls.

    Attributes:
        table: A row per condition: `condition` (`clean`, `bare`, `iv`, `random`, `random_heads`, `other_tasks`,
            `iv_heads`, `constant`), `vector`, `n_vectors`, `layer`, `alpha`, `site` (those that all its vectors share),
            `n` prompts, and for `accuracy`, `exact`, `prob` (first answer token) and `logprob` (whole answer, nats) the
            mean over prompts and vectors with a 95 % interval over prompts (`accuracy_lo`, `accuracy_hi`, ...):
            Wilson's for the first two, as `interval` says, t for others; `lead`, by how much the vector is above the
            condition on the same prompts (`lead_lo`, `lead_hi`: 95 % t); for drawn controls `n_as_good`, how many of
            them reach the vector, and `p = (1 + n_as_good) / (1 + n_vectors)`, which with 19 draws is never below
            0.05; `accuracy_best` is the best single vector's, `n_nonfinite` counts overflows (wrong, probability 0). A
            control that cannot be made (no heads left, no other vectors) has `n_vectors` 0. `.attrs` are `settings`.
        best: Where and how strongly the vector was judged: the best setting on *select*, or the one given.
        settings: Everything that made the table, in plain JSON values: among them the `recipe`, and the split that was
            `searched_on`, None where nothing was searched.
    """

    table: "pd.DataFrame"
    best: Setting
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls, judged: Sequence[Judged], *, per_vector: bool = False, settings: Mapping[str, Any] | None = None
    ) -> "Evaluation":
        """From what was judged, the vector itself under `iv`.

        Raises:
            ValueError: nothing was judged under `iv`.
        """
        import pandas as pd

        vector = next((one for one in judged if one.condition == "iv"), None)
        if vector is None:
            raise ValueError("judged holds no condition 'iv', expected that of the vector itself among them.")
        if per_vector:
            rows = [summary(one) for many in judged for one in many.separate()]
        else:
            rows = [summary(one) | beside(one, vector) for one in judged]
        table = pd.DataFrame(rows)
        table.attrs.update(settings or {})
        (best,) = vector.settings
        return cls(table, best, dict(settings or {}))

    @property
    def recipe(self) -> PromptRecipe:
        """How the clean prompts were made."""
        return PromptRecipe.from_dict(self.settings["recipe"])

    def accuracy(self, condition: str = "iv") -> float:
        """Mean accuracy under a condition.

        Raises:
            KeyError: there is no such condition.
        """
        found = self.table.loc[self.table["condition"] == condition, "accuracy"]
        if found.empty:
            known = ", ".join(self.table["condition"].unique())
            raise KeyError(f"condition is {condition!r:.60}, expected one of {known}.")
        return float(found.mean())

    def plot(self) -> "go.Figure":
        """Accuracy under every condition, with intervals."""
        from ivlens.show.figures.conditions import condition_plot

        return condition_plot(self.table.assign(task=self.settings.get("task", "")))

    def _shown(self) -> "pd.DataFrame":
        return self.table.reindex(columns=list(_SHOWN)).round(2)

    def __str__(self) -> str:
        return self._shown().to_string(index=False, na_rep="")

    def __repr__(self) -> str:
        layer, alpha, site = self.best
        scores = ", ".join(f"{name} {self.accuracy(name):.2f}" for name in ("iv", "bare", "clean"))
        return f"Evaluation({self.settings.get('task', '')!r}: {scores}; layer {layer}, alpha {alpha:g}, {site})"

    def _repr_html_(self) -> str:
        return self._shown().to_html(index=False, border=0, na_rep="")
