"""What can be varied in a cell of each kind, and the check of values that come from a file."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from ivlens.common.arguments import fitted
from ivlens.common.checks import check_counts, set_items
from ivlens.common.fitting import hints_of, sides
from ivlens.effects.engines import find_engine
from ivlens.effects.measure import EffectOptions
from ivlens.effects.request import check_mode
from ivlens.forward.hooks import SITES, check_site
from ivlens.forward.scoring import check_score
from ivlens.prompts.corruptions import CORRUPTIONS
from ivlens.prompts.recipe import TASK, PromptRecipe
from ivlens.runs.suites.cells import BenchOptions
from ivlens.steering.edits import POSITIONS
from ivlens.steering.search import Grid as SettingsGrid
from ivlens.tuning.builder import find_guidance
from ivlens.tuning.methods import METHODS
from ivlens.tuning.training.options import Decay, TuneOptions


@dataclass(frozen=True)
class PromptOptions:
    """Of a `PromptRecipe`, whose seed is the cell's.

    Attributes:
        template: As of the recipe; a path is relative to the grid's file.
        instruction: `task`: one of the task's own; `none`; or a text.
        n_shots: As of the recipe.
    """

    template: str = "plain"
    instruction: str = "task"
    n_shots: int | None = None

    def __post_init__(self) -> None:
        check_counts(self, n_shots=0)
        self.recipe(0)

    def recipe(self, seed: int) -> PromptRecipe:
        """How clean prompts are made."""
        given = {"task": TASK, "none": None}.get(self.instruction, self.instruction)
        return PromptRecipe(self.template, given, self.n_shots, seed)

    def for_other_tasks(self) -> "PromptOptions":
        """The same for other tasks, by the rule of `PromptRecipe.for_other_tasks`."""
        if self.instruction == "none":
            return self
        return replace(self, instruction="task", n_shots=self.n_shots or None)


@dataclass(frozen=True)
class EffectsOptions(PromptOptions):
    """Of `head_effects`."""

    n_prompts: int = 32
    n_mean_prompts: int = 100
    corruption: str | None = None
    score: str | None = None
    mode: str = "replace"
    method: str = "exact"
    correct_only: bool = False
    contrast: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, n_prompts=1, n_mean_prompts=1)
        _check_choice("corruption", self.corruption, (None, *CORRUPTIONS))
        if self.score is not None:
            check_score(self.score, has_foils=True)
        check_mode(self.mode)
        find_engine(self.method)

    def effects(self, max_memory: int) -> EffectOptions:
        """As `head_effects` takes them."""
        names = ("mode", "method", "n_mean_prompts", "correct_only", "contrast")
        return EffectOptions(max_memory=max_memory, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class VectorOptions(EffectsOptions):
    """Of the effects and of `InstructionVector.from_effects`; with `contrast` the effects are measured for it."""

    k: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, k=1)


@dataclass(frozen=True)
class InterventionOptions(VectorOptions):
    """Of the vector and of `evaluate_intervention`; the control *other tasks* takes the vectors of the grid's tasks."""

    n_draws: int = 19
    judged_on: str = "drop"
    n_judge_prompts: int | None = None
    layers: tuple[int, ...] | None = None
    alphas: tuple[float, ...] = tuple(SettingsGrid.alphas)
    sites: tuple[str, ...] = tuple(SITES)
    positions: str = "prompt"

    def __post_init__(self) -> None:
        super().__post_init__()
        set_items(self, "sites")
        check_counts(self, n_draws=0, n_judge_prompts=1)
        _check_choice("judged_on", self.judged_on, CORRUPTIONS)
        _check_choice("positions", self.positions, POSITIONS)
        for site in self.sites:
            check_site(site)
        if not self.alphas or not self.sites or self.layers == ():
            raise ValueError("layers, alphas or sites is an empty list, expected something to try; name some.")

    @property
    def grid(self) -> SettingsGrid:
        """What every vector searches."""
        names = ("layers", "alphas", "sites", "positions")
        return SettingsGrid(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class TuningOptions(PromptOptions):
    """Of `finetune` and the guidance in it, which keeps the tasks in `watch`."""

    method: str = "lora"
    guidance: str = "none"
    watch: tuple[str, ...] = ()
    lr: float = 1e-3
    steps: int = 150
    batch_size: int = 32
    decay: str = "linear"
    n_samples: int | None = None
    n_prompts: int = 32
    judge_every: int = 20
    save_every: int = 50
    keep_model: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        set_items(self, "watch")
        check_counts(self, n_samples=1)
        _check_choice("method", self.method, tuple(METHODS))
        find_guidance(self.guidance)
        _check_choice("decay", self.decay, get_args(Decay))
        self.training(0)

    def training(self, seed: int) -> TuneOptions:
        """As `finetune` takes them."""
        names = ("lr", "steps", "batch_size", "decay", "judge_every", "save_every", "n_samples", "n_prompts")
        return TuneOptions(seed=seed, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class SequenceOptions(PromptOptions):
    """Of a benchmark's cell: `run_cell` with `BenchOptions`, on one of the suites that the grid names.

    Attributes:
        data: Folder with the suite's files; a path is relative to the grid's file. None for pocket.
        order: Number of the suite's order.
        n_tasks: Only the first so many tasks of it.
        target, n_general, n_earlier, few_shots: As of `BenchOptions`; the others are those of each training.
    """

    data: str | None = None
    order: int = 0
    n_tasks: int | None = None
    method: str = "lora"
    guidance: str = "none"
    lr: float = 1e-3
    steps: int = 150
    batch_size: int = 32
    decay: str = "constant"
    n_samples: int | None = 400
    n_prompts: int = 64
    judge_every: int = 20
    patience: int | None = None
    target: float | None = None
    n_general: int = 16
    n_earlier: int = 6
    few_shots: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, n_samples=1, n_tasks=1, order=0)
        _check_choice("method", self.method, tuple(METHODS))
        find_guidance(self.guidance)
        _check_choice("decay", self.decay, get_args(Decay))
        self.bench(0)

    @property
    def suite(self) -> tuple[str | None, int, int | None]:
        """Which part of a suite: folder, order, number of tasks."""
        return self.data, self.order, self.n_tasks

    def bench(self, seed: int) -> BenchOptions:
        """As `run_cell` takes them."""
        names = ("lr", "steps", "batch_size", "decay", "n_samples", "n_prompts", "judge_every", "patience")
        tune = TuneOptions(seed=seed, **{name: getattr(self, name) for name in names})
        others = {name: getattr(self, name) for name in ("target", "n_general", "n_earlier", "few_shots")}
        return BenchOptions(tune=tune, recipe=self.recipe(seed), **others)


@dataclass(frozen=True)
class ForgettingOptions(PromptOptions):
    """Of `probe`: what a model does under the instruction, and what it knows without."""

    n_prompts: int | None = None
    n_clozes: int | None = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, n_prompts=1, n_clozes=1)


