"""`ablate_heads`: the accuracy that is left without the vector's heads, without induction heads, without others."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from random import Random
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from ivlens.analysis.attention.ablated import NOTHING, HeadAblation, Tried
from ivlens.analysis.attention.chosen import judged_recipe
from ivlens.analysis.attention.scores import HeadScores, head_scores
from ivlens.analysis.attention.sets import head_sets
from ivlens.common.arguments import checked
from ivlens.common.checks import check_count, check_counts
from ivlens.common.progress import ticking
from ivlens.effects.results import HeadEffects
from ivlens.forward.asking import Room, prompts_for
from ivlens.forward.hooks import check_unsteered
from ivlens.forward.means import mean_head_outputs
from ivlens.forward.remembered import Auto
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.fingerprint import model_identity
from ivlens.models.mixers import heads_beside, mixer_with
from ivlens.prompts.corruptions import Corruption
from ivlens.prompts.recipe import PromptRecipe
from ivlens.steering.controls import matched_heads
from ivlens.steering.edits import HeadOutputs, Positions, Where, replacement
from ivlens.steering.prompt_sets import PromptSets
from ivlens.steering.summary import Scores
from ivlens.steering.trials import Trials
from ivlens.tasks.task import SplitName, Task
from ivlens.vectors.heads import Heads
from ivlens.vectors.vector import InstructionVector

MOST_DRAWS = 10_000

logger = logging.getLogger(__name__)


@checked
@dataclass(frozen=True)
class AblationOptions:
    """Which heads are ablated, and how.

    Attributes:
        k: The largest number of heads in a set; of a vector all heads are taken.
        threshold: Heads with an induction score of at least this much count as induction heads.
        replaced_by: What replaces a head's output: its mean over `corrupted` prompts, which have the length of the
            judged ones, or over `bare` ones, without instruction and demonstrations.
        corruption: How corrupted prompts are corrupted; None: as suits the recipe.
        positions: `every`: at the last prompt token and at each generated one; `prompt`: at the last prompt token;
            `all`: at every token of the prompt too.
        split: The split of inputs to judge on; means are those of *fit* inputs.
        seed: Draws prompts and random heads; splits, instructions and demonstrations are those of the recipe's seed.
        n_draws: Sets of random heads that are drawn beside each set; 19 or more for a table, 5 for a quick look.
        n_mean_prompts: The largest number of prompts for the means.
    """

    k: int = 10
    threshold: float | int = 0.4
    replaced_by: Literal["corrupted", "bare"] = "corrupted"
    corruption: Corruption | None = None
    positions: Positions = "every"
    split: SplitName = "test"
    seed: int = 0
    n_draws: int = 5
    n_mean_prompts: int = 100

    def __post_init__(self) -> None:
        check_counts(self, k=1, seed=0, n_draws=0, n_mean_prompts=1)
        check_count("n_draws", self.n_draws, 0, MOST_DRAWS)
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}, expected a share of attention above 0 and at most 1.")


@checked
def ablate_heads(
    model: TransformerBridge,
    task: Task,
    heads: HeadEffects | InstructionVector,
    *,
    recipe: PromptRecipe | Auto | None = None,
    scores: HeadScores | None = None,
    n_prompts: int | None = None,
    options: AblationOptions | None = None,
) -> HeadAblation:
    """Measure how often clean prompts are answered right without the vector's heads, and without induction heads.

        >>> print(ivlens.ablate_heads(model, task, effects))

    Sets of heads:

    - `vector`: the `k` heads of largest effect, or those of the vector;
    - `vector_only`: the `k` heads of largest effect that are no induction heads;
    - `induction`: the `k` heads of largest induction score, all of them at least at the threshold;
    - `induction_only`: the same among heads that are not in `vector`.

    Beside each, `n_draws` sets of as many random heads in the same layers, none of them in one of the four sets. Where
    a layer has no other heads, the nearest one gives them.

    Args:
        model: From `load_model`, with its tokenizer.
        task: From `load_task`.
        heads: Effects or a vector of this model. With effects, sets are filled up to `k` heads, so their sizes are the
            same; a vector's `vector_only` has fewer.
        recipe: How clean prompts are made; None: as those of `heads`.
        scores: From `head_scores`; None: they are measured.
        n_prompts: The largest number of prompts; None: the whole split.
        options: Which heads, and how.

    Raises:
        ValueError: heads of another model, or measured on the judged split; prompts that do not fit the model; or a
            corruption that does not suit them.
        RuntimeError: inside a `steer` context.

    Source: docs/method.md, 15 Where heads look; arXiv 2502.14010 (ablation of one kind of heads without the other).
        Added here: random heads in the same layers, and prompts that chose nothing.
    """
    check_unsteered(check_model(model))
    options = options or AblationOptions()
    recipe = judged_recipe(model, task, heads, recipe, options.split)
    prompts = PromptSets(model, task, recipe, None, n_prompts, options.seed, options.positions)
    trials = prompts.trials(options.split, corrupted=False)
    scores = scores if scores is not None else head_scores(model)
    if scores.model.differs(model_identity(model)):
        raise ValueError(f"scores are those of {scores.model.name!r}, expected those of this model; leave them out.")
    sets = head_sets(heads, scores, options.k, options.threshold)
    for name, chosen in sets.items():
        if not chosen:
            logger.info("%s: no heads for %s (induction score of %g or more).", task.name, name, options.threshold)
    values, kind = _values(model, task, recipe, options, sets)
    tried = [Tried(NOTHING, False, (), trials.unsteered()), *_tried(model, trials, sets, values, options)]
    settings = asdict(options) | {
        "task": task.name,
        "model": model_identity(model).name,
        "recipe": recipe.to_dict(),
        "n_prompts": n_prompts,
        "means_over": kind,
        "scores": dict(scores.settings),
        "task_hash": task.content_hash(),
    }
    return HeadAblation.of(tried, settings)


def _values(
    model: TransformerBridge, task: Task, recipe: PromptRecipe, options: AblationOptions, sets: dict[str, Heads]
) -> tuple[Float[Tensor, "n_layers n_heads d_head"], str]:
    """What replaces the heads' outputs, and how the prompts of these means were corrupted."""
    corruption = "drop" if options.replaced_by == "bare" else options.corruption or recipe.corruption(task)
    examples = PromptSets(model, task, recipe, "drop", options.n_mean_prompts, options.seed).examples("fit")
    batch = prompts_for(model, task, examples, recipe, corruption=corruption, room=Room("first"))
    batch = batch.rows(batch.rows_of_one_kind())
    mixer = mixer_with(model, [head for chosen in sets.values() for head in chosen])
    return mean_head_outputs(model, batch.tokens, batch.attention_mask, mixer=mixer), batch.corruptions[0]


