"""Searches the best layer, strength and site of a vector on a grid, or measures the whole grid in a table.

Formulas and defaults: docs/method.md, 6 Intervention and its controls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.common.arguments import checked
from ivlens.common.checks import check_counts, set_items
from ivlens.forward.hooks import SITES, check_layers, check_site
from ivlens.models.attention import present_sites
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.prompts.recipe import PromptRecipe
from ivlens.steering.edits import POSITIONS, Positions
from ivlens.steering.prompt_sets import PromptSets, followed_recipe
from ivlens.steering.summary import METRICS, Scores, Setting
from ivlens.steering.trials import Trials
from ivlens.tasks.task import SplitName, Task
from ivlens.vectors.vector import InstructionVector, check_belongs

if TYPE_CHECKING:
    import pandas as pd


MOST_LAYERS = 12  # layers that are tried where none are named


@checked
@dataclass(frozen=True)
class Grid:
    """The settings (layer, strength, site) that are tried, and how they are tried.

    Attributes:
        layers: The layers. None: all layers, or twelve of them if the model has more (see `tried_layers`).
        alphas: The strengths.
        sites: The places in a block, `resid_post` and `attn_out`.
        positions: `prompt`, `every` or `all`, as in `steer`; with `all` a search runs over whole prompts, slowly.
        n_screen, n_finalists: A search tries every setting on half of the first `n_screen` prompts, the better half of
            each vector's settings on the other half, and the best quarter on all prompts; never fewer than
            `n_finalists`. With 0 finalists it tries every setting on every prompt.
        rows_per_pass: Upper bound on the rows (prompts x vectors x strengths) of one forward pass.
    """

    layers: Sequence[int] | None = None
    alphas: Sequence[float | int] = (0.5, 1.0, 2.0, 4.0, 8.0)
    sites: str | Sequence[str] = SITES
    positions: Positions = "prompt"
    n_screen: int = 16
    n_finalists: int = 6
    rows_per_pass: int = 512

    def __post_init__(self) -> None:
        check_counts(self, n_screen=1, n_finalists=0, rows_per_pass=1)
        # plain tuples, since results record the grid in their settings, as JSON
        for name in ("layers", "alphas"):
            if (numbers := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(numbers))
        set_items(self, "sites")

    @property
    def passes(self) -> dict[str, Any]:
        """The arguments of `PromptSets` that come from a grid."""
        return {"positions": self.positions, "rows_per_pass": self.rows_per_pass}

    @classmethod
    def only(cls, setting: Setting) -> "Grid":
        """A grid of one setting, with which nothing is searched."""
        return cls((setting.layer,), (setting.alpha,), (setting.site,))

    def settings(self, model: TransformerBridge) -> list[Setting]:
        """All settings of the grid, layer by layer; `attn_out` only in layers that have attention.

        Raises:
            ValueError: an unknown layer, site or positions; an empty grid; `attn_out`, and no layer with attention.
        """
        if self.positions not in POSITIONS:
            raise ValueError(f"positions is {self.positions!r}, expected one of {', '.join(POSITIONS)}.")
        every = tried_layers(check_model(model).cfg.n_layers) if self.layers is None else self.layers
        layers, sites = check_layers(model, every), [check_site(site) for site in self.sites]
        if not (layers and sites and self.alphas):
            raise ValueError("the grid is empty, expected at least one layer, one alpha and one site.")
        places = present_sites(model, layers, sites)
        return [Setting(layer, float(alpha), site) for layer, site in places for alpha in self.alphas]


NO_VECTOR = Grid(layers=(0,), alphas=(0.0,), sites=SITES[:1])
"""A grid of the single strength 0: the prompts run without a vector."""


def tried_layers(n_layers: int, most: int = MOST_LAYERS) -> list[int]:
    """The layers that are tried where none are named: all, or in a deep model `most` of them, evenly spaced.

    The spaced ones leave out the first blocks and the last fifth, whose output few heads still read.
    """
    if n_layers <= most:
        return list(range(n_layers))
    first, last = round(0.06 * n_layers), round(0.8 * n_layers)
    return sorted({round(first + (last - first) * step / (most - 1)) for step in range(most)})


@checked
def sweep_settings(
    model: TransformerBridge,
    task: Task,
    vectors: "InstructionVector | Sequence[InstructionVector] | Mapping[str, InstructionVector]",
    *,
    recipe: PromptRecipe | None = None,
    grid: Grid | None = None,
    split: SplitName = "select",
    n_prompts: int | None = None,
    seed: int = 0,
) -> "pd.DataFrame":
    """The accuracy of every vector at every setting of the grid, on bare prompts (no instruction, no demonstrations).

    Args:
        vectors: One vector, several in a list, or several in a dict by name.
        recipe: How prompts are made; None: as those of the first vector were.
        grid: `Grid()` by default. Every setting is measured on all prompts; nothing is screened.
        n_prompts: The largest number of prompts, drawn with the seed; None: the whole split.
        seed: Draws the prompts and their order; the splits are those of the seed that the vectors were made with.

    Returns:
        One row for each vector, layer, site and alpha, with the means `accuracy`, `exact`, `prob` (first answer token)
        and `logprob` (whole answer, nats) over `n` prompts; see `evaluate_intervention`.

    Raises:
        ValueError: an unknown layer, site, positions or split; a vector of another model, or made on this split.
    """
    import pandas as pd

    grid = grid or Grid()
    named = name_vectors(vectors)
    for vector in named.values():
        check_belongs(vector, model)
    settings = grid.settings(model)
    chosen = followed_recipe(named.values(), recipe, task, split, seed)
    trials = PromptSets(model, task, chosen, n_prompts=n_prompts, seed=seed, **grid.passes).trials(split)
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


def grid_scores(trials: Trials, thetas: Float[Tensor, "n d_model"], settings: Sequence[Setting]) -> list[Scores]:
    """The scores of every vector at every setting: one `Scores` for each vector, a row in it for each setting."""
    flat = [setting for _ in thetas for setting in settings]  # vector by vector, each at all settings
    scores = trials.at(flat, thetas.repeat_interleave(len(settings), 0))
    return [scores.chosen(range(at, at + len(settings))) for at in range(0, len(flat), len(settings))]


def thetas_at(thetas: Float[Tensor, "n *n_layers d_model"], settings: Sequence[Setting]) -> Float[Tensor, "n d_model"]:
    """The vector of each row at its setting: the row's only one, or its vector for the setting's layer."""
    if thetas.ndim == 2:
        return thetas
    return thetas[torch.arange(len(thetas)), torch.tensor([setting.layer for setting in settings], dtype=torch.long)]


def best_settings(
    trials: Trials, thetas: Float[Tensor, "n d_model"], settings: Sequence[Setting], grid: Grid
) -> list[Setting]:
    """The setting of each vector that does best, see `searched`."""
    return [setting for setting, _ in searched(trials, thetas, settings, grid)]


def searched(
    trials: Trials, thetas: Float[Tensor, "n *n_layers d_model"], settings: Sequence[Setting], grid: Grid
) -> list[tuple[Setting, float]]:
    """The setting of each vector with the largest accuracy, and its `goodness` on all prompts (NaN with one setting).

    A row of `thetas` is one vector, or a vector for each layer, of which the setting's layer chooses one.

    Ties are broken by mean probability, then by order. All vectors, controls too, get the same rounds: all settings on
    a few prompts, the better ones on more (successive halving, see `Grid`). A control that searched less would lose for
    that reason alone. A first score counts in later rounds; what decides is scored exactly in each.
    """
    if len(settings) == 1:
        return [(settings[0], float("nan"))] * len(thetas)
    race, start = _Race(trials, thetas, settings), 0
    for stop, n_kept in _rounds(len(settings), len(trials.batch), grid):
        race.run(slice(start, stop))
        race.keep(n_kept, slice(stop))
        start = stop
    best = [settings[number] for (number,) in race.left.tolist()]
    return list(zip(best, race.goodness().tolist(), strict=True))


def _rounds(n_settings: int, n_prompts: int, grid: Grid) -> list[tuple[int, int]]:
    """For each round the number of prompts, and the number of settings that go on."""
    # with few settings or few prompts the first rounds would be the whole search, so they are left out
    if not (0 < grid.n_finalists < n_settings and 0 < grid.n_screen < n_prompts):
        return [(n_prompts, 1)]
    half, quarter = (max(grid.n_finalists, -(-n_settings // part)) for part in (2, 4))
    first = [(grid.n_screen // 2, half)] if grid.n_screen > 1 else []
    return [*first, (grid.n_screen, quarter), (n_prompts, 1)]


class _Race:
    """The settings of each vector that are still tried, with their scores on all prompts so far.

    Every setting is first scored loosely, by the first tokens of answers alone, so the score is never too low. Then
    only those among the best are scored exactly, until all of the best are exact. The result is that of scoring all of
    them exactly, at a fraction of the passes.

    Attributes:
        left: For each vector the numbers of its settings.
    """

    def __init__(
        self, trials: Trials, thetas: Float[Tensor, "n *n_layers d_model"], settings: Sequence[Setting]
    ) -> None:
        self._trials, self._thetas, self._settings = trials, thetas, settings
        self.left = torch.arange(len(settings)).repeat(len(thetas), 1)
        # a row for each vector and each of its settings, vector by vector
        self._scores: Scores | None = None
        self._is_loose = torch.zeros(self.left.numel(), 0, dtype=torch.bool)  # for each of these rows and each prompt

    def _scored(self, prompts: slice, rows: Int[Tensor, " rows"], **part: Any) -> Scores:
        settings = [self._settings[number] for number in self.left.flatten()[rows].tolist()]
        thetas = thetas_at(self._thetas[rows // self.left.shape[1]], settings)
        return self._trials.at(settings, thetas, prompts=prompts, **part)

    def run(self, prompts: slice) -> None:
        """Score what is left on more prompts."""
        more = self._scored(prompts, torch.arange(self.left.numel()), part="first tokens")
        self._scores = more if self._scores is None else Scores.abreast([self._scores, more])
        # without a right answer there is nothing to lose
        self._is_loose = torch.cat([self._is_loose, more.accuracy > 0], 1)

    def goodness(self) -> Float[Tensor, " rows"]:
        """The goodness of each setting that is left on all prompts so far, see `Scores.goodness`."""
        assert self._scores is not None
        return self._scores.goodness()

    def keep(self, n: int, prompts: slice) -> None:
        """Leave the `n` best settings of each vector, in the order in which they were given.

        Args:
            prompts: All prompts so far.
        """
        assert self._scores is not None
        first, n_asked = self.left.shape[1] * torch.arange(len(self.left))[:, None], n
        while True:
            # stable: of equal settings the earlier one
            order = self.goodness().reshape(self.left.shape).argsort(dim=1, descending=True, stable=True)
            best = order[:, :n]
            if not self._is_loose[(best + first).flatten()].any():
                break
            rows = (order[:, :n_asked] + first).flatten()
            asked = rows[self._is_loose[rows].any(1)]
            n_asked += n_asked - n + 1  # those that come next too, ever more: a pass of few rows takes almost as long
            begun = self._is_loose[asked]
            exact = self._scored(prompts, asked, part="rest", begun=begun).accuracy
            self._scores.accuracy[asked] = torch.where(begun, exact, self._scores.accuracy[asked])
            self._is_loose[asked] = False
        best = best.sort(1).values
        rows = (best + first).flatten()
        self.left, self._is_loose = self.left.gather(1, best), self._is_loose[rows]
        self._scores = self._scores.chosen(rows.tolist())


def name_vectors(
    vectors: "InstructionVector | Sequence[InstructionVector] | Mapping[str, InstructionVector]",
) -> dict[str, InstructionVector]:
    """The vectors in a dict by name; without names given, by the names of their tasks.

    Raises:
        ValueError: no vector, or two of one name.
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
    """The mean over prompts of each metric, for every intervention."""
    return {metric: getattr(scores, metric).mean(1).tolist() for metric in METRICS}
