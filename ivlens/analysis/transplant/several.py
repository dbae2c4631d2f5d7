"""`transplants`: both measurements for several tasks, each kept as soon as it is made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ivlens.analysis.transplant.heads import TransplantOptions, transplant
from ivlens.analysis.transplant.splicing import SpliceOptions, splice
from ivlens.common.checks import check_counts
from ivlens.common.progress import ticking
from ivlens.common.store.keys import versions
from ivlens.common.store.store import Store
from ivlens.effects.measure import head_effects
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.recipe import PromptRecipe, plain_options
from ivlens.steering.summary import corrected
from ivlens.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd

Model = Callable[[], TransformerBridge]


@dataclass(frozen=True)
class TransplantPlan:
    """What is measured of each task.

    Attributes:
        heads: Which heads are transplanted, and how both models are judged.
        splices: Where the models are spliced; None: nowhere.
        n_prompts: Corrupted prompts for the effects, by which the first model's heads are ranked.
        n_judge_prompts: At most so many prompts of each task in both measurements; None: all.
        recipe: How prompts are made.
    """

    heads: TransplantOptions = TransplantOptions()
    splices: SpliceOptions | None = SpliceOptions()
    n_prompts: int = 24
    n_judge_prompts: int | None = None
    recipe: PromptRecipe = PromptRecipe()

    def __post_init__(self) -> None:
        check_counts(self, n_prompts=1, n_judge_prompts=1)


def transplants(
    before: Model,
    after: Model,
    models: tuple[Mapping[str, Any], Mapping[str, Any]],
    tasks: Sequence[Task],
    plan: TransplantPlan,
    store: Store | None = None,
) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """The tables of `transplant` and of `splice` for several tasks, one below the other, with a column `task`.

    Args:
        before, after: Open the two models; called only where something has to be measured.
        models: What tells the two models apart from all others, for the store.
        store: Keeps the tables of each task; None: nothing is kept.

    Returns:
        Both tables; that of splices is empty where there are none. `p_holm` is `p` corrected for the number of tasks.
    """

    swapped, spliced = [], []
    for task in ticking(tasks, "transplants", "tasks"):
        recipe = plan.recipe.resolved(task)

        def heads(task: Task = task, recipe: PromptRecipe = recipe) -> "pd.DataFrame":
            effects = head_effects(before(), task, recipe=recipe, n_prompts=plan.n_prompts)
            judged = plan.n_judge_prompts
            return transplant(before(), after(), task, effects, n_prompts=judged, options=plan.heads).table

        def blocks(task: Task = task, recipe: PromptRecipe = recipe) -> "pd.DataFrame":
            judged = plan.n_judge_prompts
            return splice(before(), after(), task, recipe=recipe, n_prompts=judged, options=plan.splices).table

        parts = [("transplant", plan.heads, heads, swapped), ("splice", plan.splices, blocks, spliced)]
        for kind, options, make, found in parts:
            if options is None:
                continue
            what = {"kind": kind, "models": [dict(each) for each in models], "task": task.full_hash(), **versions()}
            about = plain_options(replace(plan, splices=None, heads=TransplantOptions()))
            what |= {"options": asdict(options), "plan": about}
            table = make() if store is None else store.table(what, make)
            found.append(table.assign(task=task.name))
    return corrected(tables_below(swapped), by=("into", "heads", "k")), tables_below(spliced)


def tables_below(tables: "list[pd.DataFrame]") -> "pd.DataFrame":
    """The tables one below the other, the task first; without the attributes of each, which differ."""
    import pandas as pd

    for table in tables:
        table.attrs.clear()
    if not tables:
        return pd.DataFrame()
    found = pd.concat(tables, ignore_index=True)
    return found.reindex(columns=["task", *(name for name in found.columns if name != "task")])
