"""`head_effects`: measures the effects of all heads for a task, and records everything that made them."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal, SupportsIndex

from jaxtyping import Float
from torch import Tensor

from ivlens.common.arguments import checked
from ivlens.common.checks import check_counts
from ivlens.common.progress import Progress, bar, showing_progress
from ivlens.effects.engines import find_engine, run_engine
from ivlens.effects.plan import Plan, mean_prompts, measured_prompts, score_for
from ivlens.effects.provenance import provenance
from ivlens.effects.request import (
    EffectRequest,
    Measured,
    PatchOptions,
    check_mode,
    check_selection,
    make_request,
)
from ivlens.effects.results import HeadEffects
from ivlens.effects.rounding import rounding_noise, warn_of_noise
from ivlens.effects.taken import scores_of
from ivlens.forward.ability import Ability, measure_ability
from ivlens.forward.hooks import check_unsteered
from ivlens.forward.means import HeadMeans, head_means, mean_head_outputs
from ivlens.forward.remembered import Auto, recipe_for
from ivlens.forward.scoring import Score, check_score
from ivlens.models.boot import ModelRef, TransformerBridge, check_model
from ivlens.models.fingerprint import model_identity
from ivlens.models.mixers import MixerKind, mixer_settings
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.corruptions import Corruption
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.task import SplitName, Task

logger = logging.getLogger(__name__)


@checked
@dataclass(frozen=True)
class EffectOptions:
    """How effects are measured, apart from the recipe of the prompts.

    Attributes:
        mode: `replace` the head's output by the mean, or `add` the mean to it (as the follow-up's code does).
        method: The engine, see `causal_indirect_effect`.
        split: The split that all prompts come from.
        n_mean_prompts: Number of clean prompts for the mean, from the other end of the (shuffled) split.
        correct_only: Whether only clean prompts that the model answers correctly enter the mean.
        contrast: Whether the means over corrupted versions of the clean prompts are measured as well, for vectors that
            are made with `contrast`.
        others: Tasks that counterfactual prompts come from; by default the built-in ones, see `build_prompts`.
        layers, heads: The layers to measure, and the heads in each of them; None: all.
        mixer: `attention`: attention's heads alone. `all`: also the heads of recurrent mixers in hybrid models, `L3M7`,
            which count as further heads of their layers, behind attention's.
        batch_size: Prompts in each pass without patches.
        max_memory: As in `causal_indirect_effect`.
        n_check_prompts: Number of *select* prompts for the check whether the model can do the task; 0: no check.
        ability: The outcome of that check where it is known already; None: it is made.
    """

    mode: Literal["replace", "add"] = "replace"
    method: Literal["exact", "cached", "reference", "attribution"] = "exact"
    split: SplitName = "fit"
    n_mean_prompts: int = 100
    correct_only: bool = False
    contrast: bool = False
    others: Sequence[Task] | Mapping[str, Task] | None = None
    layers: Iterable[SupportsIndex] | None = None
    heads: Iterable[SupportsIndex] | None = None
    mixer: MixerKind = "attention"
    batch_size: int = 32
    max_memory: int | str = "auto"
    n_check_prompts: int = 24
    ability: Ability | None = None

    def __post_init__(self) -> None:
        find_engine(self.method)
        check_mode(self.mode)
        if self.n_mean_prompts < 1:
            raise ValueError(f"n_mean_prompts is {self.n_mean_prompts}, expected 1 or more.")
        check_counts(self, n_check_prompts=0)


@checked
def head_effects(
    model: TransformerBridge,
    task: Task,
    *,
    recipe: PromptRecipe | Auto | None = None,
    corruption: Corruption | None = None,
    score: Score | None = None,
    n_prompts: int = 32,
    options: EffectOptions | None = None,
    progress: bool | Progress = False,
) -> HeadEffects:
    """Measure the effect of every head for `task`: its mean over clean prompts, patched into corrupted prompts.

    A check on *select* inputs comes first: whether the model can do the task at all (`HeadEffects.ability`). A warning
    in the log says where no vector can carry the task, and another one where the corruption takes little away.

    Example:
        >>> import ivlens
        >>> model, task = ivlens.load_model("pocket"), ivlens.load_task("antonym")
        >>> effects = ivlens.head_effects(model, task, n_prompts=8)
        >>> effects.to_frame()[["label", "aie", "low", "high"]].head(1).round(2)
          label   aie  low  high
        0  L0H7  0.02 -0.0  0.04

        Demonstrations alone instead of an instruction:

        >>> shown = ivlens.PromptRecipe(n_shots=5, instruction=None)
        >>> effects = ivlens.head_effects(model, task, recipe=shown, n_prompts=8)

    Args:
        model: From `load_model`, with its tokenizer.
        task: From `load_task`.
        recipe: How clean prompts are made, and the seed of every draw and of the splits. None: the task's instruction,
            or five demonstrations where it has none. `"auto"`: the form in which the model answers best, as
            `find_prompts` finds it once for each model and task; the log names it.
        corruption: What the patched prompts lack, see `build_prompts`. None: `counterfactual` where there is an
            instruction, `shuffle` where there are demonstrations alone, `none` (and a warning) where instruction and
            input are one text without demonstrations. Prompts that had to be corrupted in another way than most are
            left out.
        score: `prob`, `logprob` or `logit_diff`; the last leaves out prompts without a foil. None: `prob`, or `logprob`
            where the answers share their first tokens (numbers after a lone space); see `fitting_score`.
        n_prompts: Number of corrupted prompts; fewer where the split has fewer.
        options: How effects are measured otherwise.
        progress: True shows a bar. A function is called with (done, total); an error that it raises ends the
            measurement.

    Raises:
        TypeError: a model that `load_model` did not return, or one without a tokenizer.
        ValueError: prompts that do not fit the model, no usable prompt, or an option that does not exist or does not
            suit the task.
        RuntimeError: inside a `steer` context.

    Source: docs/method.md, 4 Causal indirect effects; arXiv 2310.15213 and 2406.12227.
    """
    check_unsteered(check_model(model))
    options = options or EffectOptions()
    layers, heads = check_selection(model, options.layers, options.heads, options.mixer)
    if n_prompts < 1:
        raise ValueError(f"n_prompts is {n_prompts}, expected 1 or more.")
    with showing_progress(progress is True):  # `recipe="auto"` may search for a while
        plan = Plan.of(task, recipe_for(model, task, recipe), corruption, options.others)
    if corruption is None and plan.corruption == "none":
        logger.warning(
            "%s: nothing is taken from its prompts, which have instruction and input in one text, so effects are those "
            "on the prompts themselves; with demonstrations (n_shots) there is something to take.",
            task.name,
        )
    if score is not None:
        check_score(score, has_foils=plan.corruption == "counterfactual")
    examples = list(task.split(options.split, plan.recipe.seed))
    # the order depends on seed and task alone, so a larger `n_prompts` begins with the same examples
    Random(f"{plan.recipe.seed}\0{task.name}\0prompts").shuffle(examples)
    corrupted, cleaned = measured_prompts(model, plan, examples, n_prompts, score)
    score = score_for(task, corrupted, score)
    # from the other end of the shuffled split, so that the mean and the patched prompts share as few inputs as possible
    kind, mean_examples = corrupted.corruptions[0], examples[::-1]
    with showing_progress(progress is True):
        ability = options.ability
        if ability is None and options.n_check_prompts:
            ability = measure_ability(model, task, plan.recipe, options.n_check_prompts, batch_size=options.batch_size)
        clean, counterpart = mean_prompts(
            model, plan, mean_examples, kind, options.n_mean_prompts,
            correct_only=options.correct_only, contrast=options.contrast, batch_size=options.batch_size,
        )  # fmt: skip
        # all that can refuse a model or an option comes before the long part, `_run`
        means = _means(model, clean, counterpart, options)
        request = make_request(
            model, corrupted.tokens, corrupted.attention_mask, corrupted.answer_tokens, means.mean_z,
            foil_tokens=corrupted.foil_tokens,
            options=PatchOptions(options.mode, layers, heads, score, options.max_memory),
        )  # fmt: skip
        clean_scores = None
        if plan.corruption != "none":  # where the measured prompts are clean themselves, their own scores are these
            clean_scores = scores_of(model, cleaned, score, corrupted.foil_tokens, options.batch_size)
        found = _run(model, request, options.method, f"{task.name}: heads", progress)
    asked = {"score": score, "mode": options.mode, "method": found.method, "split": options.split}
    asked |= {"correct_only": options.correct_only, "method_asked": options.method, "max_memory": request.max_memory}
    asked["n_mean_prompts_asked"] = options.n_mean_prompts
    asked |= {**found.record, "layers": None if options.layers is None else list(layers)}
    asked["heads"] = None if options.heads is None else list(heads)
    asked |= mixer_settings(model, options.mixer)
    asked |= {} if ability is None else {"ability": ability.to_dict()}
    settings = plan.settings() | asked | provenance(model, corrupted, clean)
    noise = rounding_noise(model, corrupted, score, found.base, options.batch_size, plan.recipe.seed)
    if noise is not None:
        settings |= {"rounding_noise": noise}
        warn_of_noise(found.cie, noise, str(settings["dtype"]), task.name)
    effects = _result(model, task, found, means, corrupted, clean_scores, settings)
    # where the model cannot do the task, there was little to take away, and that was said already
    if effects.taken_warning and (ability is None or ability.is_enough):
        logger.warning("%s", effects.taken_warning)
    return effects


def _run(
    model: TransformerBridge, request: EffectRequest, method: str, what: str, progress: bool | Progress
) -> Measured:
    """Run the engine, and tell its progress to the bar or to the caller's function."""
    with bar(what) as report:
        told = report if isinstance(progress, bool) else progress
        return run_engine(model, replace(request, progress=told), method)


