"""All that the lab computes with one model: effects, vectors and completions. All pages of a lab share it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from ivlens.common.checks import check_counts
from ivlens.effects.measure import EffectOptions, head_effects
from ivlens.effects.results import HeadEffects
from ivlens.forward.ability import Ability, measure_ability
from ivlens.forward.borders import begins_with
from ivlens.forward.sharing import stopping
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.fingerprint import model_identity
from ivlens.prompts.build import prompt_text
from ivlens.prompts.recipe import PromptRecipe
from ivlens.show.lab.running import Running, Turns
from ivlens.show.lab.state import RAW, Head, LabState
from ivlens.show.lab.streams import Addition, Completion, stream_completions
from ivlens.show.lab.worker import Unwanted
from ivlens.steering.edits import Positions
from ivlens.steering.prompt_sets import PromptSets, followed_recipe
from ivlens.steering.search import Grid, best_settings
from ivlens.steering.summary import Setting
from ivlens.tasks.task import Task, split_of
from ivlens.vectors.vector import InstructionVector, check_width

SEARCH = Grid(alphas=(1.0, 2.0, 4.0), n_screen=8, n_finalists=6)
PAPER_LAYER = 9 / 32  # the paper adds the vector at layer 9 of 32, in a 7B model


@dataclass(frozen=True)
class EngineOptions:
    """How many prompts an engine measures on.

    Attributes:
        n_prompts: corrupted prompts for the effects of a task.
        n_search: *select* prompts on which layer, strength and site are searched for; 0: no search.
        seed: the seed of the recipes by which this engine makes prompts.
    """

    n_prompts: int = 32
    n_search: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, n_prompts=1, n_search=0)


Key = tuple[str, PromptRecipe]  # a task, and how its prompts are made: all that effects depend on, for one model
Asked = Callable[[], bool]  # asked now and then during long work: True once nobody wants the result any more


def _never() -> bool:
    """The default for `unwanted`: the work is never given up."""
    return False


class Engine:
    """One model and its tasks. Every method may be called from any thread; results of long work are kept.

    Args:
        model: the model, wrapped as a bridge.
        tasks: the tasks by their names.
        options: how many prompts are measured.
        effects: effects that are already measured, on this model and for some of these tasks.

    Raises:
        ValueError: effects of another model, or of none of the tasks.
    """

    def __init__(
        self,
        model: TransformerBridge,
        tasks: Mapping[str, Task],
        options: EngineOptions | None = None,
        effects: Sequence[HeadEffects] = (),
    ) -> None:
        self.model, self.tasks, self.options = check_model(model), tasks, options or EngineOptions()
        self.identity = model_identity(model)
        self.running, self._turns = Running(), Turns()
        self._effects: dict[Key, HeadEffects] = {}
        self._abilities: dict[Key, Ability | None] = {}
        self._settings: dict[tuple[Key, bytes], Setting] = {}
        self.given = {each.task: self._checked(each) for each in effects}
        for each in effects:
            self._effects[self._key(each.task, self._checked(each).recipe)] = each

    def _checked(self, effects: HeadEffects) -> HeadEffects:
        """The effects, if they are of this model and of one of its tasks."""
        if effects.model.differs(self.identity) or effects.task not in self.tasks:
            raise ValueError(
                f"effects of {effects.task!r} on {effects.model.name!r} ({effects.model.key:.12}) "
                f"belong to none of the lab's tasks on {self.identity.name!r} ({self.identity.key:.12}); "
                "measure them on this model, and name their task among tasks=."
            )
        effects.check_task(self.tasks[effects.task])
        return effects

    def _key(self, task: str, recipe: PromptRecipe) -> Key:
        """The key under which the effects of a task, with prompts by this recipe, are kept."""
        try:
            recipe = recipe.resolved(self.tasks[task])
        except ValueError:
            pass  # the task has too few examples: measuring refuses it with a clear error
        return task, replace(recipe, seed=0)  # so that given effects are used whatever their seed

    def needs(self, state: LabState) -> Key:
        """The key of the effects that a state needs: those of its task, with prompts by its recipe."""
        return self._key(state.task, state.measured(self.options.seed))

    def recipe(self, state: LabState) -> PromptRecipe:
        """The recipe of the effects that a state needs, whether they are already measured or not."""
        known = self._effects.get(self.needs(state))
        return state.measured(self.options.seed) if known is None else known.recipe

    def knows(self, state: LabState) -> bool:
        """Whether the effects that `state` needs are measured."""
        return self.needs(state) in self._effects

    @contextmanager
    def stopping(self, unwanted: Asked) -> Iterator[None]:
        """Once `unwanted()` is True, end the body's forward pass between two blocks, by raising `Unwanted`."""

        def check() -> None:
            if unwanted():
                raise Unwanted

        with stopping(self.model, check):
            yield

    def ability(
        self, state: LabState, unwanted: Asked = _never, waiting: Callable[[], None] = lambda: None
    ) -> Ability | None:
        """Clean and bare accuracy of the state's task on *select*, measured on the first call.

        It takes far less time than the effects, so the page can show it first. Args and Raises as for `effects`.
        """
        key = self.needs(state)
        if key not in self._abilities:
            with self._turns.taken(unwanted, waiting):
                # another thread may have measured it while this one waited for its turn
                if key not in self._abilities:
                    known = self._effects.get(key)
                    task, recipe = self.tasks[state.task], self.recipe(state)
                    self._abilities[key] = known.ability if known else measure_ability(self.model, task, recipe)
        return self._abilities[key]

    def effects(
        self, state: LabState, unwanted: Asked = _never, waiting: Callable[[], None] = lambda: None
    ) -> HeadEffects:
        """The effects of the state's task, measured on the first call; another caller waits until they are measured.

        Args:
            unwanted: Asked now and then; once it returns True, measuring ends.
            waiting: Called if something else has to be measured first.

        Raises:
            Unwanted: `unwanted` returned True.
        """
        key = self.needs(state)
        if key not in self._effects:
            ability = self.ability(state, unwanted, waiting)
            with self._turns.taken(unwanted, waiting):
                if key not in self._effects:
                    self._effects[key] = self._measured(state, ability, unwanted)
        return self._effects[key]

    def _measured(self, state: LabState, ability: Ability | None, unwanted: Asked) -> HeadEffects:
        """Measure the effects of the state's task; `ability` is given so that it is not measured a second time."""

        def report(done: int, total: int) -> None:
            if unwanted():
                raise Unwanted

        report(0, 1)  # it may have become unwanted while it waited for its turn
        return head_effects(
            self.model,
            self.tasks[state.task],
            recipe=state.measured(self.options.seed),
            n_prompts=self.options.n_prompts,
            options=EffectOptions(ability=ability, n_check_prompts=0),
            progress=report,
        )

    def heads(self, state: LabState) -> tuple[Head, ...]:
        """The heads of the state's vector: those it names, or the `k` of largest effect."""
        if state.heads is not None:
            return state.heads
        effects = self.effects(state)
        measured = int(effects.aie.isfinite().sum())
        return tuple(effects.top_heads(min(state.k, measured)))

    def setting(self, state: LabState, vector: InstructionVector | None = None) -> Setting:
        """The layer, strength and site at which a vector works best on bare *select* prompts.

        Without a search (no vector, `n_search=0`, or no *select* inputs that it may use) the paper's setting is taken.

        Args:
            vector: the vector that is added; None: the vector of the state's heads.
        """
        vector = vector or self.vector(state)
        if vector is None or not self.options.n_search:
            return self._usual()
        # two sets of heads may give one vector, so settings are kept by the vector's bytes
        key = self.needs(state), vector.theta.numpy().tobytes()
        if key not in self._settings:
            self._settings[key] = self._searched(state, vector) or self._usual()
        return self._settings[key]

    def _usual(self) -> Setting:
        """The paper's setting, scaled to the depth of this model."""
        n_layers = self.model.cfg.n_layers
        return Setting(min(round(n_layers * PAPER_LAYER), n_layers - 1), 1.0, "resid_post")

    def _searched(self, state: LabState, vector: InstructionVector) -> Setting | None:
        """The best setting on *select*; None if there are no inputs on which it may be searched."""
        task, own = self.tasks[state.task], vector.recipe
        try:
            recipe = followed_recipe([vector], None if own else self.recipe(state), task, "select", self.options.seed)
        except ValueError:
            return None  # the vector was made on these very inputs
        if all(split_of(each.input, recipe.seed) != "select" for each in task.examples):
            return None
        sets = PromptSets(self.model, task, recipe, n_prompts=self.options.n_search, seed=recipe.seed, **SEARCH.passes)
        return best_settings(sets.trials("select"), vector.theta[None], SEARCH.settings(self.model), SEARCH)[0]

    def vector(self, state: LabState) -> InstructionVector | None:
        """The vector of the state's heads; None where no head is chosen."""
        heads = self.heads(state)
        if not heads:
            return None
        return InstructionVector.from_effects(self.effects(state), heads=heads, model=self.model)

    def prompt(self, state: LabState, seed: int | None = None) -> str:
        """The text that the model completes; `seed` draws its demonstrations, by default that of the effects.

        Raises:
            ValueError: there is no text, or the task has too few demonstrations.
        """
        if not state.text.strip():
            raise ValueError("the input is empty, expected some text to complete; write or choose one.")
        if state.template == RAW:
            return state.text
        task, seed = self.tasks[state.task], self.recipe(state).seed if seed is None else seed
        return prompt_text(self.model.tokenizer, task, state.text, state.shown(task, seed))

    def stream(
        self, state: LabState, prompt: str, vector: InstructionVector | None, setting: Setting
    ) -> Iterator[dict[str, Completion]]:
        """Completions of a prompt without a vector (`plain`), with it (`patched`), and with a random one (`random`).

        `random` is there only if the state asks for it.

        Yields:
            The completions by these names, as far as they have come, after every token.

        Raises:
            ValueError: the prompt is empty or too long; the vector's `d_model` is not that of the model.
        """
        names = ["plain", "patched"]
        # without a vector both rows get zeros, so that all rows run in the same passes
        deltas = [torch.zeros(self.model.cfg.d_model), torch.zeros(self.model.cfg.d_model)]
        if vector is not None:
            check_width(vector, self.model)
            deltas[1] = setting.alpha * vector.theta
            if state.random:
                names.append("random")
                deltas.append(setting.alpha * vector.random_like(state.seed).theta)
        what = Addition(torch.stack(deltas), setting.layer, setting.site, cast(Positions, state.positions))
        for rows in stream_completions(self.model, prompt, what, max_new_tokens=state.max_new_tokens):
            yield dict(zip(names, rows, strict=True))

    def answers(self, state: LabState) -> tuple[str, ...]:
        """The right answers for the state's input; empty if the task does not list this input."""
        found = self.tasks[state.task].find(state.text) or self.tasks[state.task].find(state.text.strip())
        return found.answers if found is not None else ()

    def facts(self) -> dict[str, Any]:
        """The model's name, weights and shape, as values that JSON can hold."""
        about = self.identity
        return {
            "name": about.name.rstrip("/").rpartition("/")[2] or about.name,
            "weights": about.weights_hash[:12],
            "n_layers": about.n_layers,
            "n_heads": about.n_heads,
        }


def begins_right(text: str, answers: Sequence[str]) -> bool | None:
    """Whether a completion begins with an answer and does not go on inside its last word; None: no known answers."""
    return any(begins_with(text, answer) for answer in answers) if answers else None
