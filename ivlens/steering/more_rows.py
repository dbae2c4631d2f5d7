"""`MoreRows`: which further rows a judgement has; `Asked`: what all of them need."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from random import Random
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ivlens.common.arguments import checked
from ivlens.common.checks import Texts, check_count, check_counts, set_items
from ivlens.effects.results import HeadEffects
from ivlens.forward.means import mean_head_outputs
from ivlens.models.mixers import heads_beside, mixer_with
from ivlens.steering.controls import draw_seed, matched_heads
from ivlens.steering.prompt_sets import PromptSets
from ivlens.steering.search import Grid
from ivlens.steering.summary import Setting
from ivlens.steering.trials import Trials
from ivlens.tasks.task import SplitName, Task
from ivlens.vectors.heads import Heads
from ivlens.vectors.vector import InstructionVector

ROWS = ("necessity", "by_k", "mean_difference", "distributed", "trained", "other_templates", "side_effects")

MOST_DRAWS = 10_000  # as many as a judgement may have


@checked
@dataclass(frozen=True)
class MoreRows:
    """Further rows of the table of `evaluate_intervention`, and how they are made.

        >>> more = ivlens.MoreRows(("necessity", "by_k"), ks=(1, 5, 20))
        >>> ivlens.evaluate_intervention(model, task, iv, options=ivlens.JudgeOptions(means=effects, more=more))

    - `necessity`: on clean prompts, the outputs of the vector's heads are replaced by means over corrupted prompts,
      over prompts of other tasks, and over bare prompts; beside random heads of the same layers and the heads that come
      next in strength.
    - `by_k`: vectors of other numbers of heads, each beside vectors of as many random heads.
    - `mean_difference`: the mean residual stream of clean prompts minus that of corrupted ones, and of bare ones.
    - `distributed`: the means of the heads are added to their outputs, each in its own layer.
    - `trained`: a vector trained by gradient, and one that was trained on permuted answers.
    - `other_templates`: the vector, with its setting, on bare prompts of other templates.
    - `side_effects`: for each vector, what it does to texts that have nothing to do with the task.

    See docs/method.md, 14 Further rows of a judgement.

    Attributes:
        rows: Which rows, names of the list above.
        ks: Numbers of heads, for `by_k`; those above the number of heads are left out.
        n_draws: Draws of each random control of these rows. None: as many as the judgement has.
        n_mean_prompts: The largest number of *fit* prompts in each mean.
        head_alphas: Strengths tried for `distributed`.
        others: Effects of other tasks on this model, whose means replace head outputs (`necessity`). None: means are
            measured on up to `n_others` built-in tasks.
        n_others: See `others`.
        templates: Templates for `other_templates`. Those in which the bare prompts are the same are left out.
        text: A plain text for `side_effects`; None: the one that comes with ivlens.
    """

    rows: Texts = ROWS
    ks: Sequence[int] = (1, 2, 5, 10, 20, 40)
    n_draws: int | None = None
    n_mean_prompts: int = 64
    head_alphas: Sequence[float | int] = (0.25, 0.5, 1.0, 2.0, 4.0)
    others: Sequence[HeadEffects] | None = field(default=None, repr=False)
    n_others: int = 3
    templates: Texts = ("plain", "qa", "chat")
    text: str | None = None

    def __post_init__(self) -> None:
        set_items(self, "rows", "templates")
        check_counts(self, n_draws=0, n_mean_prompts=1, n_others=1)
        check_count("n_draws", self.n_draws, 0, MOST_DRAWS)
        unknown = [row for row in self.rows if row not in ROWS]
        if unknown:
            raise ValueError(f"rows has {', '.join(map(repr, unknown))[:60]}, expected some of {', '.join(ROWS)}.")
        for name in ("ks", "head_alphas"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks is {self.ks}, expected numbers of heads from 1.")

    def recorded(self) -> dict[str, Any]:
        """The options in plain JSON values."""
        others = None if self.others is None else [other.task for other in self.others]
        return {name: value for name, value in vars(self).items() if name != "others"} | {"others": others}


@dataclass(frozen=True, eq=False)
class Asked:
    """What every further row is made from.

    Attributes:
        iv: The judged vector.
        best: Its setting.
        prompts: How prompts of each split are made.
        judge: The judged prompts.
        split: Their split.
        grid: The settings that are searched for a vector.
        n_draws: Draws of each random control of the further rows.
        more: What was asked for.
        effects: The effects that the vector was made from, where they were given.
    """

    iv: InstructionVector
    best: Setting
    prompts: PromptSets
    judge: Trials
    split: SplitName
    grid: Grid
    n_draws: int
    more: MoreRows
    effects: HeadEffects | None

    @property
    def task(self) -> Task:
        return self.prompts.task

    def need_effects(self, row: str) -> HeadEffects:
        """The effects, which this row cannot do without.

        Raises:
            ValueError: none were given.
        """
        if self.effects is None:
            raise ValueError(
                f"the row {row!r} got no effects, expected those that the vector was made from, which rank all heads; "
                "pass JudgeOptions(means=effects)."
            )
        return self.effects

    def fit_prompts(self, corruption: str | None) -> PromptSets:
        """How *fit* prompts are made for means: as the vector's own were, with this corruption."""
        return replace(self.prompts, corruption=corruption, n_prompts=self.more.n_mean_prompts, kept=None)

    @cached_property
    def corruption(self) -> str:
        """The corruption of the effects behind the vector; where none is recorded, the recipe's default."""
        recorded = (self.iv.settings.get("effects") or {}).get("corruption")
        return recorded or self.prompts.recipe.corruption(self.task)

    def means_over(self, corruption: str) -> Float[Tensor, "n_layers n_heads d_head"]:
        """Mean head outputs over *fit* prompts with a corruption, at their last tokens."""
        batch = self.fit_prompts(corruption).batch("fit")
        batch = batch.rows(batch.rows_of_one_kind())
        mixer = mixer_with(self.prompts.model, self.iv.heads)
        return mean_head_outputs(self.prompts.model, batch.tokens, batch.attention_mask, mixer=mixer).cpu()

    def matched_heads(self, heads: Heads, draw: int) -> Heads:
        """As many random heads outside the vector, of the same layers."""
        seed = draw_seed(self.prompts.seed, self.iv, "matched heads", draw)
        return matched_heads(heads, self.iv.heads, heads_beside(self.prompts.model, heads), Random(seed))
