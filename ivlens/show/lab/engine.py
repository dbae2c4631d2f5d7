"""What the lab computes with one model: effects, vectors and completions of a state, shared by all of its pages."""

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
PAPER_LAYER = 9 / 32  # where the method's paper adds the vector of a 7B model


@dataclass(frozen=True)
class EngineOptions:
    """How an engine measures.

    Attributes:
        n_prompts: corrupted prompts for the effects of a task.
        n_search: prompts of *select* on which layer, strength and site are searched for; 0: no search.
        seed: of the recipes of what is measured here.
    """

    n_prompts: int = 32
    n_search: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, n_prompts=1, n_search=0)


Key = tuple[str, PromptRecipe]  # a task, and how its prompts are made


Asked = Callable[[], bool]


def _never() -> bool:
    return False


class Engine:
    """One model and its tasks. Every method may be called from any thread; what takes long is done once and kept."""

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
        if effects.model.differs(self.identity) or effects.task not in self.tasks:
            raise ValueError(
                f"effects of {effects.task!r} on {effects.model.name!r} ({effects.model.key:.12}) "
                f"belong to none of the lab's tasks on {self.identity.name!r} ({self.identity.key:.12}); "
                "measure them on this model, and name their task among tasks=."
            )
        effects.check_task(self.tasks[effects.task])
        return effects

    def _key(self, task: str, recipe: PromptRecipe) -> Key:
        try:
            recipe = recipe.resolved(self.tasks[task])
        except ValueError:
            pass  # too few examples: measuring says so
        return task, replace(recipe, seed=0)  # effects that were given are used whatever their seed

    def needs(self, state: LabState) -> Key:
        """Which effects a state needs: those of its task, by its recipe."""
        return self._key(state.task, state.measured(self.options.seed))

    def recipe(self, state: LabState) -> PromptRecipe:
        """How the prompts of these effects are made, or will be once they are measured."""
        known = self._effects.get(self.needs(state))
        return state.measured(self.options.seed) if known is None else known.recipe

    def knows(self, state: LabState) -> bool:
        """Whether the effects that `state` needs are measured."""
        return self.needs(state) in self._effects

    @contextmanager
    def stopping(self, unwanted: Asked) -> Iterator[None]:
        """End the passes of the body with `Unwanted`, between two blocks, once `unwanted` says so."""

        def check() -> None:
            if unwanted():
                raise Unwanted

        with stopping(self.model, check):
            yield

    def ability(
        self, state: LabState, unwanted: Asked = _never, waiting: Callable[[], None] = lambda: None
    ) -> Ability | None:
        """Clean and bare accuracy of the state's task, on *select*: quickly asked, before its heads are measured."""
        key = self.needs(state)
        if key not in self._abilities:
            with self._turns.taken(unwanted, waiting):
                if key not in self._abilities:
                    known = self._effects.get(key)
                    task, recipe = self.tasks[state.task], self.recipe(state)
                    self._abilities[key] = known.ability if known else measure_ability(self.model, task, recipe)
        return self._abilities[key]

    def effects(
        self, state: LabState, unwanted: Asked = _never, waiting: Callable[[], None] = lambda: None
    ) -> HeadEffects:
        """The effects of the state's task, measured on the first call; a second caller meanwhile waits for them.

        Args:
            unwanted: Asked now and then; where it says so, measuring ends with `Unwanted`.
            waiting: Called where something else is being measured first.
        """
        key = self.needs(state)
        if key not in self._effects:
            ability = self.ability(state, unwanted, waiting)
            with self._turns.taken(unwanted, waiting):
                if key not in self._effects:
                    self._effects[key] = self._measured(state, ability, unwanted)
        return self._effects[key]

    def _measured(self, state: LabState, ability: Ability | None, unwanted: Asked) -> HeadEffects:
        def report(done: int, total: int) -> None:
            if unwanted():
                raise Unwanted

        report(0, 1)  # while it waited for another one
        return head_effects(
            self.model,
            self.tasks[state.task],
            recipe=state.measured(self.options.seed),
            n_prompts=self.options.n_prompts,
            options=EffectOptions(ability=ability, n_check_prompts=0),
            progress=report,
        )

    def heads(self, state: LabState) -> tuple[Head, ...]:
        """The heads of the state's vector, its `k` strongest where none are named."""
        if state.heads is not None:
            return state.heads
        effects = self.effects(state)
        measured = int(effects.aie.isfinite().sum())
        return tuple(effects.top_heads(min(state.k, measured)))

    def setting(self, state: LabState, vector: InstructionVector | None = None) -> Setting:
        """Layer, strength and site that are best on bare *select* prompts; the paper's where nothing can be searched.

        Args:
            vector: what is added; by default the vector of the state's heads.
        """
        vector = vector or self.vector(state)
        if vector is None or not self.options.n_search:
            return self._usual()
        key = self.needs(state), vector.theta.numpy().tobytes()
        if key not in self._settings:
            self._settings[key] = self._searched(state, vector) or self._usual()
        return self._settings[key]

    def _usual(self) -> Setting:
        n_layers = self.model.cfg.n_layers
        return Setting(min(round(n_layers * PAPER_LAYER), n_layers - 1), 1.0, "resid_post")

    def _searched(self, state: LabState, vector: InstructionVector) -> Setting | None:
        task, own = self.tasks[state.task], vector.recipe
        try:
            recipe = followed_recipe([vector], None if own else self.recipe(state), task, "select", self.options.seed)
        except ValueError:
            return None  # it was made on these very inputs
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
        """The text that the model completes; demonstrations are drawn with `seed`, that of the effects by default.

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
        """The prompt completed as it is (`plain`), with the vector (`patched`), and with a `random` one if asked for.

        Raises:
            ValueError: nothing to complete; a vector of another width.
        """
        names = ["plain", "patched"]
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
        """What the task holds for right on this input; empty for an input it does not list."""
        found = self.tasks[state.task].find(state.text) or self.tasks[state.task].find(state.text.strip())
        return found.answers if found is not None else ()

    def facts(self) -> dict[str, Any]:
        """The model in plain values."""
        about = self.identity
        return {
            "name": about.name.rstrip("/").rpartition("/")[2] or about.name,
            "weights": about.weights_hash[:12],
            "n_layers": about.n_layers,
            "n_heads": about.n_heads,
        }


def begins_right(text: str, answers: Sequence[str]) -> bool | None:
    """Whether a completion begins with one of the answers, and not with a longer word; None where there are none."""
    return any(begins_with(text, answer) for answer in answers) if answers else None
