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
_MOST_PROMPTS = 10_000_000
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
        steps: Optimiser steps.
        batch_size: Examples in a step; with `accumulate`, in that many passes.
        accumulate: Passes for each step; of several processes, in each of them.
        decay: How the learning rate falls to 0 after warm-up, or `constant`.
        warmup: Share of the steps in which it rises.
        weight_decay: Of AdamW.
        max_grad_norm: Gradients are scaled down to this norm.
        precision: `bfloat16` computes in it (autocast) and keeps weights as they are; `float32`: as they are.
        gradient_checkpointing: Compute activations twice rather than keep them.
        save_every: Steps between two states on disk, where a folder is given.
        judge_every: Steps between two judgements, where there is a judge.
        patience: Judgements in a row that are not better than the best one, after which the training ends; the
            weights of the best judgement, the first if there are several, are kept. They are compared by `merit` where
            the judge gives one, else by `new`; one whose `merit` is below 0 does not count as one of them. None: all
            steps are made, and the last weights kept.
        n_samples: Training prompts, with an instruction (or demonstrations) drawn for each; None: one for every input.
            A `Learner`, which is given its prompts, does not read it.
        n_prompts: Prompts of each task in every judgement that `finetune` makes.
        seed: Of new adapters, of samples and their order, of everything else that a training draws. Splits are those
            of the recipe's seed.
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
        for name in ("batch_size", "n_samples"):  # so many prompts are made, and held
            check_count(name, getattr(self, name), 1, _MOST_PROMPTS)
        for name, (above, below) in _RANGES.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not above < value < below:
                raise ValueError(f"{name} is {value!r}, expected a finite number {_said(above, below)}.")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of accumulate {self.accumulate}, expected parts of one "
                "size; change one of them."
            )
        for name, known in (("decay", get_args(Decay)), ("precision", get_args(Precision))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}.")

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """What every forward pass of the training runs in, the teacher's too."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def kept(self) -> dict[str, Any]:
        """As states on disk have them: samples and seed stand there as what they came to, and `steps` was `n_steps`."""
        values = asdict(self)
        values["n_steps"] = values.pop("steps")
        return {name: value for name, value in values.items() if name not in ("n_samples", "n_prompts", "seed")}

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        n_warm = math.ceil(self.warmup * self.steps)
        if step < n_warm:
            return self.lr * (step + 1) / n_warm
        progress = (step - n_warm) / max(1, self.steps - n_warm)
        falls = {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2, "constant": 1.0}
        return self.lr * falls[self.decay]


def _said(above: float, below: float) -> str:
    least = "above 0" if above == 0 else "of at least 0"
    return least if below == math.inf else f"{least} and below {below:g}"