@dataclass(frozen=True)
class DynamicsOptions(PromptOptions):
    """Of `measure_stage`: all that is kept of one checkpoint, to be compared with others without opening it again."""

    n_prompts: int = 24
    k: int = 10
    n_judge_prompts: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, n_prompts=1, k=1, n_judge_prompts=1)


@dataclass(frozen=True)
class Setting:
    """What all cells of a sweep have in common: how the machine computes. All of it belongs to a result's key.

    Attributes:
        device: auto, cpu, cuda ...; only its type is in the key.
        dtype: As in `load_model`.
        threads: CPU threads of each process.
        max_memory: Bytes of one pass of the effects; decides the portions they are measured in.
    """

    device: str = "auto"
    dtype: str = "auto"
    threads: int = 1
    max_memory: int = field(default=2**28)

    def __post_init__(self) -> None:
        check_counts(self, threads=1, max_memory=2**20)


def options_from(made: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """An options object from plain values, such as a file holds.

    Raises:
        ValueError: an unknown name, a value of another type, or one that does not exist.
    """
    hints = hints_of(made)
    for name in values:
        if name not in hints:
            near = get_close_matches(str(name), hints, n=1)
            remedy = f"did you mean {near[0]!r}" if near else "leave it out"
            raise ValueError(f"{where} has {name!r:.80}, expected some of {', '.join(hints)}; {remedy}.")
    needed = [one.name for one in fields(made) if one.default is MISSING and one.default_factory is MISSING]
    assert not needed, "a sweep's options all have defaults"
    try:
        return made(**{name: fitted(name, value, hints[name]) for name, value in values.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def takes_list(made: type[Any], name: str) -> bool:
    """Whether a list is one value of this option, rather than several."""
    return any(get_origin(one) is tuple for one in sides(hints_of(made).get(name, Any)))


def _check_choice(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r:.60}, expected one of {', '.join(map(str, filter(None, known)))}.")
