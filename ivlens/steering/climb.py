"""The training of a vector: short climbs that choose its layer and its largest length, and the long one."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.common.arguments import checked
from ivlens.common.checks import check_counts
from ivlens.common.progress import bar
from ivlens.forward.hooks import Site, check_layers, check_site
from ivlens.forward.sharing import rest
from ivlens.models.attention import attention_layers
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.prompts.corruptions import Corruption
from ivlens.steering.ascent import Ascent
from ivlens.steering.search import tried_layers
from ivlens.steering.summary import Scores, Setting
from ivlens.steering.trials import Trials

MOST_LAYERS = 6  # layers that are tried where none are named
_SHARE_LEFT = 3  # of the layers that were compared, one in so many goes on
_LAST_RATE = 0.1  # the rate of the last step, as a share of the first one's


@checked
@dataclass(frozen=True)
class TrainedOptions:
    """How a vector is trained.

    Attributes:
        layers: The layers that are tried. None: six of those that a search tries (see `Grid`), evenly spaced.
        norms: The largest lengths that are tried, in units of the mean length of the residual stream after the layer.
        site: The place in a block where the vector is added, `resid_post` or `attn_out`.
        steps: The largest number of steps of the vector that wins, its steps in the search included.
        search_steps: The number of steps after which layers, and then lengths, are compared.
        batch_size: Prompts in a step, about.
        rate: The length of the first step, in the unit of `norms`; it falls to a tenth on the way to the last one.
        judge_every: The vector is judged on *select* after so many steps.
        patience: The training ends after so many judgements in a row without a better one.
        n_fit: The largest number of prompts to train on; None: the whole split.
        n_select: The largest number of prompts to judge on; None: the whole split.
        corruption: What the prompts lack. `drop`: instruction and demonstrations; None: nothing.
        permuted: Whether answers are permuted among the inputs of each split. That is the control; all else is equal.
        seed: Draws the prompts, their order and the permutation. The splits are those of the recipe's seed.
        progress: Whether to show a bar.
    """

    layers: Sequence[int] | None = None
    norms: Sequence[float | int] = (0.5, 1.0, 2.0)
    site: Site = "resid_post"
    steps: int = 120
    search_steps: int = 10
    batch_size: int = 16
    rate: float = 0.1
    judge_every: int = 10
    patience: int = 4
    n_fit: int | None = None
    n_select: int | None = None
    corruption: Corruption | None = "drop"
    permuted: bool = False
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        counts = ("steps", "search_steps", "batch_size", "judge_every", "patience", "n_fit", "n_select")
        check_counts(self, **dict.fromkeys(counts, 1))
        check_site(self.site)
        for name in ("layers", "norms"):  # plain tuples, which vectors record as JSON
            if (numbers := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(numbers))
                if not numbers:
                    raise ValueError(f"{name} is empty, expected at least one number.")
        for name, values in (("norms", self.norms), ("rate", [self.rate])):
            if not all(0 < value < math.inf for value in values):
                raise ValueError(f"{name} is {getattr(self, name)!r:.60}, expected finite numbers above 0.")

    def tried(self, model: TransformerBridge) -> list[int]:
        """The layers that are tried, in ascending order.

        Raises:
            ValueError: a layer that the model does not have.
        """
        if self.layers is not None:
            return sorted(set(check_layers(model, self.layers)))
        every = tried_layers(check_model(model).cfg.n_layers)
        if self.site == "attn_out":
            every = [layer for layer in every if layer in attention_layers(model)] or list(attention_layers(model))
        places = torch.linspace(0, len(every) - 1, min(MOST_LAYERS, len(every)))
        return [every[place] for place in places.round().int().tolist()]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A vector as it was judged: the vector, its setting, and its row of the curve."""

    theta: Float[Tensor, " d_model"]
    setting: Setting
    row: Mapping[str, Any]

    @property
    def goodness(self) -> tuple[float, float]:
        """Accuracy on *select*, then log-probability; the lowest one where a pass overflowed."""
        logprob = self.row["logprob"]
        return self.row["accuracy"], logprob if math.isfinite(logprob) else -math.inf


