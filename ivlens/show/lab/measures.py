"""What the lab measures with one model: abilities, effects, vectors and their settings, each of them once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ivlens.common.checks import check_counts
from ivlens.effects.measure import EffectOptions, head_effects
from ivlens.effects.results import HeadEffects
from ivlens.forward.ability import Ability, measure_ability
from ivlens.forward.finding import PromptSearch
from ivlens.forward.remembered import remembered_search
from ivlens.forward.scoring import Score
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.fingerprint import model_identity
from ivlens.prompts.recipe import PromptRecipe
from ivlens.show.lab.kept import Kept, digest
from ivlens.show.lab.running import Running, Turns
from ivlens.show.lab.state import Head, LabState
from ivlens.show.lab.worker import Unwanted
from ivlens.steering.prompt_sets import PromptSets, followed_recipe
from ivlens.steering.search import Grid, best_settings
from ivlens.steering.summary import Setting
from ivlens.tasks.task import Task, split_of
from ivlens.vectors.vector import InstructionVector

SEARCH = Grid(alphas=(1.0, 2.0, 4.0), n_screen=8, n_finalists=6)
PAPER_LAYER = 9 / 32  # the paper adds the vector at layer 9 of 32, in a 7B model


@dataclass(frozen=True)
class EngineOptions:
    """How many prompts an engine measures on.

    Attributes:
        n_prompts: corrupted prompts for the effects of a task.
        n_search: *select* prompts on which layer, strength and site are searched for; 0: no search.
        seed: the seed of the recipes by which this engine makes prompts.
        score: the score whose gain is the effect; None: the one that suits the task.
        kept: where results are kept from one run to the next; None: nowhere.
        auto: whether the form of prompt is still to be looked for, by the first page.
    """

    n_prompts: int = 32
    n_search: int = 24
    seed: int = 0
    score: Score | None = None
    kept: Kept | None = None
    auto: bool = False

    def __post_init__(self) -> None:
        check_counts(self, n_prompts=1, n_search=0)


Key = tuple[str, PromptRecipe]  # a task, and how its prompts are made: all that effects depend on, for one model
Asked = Callable[[], bool]  # asked now and then during long work: True once nobody wants the result any more


@dataclass(frozen=True)
class Client:
    """Who asks an engine for long work.

    Attributes:
        unwanted: Asked now and then; once it returns True, the work ends.
        waiting: Called if something else has to be measured first.
        progress: Called with (done, total) during a measurement.
    """

    unwanted: Asked = lambda: False
    waiting: Callable[[], None] = lambda: None
    progress: Callable[[int, int], None] = lambda done, total: None


ANYBODY = Client()


class Measures:
    """One model, its tasks, and what is measured. Every method may be called from any thread; results are kept.

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
        self._searches: dict[str, PromptSearch] = {}
        self._settings: dict[tuple[Key, str], Setting] = {}
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
        """Whether the effects that `state` needs are measured, now or in an earlier run."""
        key = self.needs(state)
        if key not in self._effects and self.options.kept is not None:
            found = self.options.kept.effects(self._kept_key("effects", state), self.model)
            if found is not None:
                self._effects[key] = found
        return key in self._effects

    def _kept_key(self, kind: str, state: LabState, **more: Any) -> dict[str, Any]:
        """The key under which a result is kept from one run to the next."""
        options = {"n_prompts": self.options.n_prompts, "score": self.options.score}
        # with every default filled in, so that two ways of asking for the same prompts share a result
        recipe = replace(self.needs(state)[1], seed=self.recipe(state).seed)
        assert self.options.kept is not None
        return self.options.kept.key(kind, self.model, self.tasks[state.task], recipe, **options, **more)

    def ability(self, state: LabState, client: Client = ANYBODY) -> Ability | None:
        """Clean and bare accuracy of the state's task on *select*, measured on the first call.

        It takes far less time than the effects, so the page can show it first. Raises as `effects`.
        """
        key = self.needs(state)
        if key not in self._abilities:
            known = self._effects[key].ability if self.knows(state) else None
            with self._turns.taken(client.unwanted, client.waiting):
                # another thread may have measured it while this one waited for its turn
                if key not in self._abilities:
                    task, recipe = self.tasks[state.task], self.recipe(state)
                    self._abilities[key] = known or measure_ability(self.model, task, recipe)
        return self._abilities[key]

    def search(self, task: str, client: Client = ANYBODY) -> PromptSearch:
        """The form of prompt in which the model answers a task best; searched for once, and remembered between runs.

        Raises:
            Unwanted: the client no longer wants it.
            ValueError: no form suits the task.
        """
        with self._turns.taken(client.unwanted, client.waiting):
            if task not in self._searches:
                self._searches[task] = remembered_search(self.model, self.tasks[task], self.options.seed)
            return self._searches[task]

    def effects(self, state: LabState, client: Client = ANYBODY) -> HeadEffects:
        """The effects of the state's task, measured on the first call; another caller waits until they are measured.

        Raises:
            Unwanted: the client no longer wants them.
        """
        key = self.needs(state)
        if not self.knows(state):
            ability = self.ability(state, client)
            with self._turns.taken(client.unwanted, client.waiting):
                if key not in self._effects:
                    self._effects[key] = self._measured(state, ability, client)
        return self._effects[key]

    def _measured(self, state: LabState, ability: Ability | None, client: Client) -> HeadEffects:
        """Measure the effects of the state's task; `ability` is given so that it is not measured a second time."""

        def report(done: int, total: int) -> None:
            if client.unwanted():
                raise Unwanted
            if done:
                client.progress(done, total)

        report(0, 1)  # it may have become unwanted while it waited for its turn
        found = head_effects(
            self.model,
            self.tasks[state.task],
            recipe=state.measured(self.options.seed),
            n_prompts=self.options.n_prompts,
            score=self.options.score,
            options=EffectOptions(ability=ability, n_check_prompts=0),
            progress=report,
        )
        if self.options.kept is not None:
            self.options.kept.keep_effects(self._kept_key("effects", state), found)
        return found

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
            return self.usual()
        # two sets of heads may give one vector, so settings are kept by the vector's bytes
        name = digest(vector.theta.numpy().tobytes())
        key = self.needs(state), name
        if key not in self._settings:
            self._settings[key] = self._kept_setting(state, vector, name) or self.usual()
        return self._settings[key]

    def _kept_setting(self, state: LabState, vector: InstructionVector, name: str) -> Setting | None:
        """The setting that was found for this vector in an earlier run, or is searched for now."""
        kept = self.options.kept
        if kept is None:
            return self._searched(state, vector)
        key = self._kept_key("setting", state, vector=name, n=self.options.n_search)
        if known := kept.facts(key):
            return Setting(**known)
        found = self._searched(state, vector)
        if found is not None:
            kept.keep_facts(key, found._asdict())
        return found

    def usual(self) -> Setting:
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
