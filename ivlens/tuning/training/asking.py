"""The model in training, and how it is asked: by every term in the same way, as the frozen model and as the student."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ivlens.forward.hooks import Site
from ivlens.tuning.training.data import TrainingSet, answer_logits, evaluating, last_column
from ivlens.tuning.training.losses import Totals
from ivlens.tuning.training.options import TuneOptions
from ivlens.tuning.training.sites import Sites

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Shift:
    """What is added to the stream at the last token of prompts: one vector for all of them, or one for each."""

    layer: int
    site: Site
    delta: Float[Tensor, " d_model"] | Float[Tensor, "n d_model"]

    def rows(self, index: Int[Tensor, " rows"]) -> "Shift":
        """What is added to some of the prompts."""
        return self if self.delta.ndim == 1 else replace(self, delta=self.delta[index])


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model gave for some prompts.

    Attributes:
        logits: At the positions that predict the answers.
        z: Outputs of all heads of the layers that were asked for, at the last prompt token.
    """

    logits: Float[Tensor, "rows answer_len d_vocab"]
    z: Mapping[int, Float[Tensor, "rows n_heads d_head"]]


@dataclass(frozen=True, eq=False)
class InTraining:
    """The model in training; before the first step it is the frozen model that terms hold on to.

    Attributes:
        plain: The Hugging Face model, with its adapters.
        own: The task's own examples; guidance acts on no others.
        shift: The vector that the terms of one guidance share, and its place; None where they have none.
        seed: What the draws of a term depend on, beside the step.
    """

    plain: nn.Module
    sites: Sites
    options: TuneOptions
    own: TrainingSet
    shift: Shift | None = None
    seed: int = 0

    def answer(
        self, prompts: TrainingSet, stack: ExitStack, *, shift: Shift | None = None, layers: Sequence[int] = ()
    ) -> Answer:
        """Run it on these prompts, with gradients.

        Hooks stay until `stack` is closed, which must be after backward: checkpointed blocks are run again there.
        """
        column = last_column(prompts)
        if shift is not None:
            stack.enter_context(self.sites.shifted(self.plain, shift.layer, shift.site, column, shift.delta))
        z = stack.enter_context(self.sites.head_outputs(self.plain, layers, column))
        with self.options.autocast(prompts.tokens.device):
            return Answer(answer_logits(self.plain, prompts), z)

    def ask(
        self,
        prompts: TrainingSet,
        read: Callable[[Answer], T],
        *,
        shift: Shift | None = None,
        layers: Sequence[int] = (),
        batch_size: int = 32,
    ) -> list[T]:
        """What `read` takes from its answers to these prompts, a few prompts at a time; no gradients, no dropout."""
        found: list[T] = []
        with torch.no_grad(), evaluating(self.plain):
            for index, rows in prompts.portions(batch_size):
                with ExitStack() as stack:
                    moved = None if shift is None else shift.rows(index)
                    found.append(read(self.answer(rows, stack, shift=moved, layers=layers)))
        return found


@dataclass(frozen=True, eq=False)
class Student:
    """What the model in training gave for the task's own examples in one pass.

    Attributes:
        answer: Its logits, and the outputs of the heads that terms read.
        answers: The right answers, padded with -100.
        index: Which of the task's own examples they are.
        totals: What means are taken over: the whole step's examples.
    """

    answer: Answer
    answers: Int[Tensor, "rows answer_len"]
    index: Int[Tensor, " rows"]
    totals: Totals
