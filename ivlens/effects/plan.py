"""Chooses the prompts that effects are measured on, and their score.

All prompts are corrupted in the same way, and have a foil where the score needs one.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ivlens.forward.asking import ALL, Room, prompts_for, rows_that_fit, same_examples
from ivlens.forward.scoring import Score, fitting_score, greedy_accuracy
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.corruptions import NO_FOIL
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.bank import load_bank
from ivlens.tasks.task import Task, TaskExample, hash_of_tasks, tasks_of

logger = logging.getLogger(__name__)


# what effects read behind a prompt: one token, or with `logprob` the whole answer
FIRST, ANSWER = Room("first"), Room("answer")


class Pair(NamedTuple):
    """Corrupted prompts, and the clean prompts of the same examples."""

    corrupted: PromptBatch
    clean: PromptBatch


@dataclass(frozen=True)
class Plan:
    """How the prompts of a measurement are made.

    Attributes:
        task: The task.
        recipe: How its clean prompts are made, every default filled in.
        corruption: What the corrupted prompts lack.
        others: Tasks that counterfactual prompts come from; None: the built-in ones.
    """

    task: Task
    recipe: PromptRecipe
    corruption: str
    others: Sequence[Task] | Mapping[str, Task] | None

    @classmethod
    def of(
        cls,
        task: Task,
        recipe: PromptRecipe,
        corruption: str | None,
        others: Sequence[Task] | Mapping[str, Task] | None,
    ) -> "Plan":
        """The plan for a task, the recipe's defaults filled in; for `corruption=None` the recipe's usual corruption."""
        return cls(task, recipe.resolved(task), recipe.corruption(task) if corruption is None else corruption, others)

    def prompts(
        self,
        model: TransformerBridge,
        examples: Sequence[TaskExample],
        *,
        corrupted: bool,
        n: int | None = None,
        room: Room = FIRST,
    ) -> PromptBatch:
        """Clean or corrupted prompts of the examples, or of the first `n`, that fit the model.

        Raises:
            TypeError, ValueError: as `prompts_for`.
        """
        corruption = self.corruption if corrupted else None
        return prompts_for(
            model, self.task, examples, self.recipe, corruption=corruption, others=self.others, n=n, room=room
        )

    def pairs(
        self, model: TransformerBridge, examples: Sequence[TaskExample], score: str | None, n: int | None = None
    ) -> Pair:
        """Corrupted prompts and their clean versions, of examples of which both fit with what the score reads.

        Raises:
            TypeError, ValueError: as `prompts_for`.
        """
        room = ANSWER if score == "logprob" else FIRST
        clean = self.prompts(model, examples, corrupted=False, n=n, room=room)
        clean, corrupted = same_examples(clean, self.prompts(model, clean.examples, corrupted=True, room=room))
        return Pair(corrupted, clean)

    def settings(self) -> dict[str, Any]:
        """The plan as a result records it, in plain JSON values, with hashes in the place of the tasks' content."""
        others = [] if self.others is None else tasks_of("others", self.others)
        pool = load_bank().values() if self.others is None else others
        return {
            "recipe": self.recipe.to_dict(),
            "corruption": self.corruption,
            "others": None if self.others is None else sorted(other.name for other in others),
            # other corruptions read no other task
            "others_hash": hash_of_tasks(pool) if self.corruption.startswith("counterfactual") else None,
            "task_hash": self.task.content_hash(),
        }


def score_for(task: Task, prompts: PromptBatch, score: Score | None) -> Score:
    """The score that was asked for; None: the one that suits these answers, with a line in the log if not `prob`."""
    fitting = fitting_score(prompts.answer_tokens)
    if fitting == "logprob" and score != "logprob":
        what = f"{task.name}: answers share their first tokens, which hardly tell them apart"
        if score is None:
            logger.info("%s: scored by 'logprob'.", what)
        else:
            logger.warning("%s: score %r says little here; use 'logprob'.", what, score)
    return fitting if score is None else score


