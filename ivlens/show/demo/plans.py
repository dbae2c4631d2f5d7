"""What the demo measures on each model: the tasks, their prompts, where vectors are tried, and how many draws."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ivlens.forward.hooks import SITES
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.recipe import PromptRecipe
from ivlens.steering.search import Grid, tried_layers

SMALL_STACK = 8  # models with at most 8 blocks are tried at both sites; in larger ones only 8 layers are tried


@dataclass(frozen=True)
class DemoPlan:
    """The demo's default measurements for one model.

    Attributes:
        tasks: Names of tasks in the bank.
        recipes: How the prompts of a task are made; for a task without an entry the best recipe is looked for, except
            on the built-in model.
        n_draws: Random vectors, and random sets of heads, per task.
        n_prompts: Corrupted prompts per task on which effects are measured.
        n_mean_prompts: Clean prompts for mean head outputs.
        n_judged: The largest number of inputs, of *select* and of *test*, on which vectors are judged; None: all.
        n_curve_prompts: The largest number of *select* inputs for the curves over layers and strengths; None: all.
    """

    tasks: tuple[str, ...]
    recipes: Mapping[str, PromptRecipe] = field(default_factory=dict)
    n_draws: int = 19
    n_prompts: int = 16
    n_mean_prompts: int = 32
    n_judged: int | None = 32
    n_curve_prompts: int | None = 8


# Eight tasks that the built-in model was trained on. They share their inputs: only the instruction decides the answer.
SHARED_WORDS = (
    "antonym",
    "synonym",
    "english_french",
    "english_german",
    "english_spanish",
    "capitalize",
    "first_letter",
    "last_letter",
)
_POCKET = DemoPlan(SHARED_WORDS, n_draws=5, n_prompts=24, n_mean_prompts=100, n_judged=None, n_curve_prompts=None)
_PLAIN, _QA = (PromptRecipe(template, instruction=None, n_shots=5) for template in ("plain", "qa"))
# Chosen after looking at the whole bank, much of which SmolLM2 cannot do: it answers these four tasks after five
# demonstrations, and their vectors work. The tasks are two pairs with the same inputs, so that in each pair the vector
# of one task is a control for the other.
_SMOLLM2 = {"third_person": _PLAIN, "present_gerund": _PLAIN, "first_of_three": _QA, "last_of_three": _QA}
_PLANS = {
    "pocket": _POCKET,
    "smollm2": DemoPlan(tuple(_SMOLLM2), _SMOLLM2),
}


def plan_for(model: str) -> DemoPlan:
    """The plan for the model of this name.

    A model without a plan of its own gets the tasks of `SHARED_WORDS`, each with the best recipe that can be found.
    """
    return _PLANS.get(model, DemoPlan(SHARED_WORDS))


def demo_grid(model: TransformerBridge) -> Grid:
    """The settings at which vectors are tried: at both sites of a small model, only at `resid_post` of a larger one."""
    n_layers = model.cfg.n_layers
    if n_layers <= SMALL_STACK:
        return Grid(alphas=(1.0, 2.0, 4.0, 8.0), n_screen=10, n_finalists=5)
    layers = tried_layers(n_layers, SMALL_STACK)
    return Grid(layers=layers, alphas=(2.0, 4.0), sites=SITES[:1], n_screen=6, n_finalists=3)
