"""`TuneOptions`: how a task is trained."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch

from ivlens.common.arguments import checked
from ivlens.common.checks import check_count, check_counts

Decay = Literal["linear", "cosine", "constant"]
Precision = Literal["float32", "bfloat16"]

_COUNTS = ("steps", "accumulate", "save_every", "judge_every", "n_prompts", "patience")
_MOST_PROMPTS = 10_000_000  # more would fill the memory before training starts: surely a typing error
# bounds that a value must lie between without reaching them; -1e-300 lets 0 through
_RANGES = {
    "lr": (0.0, math.inf),
    "max_grad_norm": (0.0, math.inf),
    "warmup": (-1e-300, 1.0),
    "weight_decay": (-1e-300, math.inf),
}


@checked
@dataclass(frozen=True)
class TuneOptions:
    """How a task is trained.

    Attributes:
        lr: Learning rate after warm-up.
        steps: Number of optimiser steps.
        batch_size: Examples in a step.
        accumulate: Passes into which the examples of a step are divided, to save memory. With several processes, each
            makes so many passes.
        decay: How the learning rate falls to 0 after warm-up, or `constant`.
        warmup: Share of the steps, at the start, in which the learning rate rises.
        weight_decay: Weight decay of AdamW.
        max_grad_norm: Larger gradients are scaled down to this norm.
        precision: `bfloat16`: passes are computed in bfloat16 (autocast), and weights keep their dtype. `float32`:
            passes are computed in the dtype of the weights.
        gradient_checkpointing: Save memory by computing activations a second time in the backward pass.
        save_every: Steps between two saved states, where a folder is given.
        judge_every: Steps between two judgements, where there is a judge.
        patience: The training ends after so many judgements that are not better than the best one, and keeps the
            weights of the best one (of equal ones, the first). None: all steps are made, and the last weights kept.
            Judgements are compared by their score `merit`, or by `new` where the judge gives no `merit`. A judge gives
            a `merit` below 0 while the model has not learned enough: such judgements do not use up patience.
        n_samples: Training prompts, each with an instruction (or demonstrations) drawn for it; None: one for every
            input. A `Learner` gets finished prompts and does not read this option.
        n_prompts: Prompts of each task in every judgement that `finetune` makes.
        seed: Seed of everything that a training draws: weights of new adapters, samples, their order. The splits
            depend on the recipe's seed instead.
    """

    lr: float = 1e-4
    steps: int = 200
    batch_size: int = 16
    accumulate: int = 1
    decay: Decay = "linear"
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: Precision = "float32"
    gradient_checkpointing: bool = False
    save_every: int = 50
    judge_every: int = 20
    patience: int | None = None
    n_samples: int | None = None
    n_prompts: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, **dict.fromkeys(_COUNTS, 1))
        for name in ("batch_size", "n_samples"):
            check_count(name, getattr(self, name), 1, _MOST_PROMPTS)
        for name, (above, below) in _RANGES.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not above < value < below:
                raise ValueError(f"{name} is {value!r}, expected a finite number {_range_in_words(above, below)}.")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of accumulate {self.accumulate}, expected parts of one "
                "size; change one of them."
            )
        for name, known in (("decay", get_args(Decay)), ("precision", get_args(Precision))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}.")

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The context for every forward pass of the training, the frozen model's passes included."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def kept(self) -> dict[str, Any]:
        """The options that a training must share with a saved state to go on from it.

        `n_samples` and `seed` are left out, since a state knows the data and the seed themselves; `n_prompts` is left
        out, since only judgements use it.
        """
        values = asdict(self)
        values["n_steps"] = values.pop("steps")  # under the name that states of earlier versions use
        return {name: value for name, value in values.items() if name not in ("n_samples", "n_prompts", "seed")}

    def rate(self, step: int) -> float:
        """The learning rate of one step; steps are counted from 0."""
        n_warm = math.ceil(self.warmup * self.steps)
        if step < n_warm:
            return self.lr * (step + 1) / n_warm  # + 1: a first step at rate 0 would teach nothing
        progress = (step - n_warm) / max(1, self.steps - n_warm)
        falls = {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2, "constant": 1.0}
        return self.lr * falls[self.decay]


def _range_in_words(above: float, below: float) -> str:
    least = "above 0" if above == 0 else "of at least 0"
    return least if below == math.inf else f"{least} and below {below:g}"