def measured_prompts(
    model: TransformerBridge, plan: Plan, examples: Sequence[TaskExample], n_prompts: int, score: str | None
) -> Pair:
    """Up to `n_prompts` corrupted prompts, all corrupted in the same way, as effects are averaged over them.

    Raises:
        ValueError: the score is `logit_diff`, and no prompt has a foil.
    """
    found = plan.pairs(model, examples, score, n_prompts)
    if score is None and fitting_score(found.corrupted.answer_tokens) == "logprob":
        score = "logprob"  # which reads the whole answer
        if any(len(rows_that_fit(model, batch, ANSWER)) < len(batch) for batch in found):
            found = plan.pairs(model, examples, score, n_prompts)
    kinds = Counter(found.corrupted.corruptions)
    # the kind of most prompts; among equals by name, so that it does not depend on the order of the examples
    wanted = "counterfactual" if score == "logit_diff" else max(kinds, key=lambda kind: (kinds[kind], kind))
    if len(usable_rows(found.corrupted, wanted, score)) < len(found.corrupted):
        # some have to be left out: build the whole split, so that enough prompts remain
        found = plan.pairs(model, examples, score)
        usable = usable_rows(found.corrupted, wanted, score)
        n_left = len(found.corrupted) - len(usable)
        if not usable:
            raise ValueError(
                f"score 'logit_diff' found no counterfactual for any of {n_left} prompts of task "
                f"{plan.task.name!r} with another first answer token; pass others= with the same inputs, or "
                "score='prob'."
            )
        logger.info("%s: %d prompts that are not %r, or have no foil, left out.", plan.task.name, n_left, wanted)
        found = Pair(*(batch.rows(usable[:n_prompts]) for batch in found))
    return found


def usable_rows(batch: PromptBatch, wanted: str, score: str | None) -> list[int]:
    """The rows that were corrupted as `wanted`, and that have a foil where the score needs one."""
    rows = [row for row, kind in enumerate(batch.corruptions) if kind == wanted]
    if score != "logit_diff" or batch.foil_tokens is None:
        return rows
    has_foil = batch.foil_tokens != NO_FOIL
    return [row for row in rows if has_foil[row]]


def mean_prompts(
    model: TransformerBridge,
    plan: Plan,
    examples: Sequence[TaskExample],
    kind: str,
    n: int,
    *,
    correct_only: bool,
    contrast: bool,
    batch_size: int,
) -> tuple[PromptBatch, PromptBatch | None]:
    """Up to `n` clean prompts for the means and, for a contrast, their corrupted counterparts (otherwise None).

    With a contrast, only examples are kept whose prompt can be corrupted as `kind`: the means are subtracted from each
    other, so both have to be over the same inputs.

    Raises:
        ValueError: `correct_only`, and the model answers none right; or no prompt can be corrupted as `kind`.
    """
    clean = plan.prompts(model, examples, corrupted=False, n=n, room=ALL if correct_only else FIRST)
    if correct_only:
        right = greedy_accuracy(model, clean, batch_size=batch_size).nonzero()[:, 0].tolist()
        if not right:
            raise ValueError(
                f"correct_only=True found none of {len(clean)} clean prompts of task {plan.task.name!r} answered "
                "correctly, expected at least one; use correct_only=False, or a model that knows the task."
            )
        clean = clean.rows(right)
    if not contrast:
        return clean, None
    clean, counterpart = same_examples(clean, plan.prompts(model, clean.examples, corrupted=True))
    alike = counterpart.rows_of_one_kind(kind)
    if not alike:
        raise ValueError(
            f"none of {len(clean)} prompts of task {plan.task.name!r} for the means can be corrupted as {kind!r}, "
            "expected at least one for a contrast; use more n_mean_prompts, or another corruption."
        )
    return clean.rows(alike), counterpart.rows(alike)