class Climb:
    """One search of layer and length, and the training of the vector that is left.

    Args:
        lesson: The *fit* prompts, each with the one answer that is trained.
        select: The prompts on which vectors are judged.
        layers: The layers that are tried, in ascending order.
        options: How the vector is trained.

    Attributes:
        found: Every candidate that was judged, in order.
        bare: Accuracy and log-probability of the judged prompts without a vector.
    """

    def __init__(self, lesson: Trials, select: Trials, layers: Sequence[int], options: TrainedOptions) -> None:
        self._lesson, self._select, self._options = lesson, select, options
        self._norms = sorted(set(options.norms))
        self._units = lesson.streams().float().norm(dim=2).mean(1).cpu()
        settings = [Setting(layer, 1.0, options.site) for layer in layers]
        self._ascent = Ascent(lesson, settings, self._units[list(layers)], self._norms[-1])
        self._batches = self._drawn()
        self._done, self._total = 0, 0
        self.found: list[Candidate] = []
        self.bare = _means(select.unsteered())

    def run(self) -> Candidate:
        """The best candidate of all judgements, once search and training are over.

        Raises:
            ValueError: no vector gives the answers a finite log-probability.
        """
        options, counts = self._options, [len(self._ascent.settings)]
        while counts[-1] > 1:
            counts.append(-(-counts[-1] // _SHARE_LEFT))
        rounds = [*counts[:-1], *([len(self._norms)] if len(self._norms) > 1 else [])]
        self._total = options.search_steps * (sum(rounds) - len(rounds)) + options.steps
        with bar("training a vector", self._total, "steps") as self._report:
            for n_left in counts[1:]:
                self._round(n_left)
            if len(self._norms) > 1:
                self._ascent.branch(self._norms)
                self._round(1)
            self._finish()
        return self._best()

    def _best(self) -> Candidate:
        return max(self.found, key=lambda one: one.goodness)

    def _round(self, n_left: int) -> None:
        """A short climb, after which only the best candidates go on."""
        judged = self._climbed(self._options.search_steps)
        order = sorted(range(len(judged)), key=lambda number: judged[number].goodness, reverse=True)
        self._ascent.keep(order[:n_left])

    def _finish(self) -> None:
        """Train the last candidate until its steps are over, or until nothing gets better."""
        waited = 0
        while self._ascent.n_steps < self._options.steps and waited < self._options.patience:
            before = self._best().goodness if self.found else (-math.inf, -math.inf)
            (now,) = self._climbed(self._options.judge_every)
            waited = 0 if now.goodness > before else waited + 1

    def _climbed(self, n_steps: int) -> list[Candidate]:
        """The candidates that are left after so many more steps, judged."""
        options, ascent, values = self._options, self._ascent, []
        for _ in range(min(n_steps, options.steps - ascent.n_steps)):
            part_done = ascent.n_steps / options.steps
            values.append(ascent.step(next(self._batches), options.rate * (1 - (1 - _LAST_RATE) * part_done)))
            if not bool(values[-1].isfinite().any()):
                raise ValueError(
                    f"model {self._lesson.model.cfg.model_name!r} gives the answers log-probabilities that are not "
                    "finite, expected numbers; use a smaller rate or smaller norms, or load it with dtype='float32'."
                )
            self._done += len(ascent.settings)
            self._report(self._done, self._total)
            rest(self._lesson.model)
        losses = -torch.stack(values).mean(0) if values else torch.full((len(ascent.settings),), math.nan)
        scores = self._select.at(ascent.settings, ascent.thetas)
        judged = []
        for number, (setting, theta) in enumerate(zip(ascent.settings, ascent.thetas, strict=True)):
            row = {
                "step": ascent.n_steps,
                "layer": setting.layer,
                "norm": float(ascent.norms[number]),
                "length": float(ascent.lengths[number]),
                "loss": float(losses[number]),
                **_means(scores.chosen([number])),
            }
            judged.append(Candidate(theta, setting, row))
        self.found += judged
        return judged

    def _drawn(self) -> Iterator[Int[Tensor, " some"]]:
        """The numbers of each step's prompts: all prompts in a random order, and again in another one."""
        lesson, generator = self._lesson, torch.Generator().manual_seed(self._options.seed)
        while True:
            # one portion after the other: only one of them is in memory
            for portion in torch.randperm(lesson.n_portions, generator=generator).tolist():
                prompts = lesson.prompts_of(portion)
                order = prompts[torch.randperm(len(prompts), generator=generator)]
                # parts of almost one size: a small rest of its own would be a step as large as the others
                yield from order.tensor_split(max(1, round(len(order) / self._options.batch_size)))


def _means(scores: Scores) -> dict[str, float]:
    """Mean accuracy, and mean log-probability of the answers (nats)."""
    return {name: float(getattr(scores, name).mean()) for name in ("accuracy", "logprob")}
