"""`PlaceEffects`: how much of the answer's score comes back when one place of the prompt is as in the clean prompt."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from ivlens.common.arguments import checked
from ivlens.common.intervals import named_of, t_interval
from ivlens.common.names import set_shown
from ivlens.models.fingerprint import ModelIdentity
from ivlens.prompts.recipe import PromptRecipe

if TYPE_CHECKING:
    import pandas as pd


@checked
@dataclass(frozen=True, eq=False)
class PlaceEffects:
    """Effects of patching one layer's residual stream, or one head, at one place of the prompt.

    Attributes:
        targets: What is patched: `resid 3` (the stream after block 3), or a head such as `L3H4`.
        places: Where: `instruction`, `input 1`, `answer 1` ..., `query`, `last`; each at its last token.
        effects: Effect of each target at each place on each prompt, in the unit of the score.
        base_scores: Score of each corrupted prompt.
        clean_scores: Score of its clean version.
        inputs: The input of each prompt.
        task: Name of the task.
        model: Identity of the model.
        settings: What else made these numbers, in plain JSON values.
    """

    targets: tuple[str, ...]
    places: tuple[str, ...]
    effects: Float[Tensor, "n_prompts targets places"]
    base_scores: Float[Tensor, " n_prompts"]
    clean_scores: Float[Tensor, " n_prompts"]
    inputs: tuple[str, ...]
    task: str
    model: ModelIdentity
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        set_shown(self, "task")

    @property
    def recipe(self) -> PromptRecipe:
        """How the clean prompts were made."""
        return PromptRecipe.from_dict(self.settings["recipe"])

    def frame(self) -> "pd.DataFrame":
        """One row for each target and place.

        Returns:
            Columns `task`, `target`, `place`, `score` (of which `effect` is a difference), `effect` (mean over prompts)
            with `low` and `high` (95 % over prompts), `interval` (its kind), `taken` (mean clean minus corrupted
            score, all that there is to come back), `n` (prompts).
        """
        import pandas as pd

        taken, n = float((self.clean_scores - self.base_scores).mean()), len(self.effects)
        rows = []
        for t, target in enumerate(self.targets):
            for p, place in enumerate(self.places):
                mean, low, high = t_interval(self.effects[:, t, p].double().numpy())
                rows.append(
                    {"task": self.task, "target": target, "place": place, "score": str(self.settings["score"])}
                    | {"effect": mean, "low": low, "high": high, "interval": named_of(n, "t"), "taken": taken, "n": n}
                )
        return pd.DataFrame(rows)

    def table(self) -> "pd.DataFrame":
        """Mean effects, a row for each target and a column for each place."""
        import pandas as pd

        return pd.DataFrame(self.effects.mean(0).tolist(), index=list(self.targets), columns=list(self.places))

    def __str__(self) -> str:
        return self.table().to_string(float_format="%+.3f")

    def __repr__(self) -> str:
        of = f"{len(self.targets)} targets, {len(self.places)} places, {len(self.effects)} prompts"
        return f"PlaceEffects({self.task!r}, {self.model.name!r}, {of})"

    def _repr_html_(self) -> str:
        return self.table().to_html(float_format=lambda value: f"{value:+.3f}")
