"""The options of each kind of cells, and the check of values that come from a grid's file."""

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
    """How prompts are made: the options of a `PromptRecipe`, whose seed is that of the cell.

    Attributes:
        template: Name of a template, or a JSON file with its fields; a path is relative to the grid's file.
        instruction: `task` (one of the task's own), `none`, or the text of an instruction.
        n_shots: Demonstrations in each prompt; None: as in `PromptRecipe`.
    """

    template: str = "plain"
    instruction: str = "task"
    n_shots: int | None = None

    def __post_init__(self) -> None:
        check_counts(self, n_shots=0)
        self.recipe(0)  # which checks its own options; the seed makes no difference

    def recipe(self, seed: int) -> PromptRecipe:
        """The recipe of clean prompts."""
        given = {"task": TASK, "none": None}.get(self.instruction, self.instruction)
        return PromptRecipe(self.template, given, self.n_shots, seed)

    def for_other_tasks(self) -> "PromptOptions":
        """The options for prompts of other tasks, by the rule of `PromptRecipe.for_other_tasks`."""
        if self.instruction == "none":
            return self
        return replace(self, instruction="task", n_shots=self.n_shots or None)


@dataclass(frozen=True)
class EffectsOptions(PromptOptions):
    """Options of `head_effects`."""

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
        """The options in the form that `head_effects` takes."""
        names = ("mode", "method", "n_mean_prompts", "correct_only", "contrast")
        return EffectOptions(max_memory=max_memory, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class VectorOptions(EffectsOptions):
    """Options of `InstructionVector.from_effects`, and of the effects that the vector is made from."""

    k: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, k=1)


@dataclass(frozen=True)
class InterventionOptions(VectorOptions):
    """Options of `evaluate_intervention`, and of the vectors: the task's own, and those of the grid's other tasks."""

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
        """The settings that are tried for every vector."""
        names = ("layers", "alphas", "sites", "positions")
        return SettingsGrid(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class TuningOptions(PromptOptions):
    """Options of `finetune`; guidance keeps the tasks in `watch`, and the result has their scores."""

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
        self.training(0)  # which checks its own options

    def training(self, seed: int) -> TuneOptions:
        """The options in the form that `finetune` takes."""
        names = ("lr", "steps", "batch_size", "decay", "judge_every", "save_every", "n_samples", "n_prompts")
        return TuneOptions(seed=seed, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class SequenceOptions(PromptOptions):
    """Options of a benchmark's cell (`run_cell`), on a suite that the grid names.

    Attributes:
        data: Folder with the suite's files, relative to the grid's file. None for pocket.
        order: Number of the suite's order of tasks.
        n_tasks: Only the first so many tasks of the order; None: all.
        target, n_general, n_earlier, few_shots: As in `BenchOptions`. All other options are those of each training.
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
        self.bench(0)  # which checks its own options

    @property
    def suite(self) -> tuple[str | None, int, int | None]:
        """The arguments that say which part of a suite is meant: folder, order, number of tasks."""
        return self.data, self.order, self.n_tasks

    def bench(self, seed: int) -> BenchOptions:
        """The options in the form that `run_cell` takes."""
        names = ("lr", "steps", "batch_size", "decay", "n_samples", "n_prompts", "judge_every", "patience")
        tune = TuneOptions(seed=seed, **{name: getattr(self, name) for name in names})
        others = {name: getattr(self, name) for name in ("target", "n_general", "n_earlier", "few_shots")}
        return BenchOptions(tune=tune, recipe=self.recipe(seed), **others)


@dataclass(frozen=True)
class ForgettingOptions(PromptOptions):
    """Options of `probe`: instruction and knowledge probability."""

    n_prompts: int | None = None
    n_clozes: int | None = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, n_prompts=1, n_clozes=1)


@dataclass(frozen=True)
class DynamicsOptions(PromptOptions):
    """Options of `measure_stage`, which measures all that comparisons of a checkpoint with others need."""

    n_prompts: int = 24
    k: int = 10
    n_judge_prompts: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, n_prompts=1, k=1, n_judge_prompts=1)


@dataclass(frozen=True)
class Setting:
    """How the machine computes; the same for all cells of a sweep, and part of every key, as it may change last digits.

    Attributes:
        device: auto, cpu, cuda ...; only its type is in the key.
        dtype: As in `load_model`; the key has it in the hash of the weights.
        threads: CPU threads of each process.
        max_memory: Bytes that one pass of the effects may use: decides how many prompts are measured together.
    """

    device: str = "auto"
    dtype: str = "auto"
    threads: int = 1
    max_memory: int = field(default=2**28)

    def __post_init__(self) -> None:
        check_counts(self, threads=1, max_memory=2**20)


def options_from(made: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """An object of the class `made`, from plain values such as a file holds.

    Args:
        where: Where the values stand, for errors.

    Raises:
        ValueError: a name is unknown, or a value does not fit the option.
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
    """Whether a single value of this option is a list."""
    return any(get_origin(one) is tuple for one in sides(hints_of(made).get(name, Any)))


def _check_choice(name: str, value: object, known: tuple[object, ...]) -> None:
    """Refuse a value that is not among the known ones."""
    if value not in known:
        raise ValueError(f"{name} is {value!r:.60}, expected one of {', '.join(map(str, filter(None, known)))}.")
