"""`evaluate_intervention`: does a vector do what its instruction does, and does it beat its controls?"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from ivlens.effects.results import HeadEffects
from ivlens.forward.hooks import patched_heads
from ivlens.models.boot import TransformerBridge
from ivlens.models.fingerprint import model_identity
from ivlens.prompts.build import Corruption
from ivlens.prompts.templates import PromptTemplate
from ivlens.steering.controls import (
    HeadMeans,
    best_constant,
    constant_accuracy,
    measured_again,
    random_head_vectors,
    random_vectors,
    some_other_vectors,
    true_others,
)
from ivlens.steering.edits import layers_of, replacement
from ivlens.steering.search import Grid, PromptSource, best_settings, split_seed
from ivlens.steering.summary import Judged, Setting, accuracy_only, summary
from ivlens.steering.trials import Trials
from ivlens.tasks.task import SplitName, Task
from ivlens.vectors.vector import InstructionVector, check_belongs

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


def evaluate_intervention(
    model: TransformerBridge,
    task: Task,
    iv: InstructionVector,
    *,
    split: SplitName = "test",
    layer: int | None = None,
    alpha: float | int | None = None,
    site: str | None = None,
    corruption: Corruption | None = "drop",
    n_prompts: int | None = None,
    n_draws: int = 5,
    seed: int = 0,
    other_vectors: Sequence[InstructionVector] | None = None,
    template: str | PromptTemplate = "plain",
    n_shots: int | None = None,
    means: HeadMeans | HeadEffects | None = None,
    grid: Grid | None = None,
    per_vector: bool = False,
) -> "pd.DataFrame":
    """Does the vector do what the instruction does, and does it beat what it has to beat?

    Layer, strength and site that are not given are searched for on the `select` split, for the vector and for *each*
    control vector on its own, over the same grid and the same prompts; `split` is then looked at once.

    Conditions: `clean` (instructed), `baseline` (the corrupted prompts as they are), `iv`, `iv_heads` (its heads
    replaced by their means), `random` (`n_draws` vectors of equal norm), `random_heads` (`n_draws` vectors from k heads
    outside S, scaled to equal norm), `other_tasks` (`other_vectors`, those that contain this task's left out),
    `constant` (the answer right most often on `select`, given to all).

    An answer is right (`accuracy`) where greedy decoding begins with it and does not go on inside its last word: "12"
    is not "1", "small dog" is "small". It is `exact` where the text or the line ends with it.

    Args:
        layer, alpha, site: fix them instead of searching. They then hold for all conditions, so a setting that was
            found for this vector compares a searched vector with unsearched controls; leave them out for a fair one.
        corruption: what the judged prompts lack; `drop` means `none` for a task that has no instruction to drop. None:
            the vector is added to instructed prompts.
        n_prompts: at most so many of each split, drawn with the seed.
        seed: draws which prompts, the random controls and the resamples. Splits, instructions and demonstrations are
            those of the seed the vectors were made with; of this one, where they record none.
        n_draws: draws of each random control; 19 or more for a table, 5 for a quick look.
        other_vectors: vectors of other tasks on the same inputs. None: `n_draws` built-in tasks are drawn and their
            vectors made, at the cost of one `head_effects` each; where no built-in task has these inputs, a line in
            the log says that the control is missing. `()`: do without.
        n_shots: demonstrations in `clean` prompts; None: 5 where there is no instruction in them, otherwise none.
        means: mean outputs of all heads, for `random_heads`: the vector's own effects, where they are at hand; measured
            again on up to 100 `fit` prompts if not given.
        grid: what is searched, and `positions`.
        per_vector: one row for each control vector, instead of one for all of a condition.

    Returns:
        A row per condition: `condition`, `vector`, `n_vectors`, `layer`, `alpha`, `site` (those that all its vectors
        share), `n` prompts, and for `accuracy`, `exact`, `prob` (first answer token) and `logprob` (whole answer, nats)
        the mean over prompts and vectors with a 95 % bootstrap interval over prompts (`accuracy_lo`, `accuracy_hi`,
        ...); `accuracy_best` is the best single vector's, `n_nonfinite` counts overflows (wrong, probability 0). A
        control that cannot be made (no heads left, no other vectors) has `n_vectors` 0. The settings are in `.attrs`,
        with the split that was `searched_on`, if any: judging on that one flatters all vectors, and is logged.

    Raises:
        ValueError: an unknown split, layer or site; a vector of another model (`InstructionVector.load` can allow other
            weights), or made on the judged split or on splits of another seed than the others.

    Source:
        arXiv 2406.12227 and 2310.15213, where a vector is added at one layer for all tasks and compared with the prompt
        without it. Departures: the search on prompts of its own, and all controls.
    """
    import pandas as pd

    check_belongs(iv, model)
    given = some_other_vectors(model, task, iv, n_draws) if other_vectors is None else other_vectors
    others = true_others(given, iv, task)
    for vector in others:
        check_belongs(vector, model)
    grid = _restricted(grid or Grid(), layer, alpha, site)
    settings = grid.settings(model)
    splits = split_seed([iv, *others], split, seed)
    searched_on = _searched_on(settings, split)
    prompts = PromptSource(model, task, grid, corruption, template, n_shots, n_prompts, seed, splits)
    judge = prompts.trials(split)
    vectors = {
        "iv": [iv],
        "random": random_vectors(iv, n_draws, seed),
        "random_heads": _random_heads(prompts, iv, means, n_draws),
        "other_tasks": others,
    }
    judged = [
        Judged("clean", prompts.trials(split, corrupted=False).unsteered()),
        Judged("baseline", judge.unsteered()),
        *judged_vectors(vectors, prompts, judge, settings),
        *_judged_heads(iv, judge),
        judged_constant(prompts, judge),
    ]
    rows = [one for many in judged for one in (many.separate() if per_vector else [many])]
    frame = pd.DataFrame([summary(row, seed) for row in rows])
    frame.attrs.update(_provenance(prompts, iv, split), searched_on=searched_on)
    return frame


def _searched_on(settings: Sequence[Setting], split: SplitName) -> SplitName | None:
    if len(settings) == 1:
        return None
    if split == "select":
        logger.warning(
            "evaluate_intervention judges on 'select', on which layer, alpha and site are searched: its scores are too "
            "high for every vector; use split='test'."
        )
    return "select"


def _restricted(grid: Grid, layer: int | None, alpha: float | int | None, site: str | None) -> Grid:
    fixed = {"layers": layer, "alphas": alpha, "sites": site}
    return replace(grid, **{name: (value,) for name, value in fixed.items() if value is not None})


def _random_heads(
    prompts: PromptSource, iv: InstructionVector, means: HeadMeans | HeadEffects | None, n_draws: int
) -> list[InstructionVector]:
    if not iv.heads:
        return []
    if means is None:
        means = measured_again(prompts, iv)
    return random_head_vectors(prompts.model, iv, means, n_draws, prompts.seed)


def judged_vectors(
    vectors: dict[str, list[InstructionVector]], prompts: PromptSource, judge: Trials, settings: Sequence[Setting]
) -> list[Judged]:
    """Every vector at its own best setting on *select*, judged by `judge`; one result for each condition."""
    every = [vector for several in vectors.values() for vector in several]
    thetas = torch.stack([vector.theta for vector in every])
    if len(settings) == 1:
        best = [settings[0]] * len(every)
    else:
        best = best_settings(prompts.trials("select"), thetas, settings, prompts.grid)
    scores = judge.at(best, thetas)
    judged, start = [], 0
    for condition, several in vectors.items():
        rows = range(start, start + len(several))
        names = tuple(vector.task for vector in several)
        judged.append(Judged(condition, scores.chosen(rows), names, tuple(best[row] for row in rows)))
        start += len(several)
    return judged


def _judged_heads(iv: InstructionVector, judge: Trials) -> list[Judged]:
    if not iv.heads:
        return []
    scores = judge.edited(lambda where: patched_heads(judge.model, replacement(iv, 1.0, where), layers_of(iv)))
    return [Judged("iv_heads", scores)]


def judged_constant(prompts: PromptSource, judge: Trials) -> Judged:
    """The answer that is right most often on *select*, given to every judged prompt."""
    answer = best_constant(prompts.examples("select"))
    return Judged(
        "constant", accuracy_only(constant_accuracy(answer, judge.batch.examples)), (answer,), has_probs=False
    )


def _provenance(prompts: PromptSource, iv: InstructionVector, split: SplitName) -> dict[str, Any]:
    """What made the table, in plain JSON values, so that it survives parquet."""
    return {
        "model": asdict(model_identity(prompts.model)),
        "task": prompts.task.name,
        "task_hash": prompts.task.content_hash(),
        "vector": {"task": iv.task, "heads": [list(head) for head in iv.heads], "weights_hash": iv.model.weights_hash},
        "split": split,
        "corruption": prompts.applied,
        "template": prompts.template if isinstance(prompts.template, str) else prompts.template.name,
        "n_prompts": prompts.n_prompts,
        "n_shots": prompts.shots,
        "seed": prompts.seed,
        "split_seed": prompts.split_seed,
        "grid": asdict(prompts.grid),
    }
