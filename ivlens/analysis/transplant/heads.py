"""`transplant`: outputs of one model's heads, prompt by prompt, at work in a tuned copy of it, and the reverse."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from random import Random
from typing import Literal

from ivlens.analysis.attention.chosen import judged_recipe
from ivlens.analysis.transplant.donors import Donor, FromDonor, check_alike
from ivlens.analysis.transplant.results import EVERY, OWN, RANDOM, VECTOR, Received, Transplant
from ivlens.common.arguments import checked
from ivlens.common.checks import check_count, check_counts
from ivlens.common.progress import ticking
from ivlens.effects.results import HeadEffects
from ivlens.forward.hooks import check_unsteered, model_lock
from ivlens.forward.remembered import Auto
from ivlens.models.attention import all_heads
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.fingerprint import model_identity
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.recipe import PromptRecipe
from ivlens.steering.controls import matched_heads
from ivlens.steering.prompt_sets import PromptSets
from ivlens.steering.summary import Scores
from ivlens.steering.trials import Trials
from ivlens.tasks.task import SplitName, Task
from ivlens.vectors.heads import Heads
from ivlens.vectors.vector import InstructionVector

MOST_DRAWS = 10_000


@checked
@dataclass(frozen=True)
class TransplantOptions:
    """Which heads are transplanted, and how both models are judged.

    Attributes:
        ks: Numbers of heads, strongest first; larger than the number of measured heads: left out. Of a vector all heads
            are taken.
        n_draws: Sets of random heads that are drawn beside each number; 19 or more for a table, 5 for a quick look.
        positions: `every`: at the last prompt token and at each token of the answer; `prompt`: at the last prompt token
            alone.
        split: The split of inputs to judge on.
        seed: Draws prompts and random heads; splits, instructions and demonstrations are those of the recipe's seed.
    """

    ks: Sequence[int] = (1, 5, 10, 20, 40)
    n_draws: int = 5
    positions: Literal["prompt", "every"] = "every"
    split: SplitName = "test"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "ks", tuple(self.ks))
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks is {self.ks}, expected one or more numbers of heads, each 1 or more.")
        check_counts(self, seed=0)
        check_count("n_draws", self.n_draws, 0, MOST_DRAWS)


@checked
def transplant(
    before: TransformerBridge,
    after: TransformerBridge,
    task: Task,
    heads: HeadEffects | InstructionVector,
    *,
    recipe: PromptRecipe | Auto | None = None,
    n_prompts: int | None = None,
    options: TransplantOptions | None = None,
) -> Transplant:
    """Measure how often each of two models answers right with outputs of the other one's heads in the place of its own.

        >>> found = ivlens.transplant(before, after, task, effects)
        >>> found.accuracy("after", k=10)   # of the tuned model, with ten heads' outputs of the first one

    On identical clean prompts, `z_{l,h}` of the giving model replaces that of the receiving model for all heads of a
    set `S`, for each prompt its own. If training has only changed which computation is activated, the outputs of the
    vector's heads bring the old task back in the tuned model (`into` is `after`), and those of the tuned model take it
    away in the first one (`before`). If the computation itself is gone, they do neither.

    Sets: the `k` heads of largest effect in the first model, for each number in `ks`; beside each, `n_draws` sets of as
    many random heads of the same layers; and all heads of the model.

    Args:
        before, after: A model, and a fine-tuned copy of it with the same tokenizer, from `load_model`.
        task: A task that the first model knows.
        heads: Effects or a vector of the first model.
        recipe: How clean prompts are made; None: as those of `heads`.
        n_prompts: The largest number of prompts; None: the whole split.
        options: Which heads, and how.

    Raises:
        ValueError: models of different shapes, heads of another model or measured on the judged split, or prompts that
            do not fit the model.
        RuntimeError: inside a `steer` context.

    Source: docs/method.md, 16 Parts of one model in another. The question, `P(θ|x)` or `P(y|x, θ)`, is that of arXiv
        2502.11019; head outputs of a tuned model are patched into the first one in arXiv 2402.14811.
    """
    options = options or TransplantOptions()
    for name, model in (("before", before), ("after", after)):
        check_unsteered(check_model(model, name))
    check_alike(before, after)
    recipe = judged_recipe(before, task, heads, recipe, options.split)
    prompts = PromptSets(before, task, recipe, None, n_prompts, options.seed).batch(options.split)
    ranked = _ranked(before, heads)
    ks = (len(ranked),) if isinstance(heads, InstructionVector) else options.ks
    sets = _sets(before, ranked, ks, options)
    received: list[Received] = []
    with ExitStack() as stack:
        # always in one order: two threads with the same models cannot block each other
        for model in sorted((before, after), key=id):
            stack.enter_context(model_lock(model))
        for into, model, other in (("after", after, before), ("before", before, after)):
            received += _received(into, model, other, prompts, sets, options)
    settings = asdict(options) | {
        "task": task.name,
        "task_hash": task.content_hash(),
        "before": model_identity(before).key,
        "after": model_identity(after).key,
        "recipe": recipe.to_dict(),
        "n_prompts": n_prompts,
    }
    return Transplant.of(received, settings)


def _ranked(model: TransformerBridge, heads: HeadEffects | InstructionVector) -> Heads:
    """All measured heads of attention, the strongest first, or those of a vector."""
    every = set(all_heads(model))
    if isinstance(heads, HeadEffects):
        return tuple(head for head in heads.top_heads(int((~heads.aie.isnan()).sum())) if head in every)
    if not every.issuperset(heads.heads):
        raise ValueError(
            f"the vector of {heads.task!r} has heads of recurrent mixers, expected heads of attention alone; measure "
            "effects with mixer='attention'."
        )
    return heads.heads


def _sets(
    model: TransformerBridge, ranked: Heads, ks: Sequence[int], options: TransplantOptions
) -> list[tuple[str, int, tuple[Heads, ...]]]:
    """Every kind and number of heads, with its sets."""
    every = tuple(all_heads(model))
    found: list[tuple[str, int, tuple[Heads, ...]]] = []
    for k in sorted({k for k in ks if k <= len(ranked)}):
        chosen = ranked[:k]
        draws = [Random(f"{options.seed}\0{k}\0{draw}") for draw in range(options.n_draws)]
        drawn = [matched_heads(chosen, (), every, draw) for draw in draws]
        found.append((VECTOR, k, (chosen,)))
        # where most heads are in the set, there are not as many others
        if drawn and all(len(each) == k for each in drawn):
            found.append((RANDOM, k, tuple(drawn)))
    return [*found, (EVERY, len(every), (every,))]


def _received(
    into: str,
    model: TransformerBridge,
    other: TransformerBridge,
    prompts: PromptBatch,
    sets: list[tuple[str, int, tuple[Heads, ...]]],
    options: TransplantOptions,
) -> list[Received]:
    """The scores of one model as it is, and with each set of the other one's heads."""
    trials = Trials(model, prompts, positions=options.positions)
    donor = Donor(Trials(other, prompts, positions=options.positions))
    found = [Received(into, OWN, 0, ((),), trials.unsteered())]
    for heads, k, own in ticking(sets, f"heads into the model {into}", "sets"):
        scores = Scores.stacked([trials.edited(FromDonor(model, donor, each)) for each in own])
        found.append(Received(into, heads, k, own, scores))
    return found