def _tried(
    model: TransformerBridge,
    trials: Trials,
    sets: dict[str, Heads],
    values: Float[Tensor, "n_layers n_heads d_head"],
    options: AblationOptions,
) -> list[Tried]:
    """The scores without each set, and without the random ones drawn beside it."""
    named = {head for chosen in sets.values() for head in chosen}
    every = heads_beside(model, named)
    plan: list[tuple[str, bool, tuple[Heads, ...]]] = []
    for name, chosen in sets.items():
        plan.append((name, False, (chosen,) if chosen else ()))
        draws = [Random(f"{options.seed}\0{name}\0{draw}") for draw in range(options.n_draws)]
        drawn = [matched_heads(chosen, named, every, draw) for draw in draws]
        plan.append((name, True, tuple(each for each in drawn if each)))
    known: dict[Heads, Scores] = {}  # sets that are the same are run once
    for chosen in ticking(sorted({each for _, _, own in plan for each in own}), "ablating heads", "sets"):
        known[chosen] = trials.edited(_without(model, chosen, values))
    return [
        Tried(name, drawn, own, Scores.stacked([known[each] for each in own]) if own else None)
        for name, drawn, own in plan
        if own or not drawn
    ]


def _without(
    model: TransformerBridge, heads: Heads, values: Float[Tensor, "n_layers n_heads d_head"]
) -> Callable[[Where], AbstractContextManager[None]]:
    """A context in which `values` replace the outputs of these heads at the edited positions."""
    if not heads:
        return lambda where: nullcontext()
    outputs = HeadOutputs.chosen(heads, values)
    return lambda where: outputs.patching(model, replacement(outputs, 1.0, where))
