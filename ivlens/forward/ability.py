"""Whether a model can do a task at all in the form in which it is asked: if not, no vector can carry the task.

The check takes seconds, and measuring the effects of all heads takes minutes: so it comes first.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from ivlens.common.intervals import wilson
from ivlens.forward.asking import prompt_pairs
from ivlens.forward.scoring import greedy_accuracy
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.task import Task

logger = logging.getLogger(__name__)

LEAST_CLEAN = 0.3  # accuracy on clean prompts; with less there is nothing that a vector could carry
LEAST_LEAD = 0.2  # accuracy on clean prompts minus accuracy on bare ones; with less the input alone tells the task


@dataclass(frozen=True)
class Ability:
    """A model's accuracy on clean prompts of a task and on bare prompts of the same *select* inputs.

    Attributes:
        clean: Accuracy with the instruction or the demonstrations that tell the task.
        bare: Accuracy without them; None where instruction and input are one text, so that nothing can be left out.
        n: Number of inputs that were asked.
    """

    clean: float
    bare: float | None
    n: int

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Wilson's 95 % interval of each accuracy."""
        shares = {"clean": self.clean, "bare": self.bare}
        return {name: wilson(round(share * self.n), self.n) for name, share in shares.items() if share is not None}

    @property
    def is_enough(self) -> bool:
        """Whether there is something for a vector to carry: clean at least 0.3, and at least 0.2 above bare."""
        # 1e-9, since 0.7 - 0.5 is a little less than 0.2 in floating point
        return self.clean >= LEAST_CLEAN and self.clean - (self.bare or 0.0) >= LEAST_LEAD - 1e-9

    def __str__(self) -> str:
        parts = []
        for name, (low, high) in self.intervals.items():
            parts.append(f"{name} accuracy {getattr(self, name):.2f} ({low:.2f} to {high:.2f})")
        return f"{', '.join(parts)} on {self.n} inputs"

    def warning(self, task: str, model: str) -> str:
        """A sentence that says why the model cannot do the task and what to do; empty where it can."""
        if self.is_enough:
            return ""
        why = "no vector can carry what the model does not do"
        if self.clean >= LEAST_CLEAN:
            why = "the prompt without an instruction does nearly as well, so a vector has little to carry"
        return (
            f"{task}: {self}: {why}; ask in a form that the model can answer (ivlens prompts --model {model} --task "
            f"{task}, or find_prompts(model, task)), or take another task."
        )

    def to_dict(self) -> dict[str, Any]:
        """The accuracies and their intervals, in plain JSON values."""
        intervals = {f"{name}_interval": list(ends) for name, ends in self.intervals.items()}
        return {"clean": self.clean, "bare": self.bare, "n": self.n, **intervals}

    @classmethod
    def recorded(cls, settings: Mapping[str, Any]) -> "Ability | None":
        """The ability that a result's settings record; None where it was not measured.

        Raises:
            TypeError: the settings hold something else in its place.
        """
        found = settings.get("ability")
        if found is None:
            return None
        values = [found.get(name) for name in ("clean", "bare", "n")] if isinstance(found, Mapping) else []
        # settings come from files that anyone may have written; a truth value is an int in Python, and no accuracy
        is_whole = [isinstance(value, int) and not isinstance(value, bool) for value in values]
        is_number = [whole or isinstance(value, float) for whole, value in zip(is_whole, values, strict=True)]
        if not values or not (is_number[0] and (values[1] is None or is_number[1]) and is_whole[2]):
            raise TypeError(f"ability is {found!r:.60}, expected accuracies `clean` and `bare` of `n` inputs")
        return cls(found["clean"], found["bare"], found["n"])


def measure_ability(
    model: TransformerBridge, task: Task, recipe: PromptRecipe, n_prompts: int = 24, *, batch_size: int = 32
) -> Ability | None:
    """Clean and bare accuracy on up to `n_prompts` inputs of *select*, drawn with the recipe's seed.

    The log says what was found, with a warning where it is not enough for a vector.

    Returns:
        None where nothing can be asked: a task without *select* inputs, or prompts that do not fit the model.

    Raises:
        RuntimeError: inside a `steer` context.
    """
    try:
        examples = list(task.split("select", recipe.seed))
        # a draw of its own, so that other draws of the same seed do not depend on whether this check is made
        Random(f"{recipe.seed}\0{task.name}\0ability").shuffle(examples)
        has_bare = bool(recipe.shots(task)) or not task.fused
        batches = prompt_pairs(model, task, examples, recipe, corruption="drop" if has_bare else None, n=n_prompts)
        right = [greedy_accuracy(model, batch, batch_size=batch_size) for batch in batches[: 1 + has_bare]]
    except ValueError as error:  # no reason to stop: `head_effects` builds prompts of its own, and says what is wrong
        logger.debug("%s: clean and bare accuracy cannot be measured: %s", task.name, error)
        return None
    clean, bare = [int(each.sum()) / len(each) for each in right] + [None] * (2 - len(right))
    assert clean is not None
    found = Ability(clean, bare, len(right[0]))
    warning = found.warning(task.name, model.cfg.model_name)
    if warning:
        logger.warning("%s", warning)
    else:
        logger.info("%s: %s", task.name, found)
    return found
