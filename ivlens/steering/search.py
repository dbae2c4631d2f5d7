"""Layer x strength x site grids: the best setting of a vector, and tables of all settings."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.forward.hooks import SITES, check_layers, check_site
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.build import Corruption, PromptBatch, build_prompts
from ivlens.prompts.templates import PromptTemplate
from ivlens.steering.edits import POSITIONS, Positions
from ivlens.steering.summary import METRICS, Scores, Setting
from ivlens.steering.trials import Trials
from ivlens.tasks.task import SplitName, Task, TaskExample
from ivlens.vectors.vector import InstructionVector, check_belongs

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Grid:
    """The settings that are tried, and how.

    Attributes:
        layers: None: all.
        alphas: strengths.
        sites: places in the block.
        positions: `prompt` or `every`, as in `steer`.
        n_screen, n_finalists: a search tries every setting on the first `n_screen` prompts, and the `n_finalists` best
            of each vector on all of them; 0 finalists: every setting on every prompt.
        rows_per_pass: upper bound on prompts x vectors x strengths in one forward pass.
    """

    layers: Sequence[int] | None = None
    alphas: Sequence[float | int] = (0.5, 1.0, 2.0, 4.0, 8.0)
    sites: Sequence[str] = SITES
    positions: Positions = "prompt"
    n_screen: int = 16
    n_finalists: int = 6
    rows_per_pass: int = 512

    def settings(self, model: TransformerBridge) -> list[Setting]:
        """All settings, layer by layer.

        Raises:
            ValueError: an unknown layer, site or positions; nothing to try.
        """
        if self.positions not in POSITIONS:
            raise ValueError(f"positions is {self.positions!r}, expected one of {', '.join(POSITIONS)}.")
        layers = check_layers(model, range(model.cfg.n_layers) if self.layers is None else self.layers)
        sites = [check_site(site) for site in self.sites]
        if not (layers and sites and self.alphas):
            raise ValueError("the grid is empty, expected at least one layer, one alpha and one site.")
        return [Setting(layer, float(alpha), site) for layer in layers for site in sites for alpha in self.alphas]


@dataclass(frozen=True)
class PromptSource:
    """How the prompts of a split are made, the same for every split.

    Attributes:
        corruption: None: clean. `drop` is `none` for a task that has no instruction to drop. With `shuffle` the
            demonstrations stand alone, without an instruction, in clean prompts too, as in `head_effects`.
        n_shots: demonstrations in clean prompts; None: 5 where there is no instruction in the prompt, otherwise none.
        n_prompts: at most so many of a split; None: all.
        seed: draws which prompts, and their order.
        split_seed: decides which split an input is in. Instructions and demonstrations are drawn with it too, so that
            a prompt is the same in every table of one vector.
    """

    model: TransformerBridge
    task: Task
    grid: Grid
    corruption: Corruption | None = "drop"
    template: str | PromptTemplate = "plain"
    n_shots: int | None = None
    n_prompts: int | None = None
    seed: int = 0
    split_seed: int = 0

    def __post_init__(self) -> None:
        if self.n_prompts is not None and self.n_prompts < 1:
            raise ValueError(f"n_prompts is {self.n_prompts}, expected at least 1, or None for the whole split.")

    @property
    def applied(self) -> Corruption | None:
        """The corruption the prompts really have."""
        instructed = self.task.instructions and not self.task.fused
        return "none" if self.corruption == "drop" and not instructed else self.corruption

    @property
    def shots(self) -> int:
        """Demonstrations in clean prompts."""
        if self.n_shots is not None:
            return self.n_shots
        told = self.task.fused or (self.task.instructions and self.corruption != "shuffle")
        return 0 if told else min(5, len(self.task.split("fit", self.split_seed)) - 1)

    def examples(self, split: SplitName) -> tuple[TaskExample, ...]:
        """Examples of a split, in an order drawn with the seed."""
        found = self.task.split(split, self.split_seed)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(self.seed)).tolist()
        return tuple(found[index] for index in order[: self.n_prompts])

    def batch(self, split: SplitName, *, corrupted: bool = True) -> PromptBatch:
        """The prompts, or with `corrupted=False` what they would be without the corruption."""
        corruption = self.applied if corrupted else None
        return build_prompts(
            self.model.tokenizer,
            self.task,
            self.examples(split),
            template=self.template,
            instruction="" if self.corruption == "shuffle" else None,
            n_shots=0 if corruption in ("drop", "none") else self.shots,
            corruption=corruption,
            seed=self.split_seed,
        )

    def trials(self, split: SplitName, *, corrupted: bool = True) -> Trials:
        """The prompts, ready to be run."""
        batch = self.batch(split, corrupted=corrupted)
        return Trials(self.model, batch, positions=self.grid.positions, rows_per_pass=self.grid.rows_per_pass)


def sweep_settings(
    model: TransformerBridge,
    task: Task,
    vectors: "InstructionVector | Sequence[InstructionVector] | Mapping[str, InstructionVector]",
    *,
    grid: Grid | None = None,
    split: SplitName = "select",
    corruption: Corruption | None = "drop",
    n_prompts: int | None = None,
    template: str | PromptTemplate = "plain",
    n_shots: int | None = None,
    seed: int = 0,
) -> "pd.DataFrame":
    """Every vector at every setting of the grid, on prompts without instruction.

    Args:
        vectors: one, several, or several by name.
        grid: all layers, both sites, strengths 0.5 to 8 by default; the whole of it is measured on all prompts.
        n_prompts: at most so many, drawn with the seed; None: the whole split.
        n_shots: demonstrations, where the corruption leaves any; None: see `evaluate_intervention`.
        seed: draws which prompts, and their order; splits and instructions are those of the seed the vectors were made
            with, or of this one for vectors that record none.

    Returns:
        One row per vector, layer, site and alpha, with the means `accuracy`, `exact`, `prob` (first answer token) and
        `logprob` (whole answer, nats) over `n` prompts; see `evaluate_intervention`.

    Raises:
        ValueError: an unknown layer, site, positions or split; a vector of another model, or made on this split.
    """
    import pandas as pd

    grid = grid or Grid()
    named = name_vectors(vectors)
    for vector in named.values():
        check_belongs(vector, model)
    settings = grid.settings(model)
    splits = split_seed(named.values(), split, seed)
    trials = PromptSource(model, task, grid, corruption, template, n_shots, n_prompts, seed, splits).trials(split)
    scores = grid_scores(trials, torch.stack([vector.theta for vector in named.values()]), settings)
    rows = [
        {
            "vector": name,
            **setting._asdict(),
            **{metric: means[metric][index] for metric in METRICS},
            "n": len(trials.batch),
        }
        for name, means in zip(named, map(_means, scores), strict=True)
        for index, setting in enumerate(settings)
    ]
    return pd.DataFrame(rows)


def grid_scores(
    trials: Trials, thetas: Float[Tensor, "n d_model"], settings: Sequence[Setting], *, brief: bool = False
) -> list[Scores]:
    """For each vector, its scores at every setting; `brief`: without `logprob`."""
    flat = [setting for _ in thetas for setting in settings]
    scores = trials.at(flat, thetas.repeat_interleave(len(settings), 0), brief=brief)
    return [scores.chosen(range(at, at + len(settings))) for at in range(0, len(flat), len(settings))]


def best_settings(
    trials: Trials, thetas: Float[Tensor, "n d_model"], settings: Sequence[Setting], grid: Grid
) -> list[Setting]:
    """The best setting of each vector: accuracy, ties broken by probability, then by order.

    All vectors get the same two rounds: every setting on the first prompts, the best ones on all (see `Grid`).
    """
    if len(settings) == 1:
        return [settings[0]] * len(thetas)
    two_rounds = 0 < grid.n_finalists < len(settings) and 0 < grid.n_screen < len(trials.batch)
    first_round = trials.first(grid.n_screen) if two_rounds else trials
    goodness = torch.stack([scores.goodness() for scores in grid_scores(first_round, thetas, settings, brief=True)])
    if not two_rounds:
        return [settings[index] for index in goodness.argmax(1).tolist()]
    order = goodness.argsort(dim=1, descending=True, stable=True)[:, : grid.n_finalists]
    finalists = [settings[index] for index in order.flatten().tolist()]
    scores = trials.at(finalists, thetas.repeat_interleave(order.shape[1], 0), brief=True)
    winners = scores.goodness().reshape(order.shape).argmax(1).tolist()
    return [finalists[row * order.shape[1] + winner] for row, winner in enumerate(winners)]


def split_seed(vectors: Iterable[InstructionVector], split: SplitName, default: int) -> int:
    """The seed of the splits that these vectors were made on, so that no prompt that made one of them judges it.

    Raises:
        ValueError: two vectors with different seeds, or one that was made on `split`.
    """
    made_on = [found for vector in vectors for found in _effects_of(vector.settings)]
    seeds = sorted({int(found["seed"]) for found in made_on if "seed" in found})
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


def _effects_of(settings: Any) -> Iterator[Mapping[str, Any]]:
    """Settings of all effects that went into a vector or chose its heads, through any arithmetic."""
    if isinstance(settings, Mapping):
        if isinstance(settings.get("effects"), Mapping):
            yield settings["effects"]
        for value in settings.values():
            yield from _effects_of(value)
    elif isinstance(settings, Sequence) and not isinstance(settings, str):
        for value in settings:
            yield from _effects_of(value)


def name_vectors(
    vectors: "InstructionVector | Sequence[InstructionVector] | Mapping[str, InstructionVector]",
) -> dict[str, InstructionVector]:
    """Vectors by name: their task's where none is given.

    Raises:
        ValueError: none at all, or two of one name.
    """
    if isinstance(vectors, Mapping):
        named = dict(vectors)
    else:
        listed = [vectors] if isinstance(vectors, InstructionVector) else list(vectors)
        named = {vector.task: vector for vector in listed}
        if len(named) < len(listed):
            names = sorted(vector.task for vector in listed)
            raise ValueError(
                f"two vectors have the same task name among {names}, expected distinct ones; pass a dict of names."
            )
    if not named:
        raise ValueError("there are no vectors to sweep, expected at least one InstructionVector.")
    return named


def _means(scores: Scores) -> dict[str, list[float]]:
    return {metric: getattr(scores, metric).mean(1).tolist() for metric in METRICS}
