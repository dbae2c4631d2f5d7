"""`evaluate_intervention`: judges whether a vector does what its instruction does and beats its controls."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ivlens.common.arguments import checked
from ivlens.common.checks import check_count
from ivlens.common.progress import showing_progress
from ivlens.effects.results import HeadEffects
from ivlens.forward.means import HeadMeans
from ivlens.models.boot import TransformerBridge
from ivlens.models.fingerprint import model_identity
from ivlens.prompts.corruptions import Corruption
from ivlens.prompts.recipe import PromptRecipe
from ivlens.steering.controls import (
    measured_again,
    random_head_vectors,
    random_vectors,
    some_other_vectors,
    true_others,
)
from ivlens.steering.evaluation import Evaluation
from ivlens.steering.judging import judged_constant, judged_heads, judged_vectors
from ivlens.steering.making_rows import with_more_rows
from ivlens.steering.more_rows import Asked, MoreRows
from ivlens.steering.prompt_sets import PromptSets, followed_recipe, split_seed
from ivlens.steering.search import Grid
from ivlens.steering.side_effects import SideEffects
from ivlens.steering.summary import Judged, Keep, Setting, made_now
from ivlens.tasks.task import SplitName, Task
from ivlens.vectors.vector import InstructionVector, check_belongs

logger = logging.getLogger(__name__)


@checked
@dataclass(frozen=True)
class JudgeOptions:
    """How a vector is judged, apart from its prompts and its setting.

    Attributes:
        split: The split of inputs to judge on.
        seed: Draws the prompts and the random controls. Splits, instructions and demonstrations are those of the
            recipe's seed.
        corruption: What the judged prompts lack. `drop`: instruction and demonstrations; None: nothing, the vector is
            added to clean prompts.
        other_vectors: Vectors of other tasks on the same inputs. None: up to `n_draws` built-in tasks are drawn, and
            their vectors made at the cost of one `head_effects` each; where no built-in task has these inputs, a line
            in the log says that the control is missing. `()`: this control is left out.
        means: Mean outputs of all heads, for `random_heads`; best are the effects from which the vector was made. None:
            the means are measured on up to 100 `fit` prompts.
        per_vector: Whether the table has a row for each control vector, instead of one for each condition.
        progress: Whether to show bars for the vectors of other tasks, the search and the judgement.
        more: Further rows of the table; None: none.
        keep: Called with the name of each part of the judgement (`controls` for the conditions without further rows,
            then the name of each kind of further rows) and a function that makes its rows; what it returns are the
            part's rows. So a caller can keep parts and say how far the work is. None: each part is made.
    """

    split: SplitName = "test"
    seed: int = 0
    corruption: Corruption | None = "drop"
    other_vectors: Sequence[InstructionVector] | None = None
    means: HeadMeans | HeadEffects | None = None
    per_vector: bool = False
    progress: bool = False
    more: MoreRows | None = None
    keep: Keep | None = None


@checked
def evaluate_intervention(
    model: TransformerBridge,
    task: Task,
    iv: InstructionVector,
    *,
    recipe: PromptRecipe | None = None,
    at: Grid | Setting | None = None,
    n_prompts: int | None = None,
    n_draws: int = 5,
    options: JudgeOptions | None = None,
) -> Evaluation:
    """Measure the model's accuracy with the vector added, and under all controls that the vector has to beat.

    Layer, strength and site are searched for on the *select* split, for the vector and for *each* control vector on its
    own, over the same grid and the same prompts. The judged split is then used once.

    Conditions: `clean` (prompts of the recipe), `bare` (the judged prompts as they are: no instruction, no
    demonstrations), `iv`, `iv_heads` (its heads replaced by their means), `random` (`n_draws` vectors of equal norm),
    `random_heads` (`n_draws` vectors from k heads outside S, scaled to equal norm), `other_tasks` (vectors of other
    tasks, without those that contain this task's vector), `constant` (the answer that is right most often on *select*,
    given to every prompt).

    An answer is right (`accuracy`) where greedy decoding begins with it and does not go on inside its last word: "12"
    is not "1", "small dog" is "small". It is also `exact` where the text or the line then ends.

    Example:
        >>> import ivlens
        >>> model, task = ivlens.load_model("pocket"), ivlens.load_task("antonym")
        >>> effects = ivlens.head_effects(model, task, n_prompts=8)
        >>> iv = ivlens.InstructionVector.from_effects(effects, k=10)
        >>> grid = ivlens.Grid(layers=(0, 1), alphas=(2, 4), sites=("attn_out",))  # None: a wider one
        >>> options = ivlens.JudgeOptions(means=effects, other_vectors=())
        >>> judged = ivlens.evaluate_intervention(model, task, iv, at=grid, n_prompts=16, n_draws=2, options=options)
        >>> judged.table.set_index("condition")["accuracy"].round(1)[["bare", "iv"]].to_dict()
        {'bare': 0.1, 'iv': 0.9}

    Args:
        recipe: How clean prompts are made; None: as those of the vector were.
        at: The grid that is searched. None: `Grid()`, with up to twelve layers, both sites and strengths 0.5 to 8. Or
            one setting: nothing is searched then, and all conditions have this setting. It should not be one that was
            found for this vector: its controls, for which nothing was searched, would look too weak.
        n_prompts: The largest number of prompts from each split, drawn with the seed; None: all.
        n_draws: Draws of each random control; 19 or more for a table, 5 for a quick look.
        options: How the vector is judged otherwise.

    Returns:
        The table of all conditions, and the vector's best setting.

    Raises:
        ValueError: an unknown split, layer or site; prompts with nothing to take away; a vector of another model, or
            made on the judged split or on splits of another seed than the others; `means` of another model.

    Source:
        docs/method.md, 6 Intervention and its controls; arXiv 2406.12227 and 2310.15213, where a vector is added at one
        layer for all tasks and compared with the prompt without it. Added here: the search on prompts of its own, and
        all controls.
    """
    check_belongs(iv, model)
    check_count("n_draws", n_draws, 0, 10_000)
    options = options or JudgeOptions()
    if isinstance(options.means, HeadEffects) and (other := options.means.model.differs(model_identity(model))):
        raise ValueError(
            f"means are effects measured on {options.means.model}, and this model has {other}: what its random heads "
            "write is not known; measure them on this model, or leave means out."
        )
    with showing_progress(options.progress):
        return _evaluated(model, task, iv, recipe, at, n_prompts, n_draws, options)


def _evaluated(
    model: TransformerBridge,
    task: Task,
    iv: InstructionVector,
    recipe: PromptRecipe | None,
    at: Grid | Setting | None,
    n_prompts: int | None,
    n_draws: int,
    options: JudgeOptions,
) -> Evaluation:
    """The judgement itself, once the arguments are checked."""
    given = options.other_vectors
    others = true_others(some_other_vectors(model, task, iv, n_draws) if given is None else given, iv, task)
    for vector in others:
        check_belongs(vector, model)
    # a `Setting` is a named tuple, and a plain tuple does as well
    grid = Grid.only(Setting(*at)) if isinstance(at, tuple) else at or Grid()
    settings = grid.settings(model)
    chosen = followed_recipe([iv, *others], recipe, task, options.split, options.seed)
    # vectors are used on two splits, to search and to judge, and no vector may have been made on either of these
    searched_on = _searched_on(settings, options.split)
    if searched_on is not None and searched_on != options.split:
        split_seed([iv, *others], searched_on, chosen.seed)  # called only for its errors
    # further rows ask the same prompts again and again, so these are kept for them
    more, kept = options.more, None if options.more is None else {}
    prompts = PromptSets(model, task, chosen, options.corruption, n_prompts, options.seed, **grid.passes, kept=kept)
    judge, keep = prompts.trials(options.split), options.keep or made_now
    aside = SideEffects(model, more.text) if more is not None and "side_effects" in more.rows else None

    def controls() -> list[Judged]:
        vectors = {
            "iv": [iv],
            "random": random_vectors(iv, n_draws, options.seed),
            "random_heads": _random_heads(prompts, iv, options.means, n_draws),
            "other_tasks": others,
        }
        found = [
            Judged("clean", prompts.trials(options.split, corrupted=False).unsteered()),
            Judged("bare", judge.unsteered()),
            *judged_vectors(vectors, prompts, judge, grid),
            *judged_heads(iv, judge),
            judged_constant(prompts, judge),
        ]
        return found if aside is None else aside.of(found)

    judged = keep("controls", controls)
    if more is not None:
        best = next(one.settings[0] for one in judged if one.condition == "iv")
        effects = options.means if isinstance(options.means, HeadEffects) else None
        own = n_draws if more.n_draws is None else more.n_draws
        asked = Asked(iv, best, prompts, judge, options.split, grid, own, more, effects)
        judged = with_more_rows(asked, judged, keep, aside)
    made_by = _provenance(prompts, iv, options.split) | {"grid": asdict(grid), "searched_on": searched_on}
    made_by |= {"more": None if more is None else more.recorded()}
    return Evaluation.of(judged, per_vector=options.per_vector, settings=made_by)


def _searched_on(settings: Sequence[Setting], split: SplitName) -> SplitName | None:
    """The split that a search uses; None where there is one setting, and so nothing to search."""
    if len(settings) == 1:
        return None
    if split == "select":
        logger.warning(
            "evaluate_intervention judges on 'select', on which layer, alpha and site are searched: its scores are too "
            "high for every vector; use split='test'."
        )
    return "select"


def _random_heads(
    prompts: PromptSets, iv: InstructionVector, means: HeadMeans | HeadEffects | None, n_draws: int
) -> list[InstructionVector]:
    """The `random_heads` control vectors; none for a vector without heads, such as one computed from others."""
    if not iv.heads:
        return []
    if means is None:
        means = measured_again(prompts, iv)
    return random_head_vectors(prompts.model, iv, means, n_draws, prompts.seed)


def _provenance(prompts: PromptSets, iv: InstructionVector, split: SplitName) -> dict[str, Any]:
    """Everything that made the table, in plain JSON values, which a parquet file keeps beside the table."""
    return {
        "model": asdict(model_identity(prompts.model)),
        "task": prompts.task.name,
        "task_hash": prompts.task.content_hash(),
        "vector": {"task": iv.task, "heads": [list(head) for head in iv.heads], "weights_hash": iv.model.weights_hash},
        "split": split,
        "corruption": prompts.applied,
        "recipe": prompts.recipe.resolved(prompts.task).to_dict(),
        "n_prompts": prompts.n_prompts,
        "n_too_long": prompts.batch(split).n_too_long,
        "seed": prompts.seed,
    }
