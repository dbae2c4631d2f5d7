"""`PromptSets`: makes the prompts on which vectors of one task are searched for and judged, for each split."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch

from ivlens.forward.asking import prompt_pairs
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.corruptions import Corruption
from ivlens.prompts.recipe import PromptRecipe
from ivlens.steering.edits import Positions
from ivlens.steering.trials import Trials
from ivlens.tasks.task import SplitName, Task, TaskExample
from ivlens.vectors.provenance import effects_of, seeds_of
from ivlens.vectors.vector import InstructionVector, base_task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptSets:
    """How the prompts of a judgement are made, in the same way for every split.

    Attributes:
        model, task: The model and the task whose prompts are made.
        recipe: How clean prompts are made; its seed also decides which split an input is in.
        corruption: What the judged prompts lack; `drop`: instruction and demonstrations. None: nothing, so that the
            vector is added to clean prompts.
        n_prompts: The largest number of prompts from a split; None: all.
        seed: Draws the prompts and their order.
        positions, rows_per_pass: Passed on to `Trials`.
        kept: Where trials are kept for later calls in the same model, which takes memory for the caches of their
            prompts; None: nowhere.
    """

    model: TransformerBridge
    task: Task
    recipe: PromptRecipe = PromptRecipe()
    corruption: Corruption | None = "drop"
    n_prompts: int | None = None
    seed: int = 0
    positions: Positions = "prompt"
    rows_per_pass: int = 512
    kept: dict[tuple[object, ...], Trials] | None = field(default=None, compare=False, repr=False)
    # clean and judged prompts of each split, made once
    _made: dict[str, tuple[PromptBatch, PromptBatch]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.n_prompts is not None and self.n_prompts < 1:
            raise ValueError(f"n_prompts is {self.n_prompts}, expected at least 1, or None for the whole split.")

    @property
    def applied(self) -> Corruption | None:
        """The corruption that the prompts really have: `none` in the place of `drop` where nothing can be dropped."""
        # a fused task has its instruction in its inputs, so without demonstrations nothing can be dropped
        nothing = self.task.fused and not self.recipe.shots(self.task)
        return "none" if self.corruption == "drop" and nothing else self.corruption

    def examples(self, split: SplitName) -> tuple[TaskExample, ...]:
        """Up to `n_prompts` examples of a split, in an order drawn with the seed."""
        return self._shuffled(split)[: self.n_prompts]

    def _shuffled(self, split: SplitName) -> tuple[TaskExample, ...]:
        found = self.task.split(split, self.recipe.seed)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(self.seed)).tolist()
        return tuple(found[index] for index in order)

    def batch(self, split: SplitName, *, corrupted: bool = True) -> PromptBatch:
        """The judged prompts of a split, or with `corrupted=False` the clean prompts of the same inputs.

        Inputs of which either prompt does not fit the model's context are left out of both; others take their place.
        """
        if split not in self._made:
            self._made[split] = prompt_pairs(
                self.model, self.task, self._shuffled(split), self.recipe, corruption=self.applied, n=self.n_prompts
            )
        return self._made[split][corrupted]

    def trials(self, split: SplitName, *, corrupted: bool = True) -> Trials:
        """The prompts of a split, ready to be run under many interventions."""
        applied = self.applied if corrupted else None
        key = self.task.name, self.recipe, self.seed, self.n_prompts, split, applied, self.positions
        if self.kept is not None and key in self.kept:
            return self.kept[key]
        batch = self.batch(split, corrupted=corrupted)
        trials = Trials(self.model, batch, positions=self.positions, rows_per_pass=self.rows_per_pass)
        if self.kept is not None:
            self.kept[key] = trials
        return trials


def followed_recipe(
    vectors: Iterable[InstructionVector],
    given: PromptRecipe | None,
    task: Task,
    split: SplitName,
    default_seed: int = 0,
) -> PromptRecipe:
    """The recipe of the prompts on which these vectors are judged: the given one, else that of the first vector.

    Its seed is always the seed of the splits that the vectors were made on, so that no prompt that made a vector judges
    it. If the first vector is of another task, `task` keeps its own instruction, and only the form is taken over.

    Raises:
        ValueError: two vectors with different seeds, or one that was made on `split`.
    """
    listed = list(vectors)
    seed = split_seed(listed, split, default_seed if given is None else given.seed)
    own = listed[0].recipe if listed else None  # in a judgement the first vector is judged, the others are controls
    if own is not None and base_task(listed[0]) != task.name:
        own = own.for_other_tasks()
    chosen = replace(given or own or PromptRecipe(), seed=seed)
    if given is not None and own is not None and chosen != replace(own, seed=seed):
        # a number of shots that the given recipe leaves open is no difference
        if chosen.n_shots is not None or replace(chosen, n_shots=own.n_shots) != replace(own, seed=seed):
            logger.info("prompts are made as given (%s), not as those of the vector were (%s).", chosen, own)
    return chosen


def split_seed(vectors: Iterable[InstructionVector], split: SplitName, default: int) -> int:
    """The seed of the splits that these vectors were made on; `default` where they record none.

    Raises:
        ValueError: two vectors with different seeds, or one that was made on `split`.
    """
    listed = list(vectors)
    # a vector may be a sum of others, so there may be several effects and seeds for each
    made_on = [found for vector in listed for found in effects_of(vector.settings)]
    seeds = sorted({seed for vector in listed for seed in seeds_of(vector.settings)})
    if len(seeds) > 1:
        raise ValueError(
            f"the vectors were made on splits of the seeds {seeds}, expected one seed, as a prompt of one "
            "vector's test split is in another's fit split; make them with one seed."
        )
    if any(found.get("split") == split for found in made_on):
        raise ValueError(
            f"a vector was made on the split {split!r} on which it would be judged, expected two different ones; "
            "use split='select' or 'test', and effects measured on 'fit'."
        )
    return seeds[0] if seeds else default
