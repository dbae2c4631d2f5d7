"""How terms of guidance run the model: before the first step as the frozen model, in training as the student."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ivlens.forward.hooks import Site
from ivlens.tuning.training.data import TrainingSet, answer_logits, evaluating, last_column
from ivlens.tuning.training.losses import Totals
from ivlens.tuning.training.options import TuneOptions
from ivlens.tuning.training.sites import Sites

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Shift:
    """A vector that is added to the residual stream at the last token of prompts.

    Attributes:
        layer: The layer where the vector is added.
        site: The place in that layer.
        delta: One vector for all prompts, or one vector for each prompt.
    """

    layer: int
    site: Site
    delta: Float[Tensor, " d_model"] | Float[Tensor, "n d_model"]

    def rows(self, index: Int[Tensor, " rows"]) -> "Shift":
        """The shift of some of the prompts."""
        return self if self.delta.ndim == 1 else replace(self, delta=self.delta[index])


@dataclass(frozen=True, eq=False)
class Answer:
    """The outputs of a model for some prompts.

    Attributes:
        logits: Logits at the positions that predict the answers.
        z: By layer, the outputs of all its heads at the last prompt token, for the layers that were asked for.
        stream: By layer, the residual stream after it at the last prompt token, for the layers that were asked for.
    """

    logits: Float[Tensor, "rows answer_len d_vocab"]
    z: Mapping[int, Float[Tensor, "rows n_heads d_head"]]
    stream: Mapping[int, Float[Tensor, "rows d_model"]]

    def rows(self, index: Bool[Tensor, " rows"]) -> "Answer":
        """The outputs for some of the prompts."""
        z, stream = ({layer: each[index] for layer, each in kept.items()} for kept in (self.z, self.stream))
        return Answer(self.logits[index], z, stream)


@dataclass(frozen=True, eq=False)
class InTraining:
    """The model in training. Before the first step it is the frozen model, which terms compare the student with.

    Attributes:
        plain: The Hugging Face model, with its adapters.
        own: The task's own examples that the steps read; guidance acts on no others.
        shift: The vector that the terms of one guidance share, and its place; None where they have no vector.
        seed: Seed of the term's draws, which also depend on the number of the step.
    """

    plain: nn.Module
    sites: Sites
    options: TuneOptions
    own: TrainingSet
    shift: Shift | None = None
    seed: int = 0

    def answer(
        self,
        prompts: TrainingSet,
        stack: ExitStack,
        *,
        shift: Shift | None = None,
        layers: Sequence[int] = (),
        streams: Sequence[int] = (),
    ) -> Answer:
        """Run the model on these prompts, with gradients.

        The hooks stay until `stack` is closed. Close it only after the backward pass: gradient checkpointing runs the
        blocks again there, and they need the same hooks.
        """
        column = last_column(prompts)
        if shift is not None:
            stack.enter_context(self.sites.shifted(self.plain, shift.layer, shift.site, column, shift.delta))
        # dictionaries that the pass below fills
        z = stack.enter_context(self.sites.head_outputs(self.plain, layers, column))
        stream = stack.enter_context(self.sites.streams(self.plain, streams, column))
        with self.options.autocast(prompts.tokens.device):
            return Answer(answer_logits(self.plain, prompts), z, stream)

    def ask(
        self,
        prompts: TrainingSet,
        read: Callable[[Answer], T],
        *,
        shift: Shift | None = None,
        layers: Sequence[int] = (),
        streams: Sequence[int] = (),
        batch_size: int = 32,
    ) -> list[T]:
        """Run the model on a few prompts at a time, without gradients or dropout; return `read(answer)` of each pass.

        `read` takes what is needed from the answer, so the logits of all prompts are never in memory together.
        """
        found: list[T] = []
        with torch.no_grad(), evaluating(self.plain):
            for index, rows in prompts.portions(batch_size):
                with ExitStack() as stack:
                    moved = None if shift is None else shift.rows(index)
                    found.append(read(self.answer(rows, stack, shift=moved, layers=layers, streams=streams)))
        return found


@dataclass(frozen=True, eq=False)
class Student:
    """The outputs of the model in training for the task's own examples in one pass.

    Attributes:
        answer: The logits, and the outputs of the heads that terms read.
        answers: The right answers, padded with -100.
        index: The numbers of these examples among those that the frozen model was asked about (`InTraining.own`).
        totals: The counts by which sums are divided, over all examples of the step.
    """

    answer: Answer
    answers: Int[Tensor, "rows answer_len"]
    index: Int[Tensor, " rows"]
    totals: Totals
