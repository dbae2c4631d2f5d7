"""What a terse model is taught, and what is kept from it.

Small instruction-tuned models answer in sentences: asked for a plural by an instruction alone, they are right in hardly
any prompt. What forgetting does to instructions can be seen only in a model that follows them. So a low-rank adapter,
or a training of all weights, teaches one to answer with the bare answer, on half of the built-in tasks. The lists were
fixed before anything was trained: most tasks have a sibling on the other side (*present_past* and *present_gerund*), so
that it can be seen whether the form was learned or the task.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from ivlens.common.checks import check_counts
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.bank import load_bank
from ivlens.tasks.task import Task
from ivlens.tuning.methods import Lora, Method, new_method
from ivlens.tuning.training.options import TuneOptions

TAUGHT = (
    "antonym", "capitalize", "category", "comparative", "country_capital", "country_language", "element_symbol",
    "english_french", "first_letter", "last_of_three", "next_item", "noun_kind", "number_word", "present_past",
    "singular_plural", "third_person",
)  # fmt: skip
HELD_OUT = (
    "capital_country", "country_continent", "country_currency", "double", "english_german", "english_spanish",
    "first_of_three", "last_letter", "length", "longest_of_three", "noun_article", "present_gerund", "previous_item",
    "spell", "synonym", "uppercase",
)  # fmt: skip
# every fifth instruction of a taught task is kept from training, to tell an instruction's meaning from its words
EVERY = 5
Taught = Literal["lora", "full"]
LR: dict[Taught, float] = {"lora": 5e-4, "full": 1e-4}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def taught_instructions(task: Task) -> tuple[str, ...]:
    """The instructions of a task that are trained on."""
    return tuple(text for number, text in enumerate(task.instructions) if number % EVERY != EVERY - 1)


def kept_instructions(task: Task) -> tuple[str, ...]:
    """The instructions of a task that are kept from training."""
    return tuple(text for number, text in enumerate(task.instructions) if number % EVERY == EVERY - 1)


@dataclass(frozen=True)
class TerseOptions:
    """How the model is taught.

    Attributes:
        model: The model that is taught, as for `load_model`.
        r: Rank of the adapter on all projections of attention and MLP; its scale is 2.
        steps, batch_size, seed: As in `TuneOptions`.
        lr: Peak learning rate; None: 5e-4 of an adapter, 1e-4 of all weights.
        save_every: Steps between two saved states.
        template: The template of all prompts.
        method: What is trained: `lora`, an adapter, or `full`, all weights.
    """

    model: str = "smollm2"
    r: int = 16
    steps: int = 500
    batch_size: int = 32
    lr: float | None = None
    seed: int = 0
    save_every: int = 25
    template: str = "plain"
    method: Taught = "lora"

    def __post_init__(self) -> None:
        check_counts(self, r=1, steps=1, batch_size=1, save_every=1)
        if self.method not in get_args(Taught):
            raise ValueError(f"method is {self.method!r:.60}, expected one of {', '.join(get_args(Taught))}.")
        _ = self.tune, self.recipe  # which check what else there is

    @property
    def tune(self) -> TuneOptions:
        """Options of the training, which is not judged on the way."""
        return TuneOptions(
            lr=LR[self.method] if self.lr is None else self.lr,
            steps=self.steps,
            batch_size=self.batch_size,
            seed=self.seed,
            save_every=self.save_every,
            judge_every=self.steps,
            n_samples=self.steps * self.batch_size,
        )

    @property
    def trained(self) -> Method:
        """The method of the training."""
        return new_method("full") if self.method == "full" else Lora(r=self.r, alpha=2 * self.r, targets=TARGETS)

    @property
    def recipe(self) -> PromptRecipe:
        """How prompts of all tasks are made; each task has its own instructions in it."""
        return PromptRecipe(self.template, seed=self.seed)


def tasks_named(names: tuple[str, ...]) -> list[Task]:
    """These built-in tasks."""
    bank = load_bank()
    return [bank[name] for name in names]
