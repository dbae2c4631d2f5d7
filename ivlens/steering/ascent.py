"""Vectors that climb together: Adam on the log-probability of answers, each vector in a ball of its own."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.steering.summary import Setting
from ivlens.steering.trials import Trials

_BETAS = (0.9, 0.99)  # the second one below the usual 0.999: a climb takes a hundred steps
_TINY = 1e-12


class Ascent:
    """Vectors at several layers that climb on the same prompts. They begin at 0, and none influences another.

    Lengths are in units of the residual stream's mean length at the vector's layer, so that one rate suits all layers.

    Args:
        trials: The prompts, each with one accepted answer.
        settings: Where each vector is added, in ascending order of layers, all at one site and with strength 1.
        units: The mean length of the residual stream at each vector's layer.
        norm: The largest length of all vectors, in that unit.

    Attributes:
        settings: Where each vector that is left is added.
        norms: The largest length of each, in its unit.
        n_steps: The number of steps so far.
    """

    def __init__(self, trials: Trials, settings: Sequence[Setting], units: Float[Tensor, " n"], norm: float) -> None:
        self._trials, self.settings, self._units = trials, list(settings), units
        self.norms = torch.full((len(settings),), float(norm))
        self._at = torch.zeros(len(settings), trials.model.cfg.d_model)  # the vectors in their units
        self._mean, self._square = torch.zeros_like(self._at), torch.zeros_like(self._at)  # of the gradients so far
        self.n_steps = 0

    @property
    def thetas(self) -> Float[Tensor, "n d_model"]:
        """The vectors."""
        return self._at * self._units[:, None]

    @property
    def lengths(self) -> Float[Tensor, " n"]:
        """Their lengths, each in its unit."""
        return self._at.norm(dim=1)

    def step(self, prompts: Int[Tensor, " some"], rate: float) -> Float[Tensor, " n"]:
        """One step of Adam for every vector; a vector that leaves its ball is brought back to the surface.

        Args:
            prompts: The numbers of the prompts to climb on, all of one portion of the trials.
            rate: The step in each coordinate, times the square root of their number: the length of a first step.

        Returns:
            The mean log-probability of the prompts' answers (nats) before the step, for each vector.
        """
        values, slopes = self._trials.slopes(self.settings, self.thetas, prompts)
        # a vector whose passes overflow gets no step from them; the NaN among its log-probabilities says so
        slopes = (slopes * self._units[:, None] / len(prompts)).nan_to_num(0.0, 0.0, 0.0)
        self.n_steps += 1
        first, second = _BETAS
        self._mean = first * self._mean + (1 - first) * slopes
        self._square = second * self._square + (1 - second) * slopes.square()
        mean, square = self._mean / (1 - first**self.n_steps), self._square / (1 - second**self.n_steps)
        self._at = self._at + rate / self._at.shape[1] ** 0.5 * mean / (square.sqrt() + _TINY)
        self._to_balls()
        return values.mean(1)

    def keep(self, which: Sequence[int]) -> None:
        """Go on with some of the vectors, in ascending order."""
        rows = sorted(which)
        self.settings = [self.settings[row] for row in rows]
        self._units, self.norms, self._at = self._units[rows], self.norms[rows], self._at[rows]
        self._mean, self._square = self._mean[rows], self._square[rows]

    def branch(self, norms: Sequence[float | int]) -> None:
        """Go on with one copy of the only vector that is left for each of these largest lengths."""
        assert len(self.settings) == 1, "only one vector branches"
        self.keep([0] * len(norms))
        self.norms = torch.tensor(norms, dtype=self.norms.dtype)
        self._to_balls()

    def _to_balls(self) -> None:
        self._at = self._at * (self.norms / self.lengths.clamp_min(_TINY)).clamp(max=1.0)[:, None]