def _means(
    model: TransformerBridge, clean: PromptBatch, counterpart: PromptBatch | None, options: EffectOptions
) -> HeadMeans:
    """Head means over the clean prompts and, if a contrast was asked for, over their corrupted counterparts."""
    batch_size, mixer = options.batch_size, options.mixer
    found = head_means(model, clean.tokens, clean.attention_mask, batch_size=batch_size, mixer=mixer)
    if counterpart is None:
        return found
    corrupted = mean_head_outputs(
        model, counterpart.tokens, counterpart.attention_mask, batch_size=batch_size, mixer=mixer
    )
    return replace(found, mean_z_corrupted=corrupted)


def _result(
    model: TransformerBridge,
    task: Task,
    found: Measured,
    means: HeadMeans,
    corrupted: PromptBatch,
    clean_scores: Float[Tensor, " batch"] | None,
    settings: Mapping[str, Any],
) -> HeadEffects:
    """The result, with all tensors on the CPU: it outlives the model, and is saved and compared there."""
    return HeadEffects(
        cie=found.cie.cpu(),
        mean_z=means.mean_z.cpu(),
        mean_z_corrupted=None if means.mean_z_corrupted is None else means.mean_z_corrupted.cpu(),
        write_scale=means.write_scale.cpu(),
        base_scores=found.base.cpu(),
        clean_scores=found.base.cpu() if clean_scores is None else clean_scores.to(found.base.dtype),
        corruptions=corrupted.corruptions,
        inputs=tuple(example.input for example in corrupted.examples),
        task=task.name,
        model=model_identity(model),
        settings=settings,
        model_ref=ModelRef(model),
    )
