"""The options of an evaluation of several tasks, and the names of its parts."""

from dataclasses import dataclass, field

from ivlens.common.arguments import checked
from ivlens.common.checks import check_count, check_counts
from ivlens.prompts.recipe import PromptRecipe
from ivlens.steering.making_rows import MAKERS
from ivlens.steering.more_rows import MOST_DRAWS, MoreRows
from ivlens.steering.search import Grid

# what a line of progress says when a part begins; a kind of further rows without a line here is called by its name
PARTS = {
    "effects": "effects of all heads",
    "others": "vectors of other built-in tasks",
    "settings": "accuracy by layer and strength",
    "controls": "the vector and its controls",
    "necessity": "clean prompts with outputs of heads replaced",
    "by_k": "other numbers of heads",
    "mean_difference": "differences of mean streams",
    "distributed": "each head in its own layer",
    "trained": "vectors trained by gradient",
    "other_templates": "other templates",
}


@checked
@dataclass(frozen=True)
class EvaluateOptions:
    """Options of an evaluation of several tasks.

    Attributes:
        k: Number of heads in a vector.
        n_prompts: Number of corrupted prompts of each task for the effects.
        n_judge_prompts: At most so many prompts of each split in every judgement; None: all.
        n_draws: Draws of each random control of a vector.
        grid: The settings that are tried for every vector and every control.
        more: Further rows of each judgement; None: none. Means of other tasks come from those evaluated together.
        recipe: How prompts of all tasks are made. Its seed is that of everything that is drawn, and of the splits.
    """

    k: int = 10
    n_prompts: int = 24
    n_judge_prompts: int | None = 48
    n_draws: int = 19
    grid: Grid = field(default_factory=lambda: Grid(alphas=(1.0, 2.0, 4.0), sites=("resid_post",)))
    more: MoreRows | None = field(default_factory=lambda: MoreRows(n_draws=5))
    recipe: PromptRecipe = PromptRecipe()

    def __post_init__(self) -> None:
        check_counts(self, k=1, n_prompts=1, n_judge_prompts=1, n_draws=1)
        check_count("n_draws", self.n_draws, 1, MOST_DRAWS)
        if self.more is not None and self.more.others is not None:
            raise ValueError(
                "more has effects of other tasks (others), expected None: the effects of the tasks that are evaluated "
                "together are taken; leave others out."
            )

    @property
    def rows(self) -> tuple[str, ...]:
        """The kinds of further rows that are made one after the other; side effects are columns of all of them."""
        return () if self.more is None else tuple(name for name in MAKERS if name in self.more.rows)
