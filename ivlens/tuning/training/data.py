"""Training examples: prompts that all end in the same column, and the answers that are to be learned."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ivlens.common.progress import ticking
from ivlens.forward.asking import Room, refuse_all, rows_that_fit, without_long
from ivlens.forward.inputs import check_answers, check_length, check_prompts, forced
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.build import sampled_prompts
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.task import Task, TaskExample

TRAINED = Room("answer", 1)  # the end-of-text token follows the answer
_MOST_IN_VAIN = 100  # batches in a row of which no prompt fits
IGNORED = -100  # where an answer is over: the label that torch's cross entropy leaves out


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Prompts and answers of training examples.

    Attributes:
        tokens: Prompts, padded on the left, so that all end in the last column.
        attention_mask: 1 for tokens of prompts, 0 for padding.
        answers: Answers with the end-of-text token, padded on the right with -100.
    """

    tokens: Int[Tensor, "n pos"]
    attention_mask: Int[Tensor, "n pos"]
    answers: Int[Tensor, "n answer_len"]

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Int[Tensor, " rows"] | slice) -> "TrainingSet":
        """Some of the examples."""
        return TrainingSet(self.tokens[index], self.attention_mask[index], self.answers[index])

    def to(self, device: torch.device) -> "TrainingSet":
        """These examples on another device."""
        return TrainingSet(self.tokens.to(device), self.attention_mask.to(device), self.answers.to(device))

    def portions(self, size: int) -> Iterator[tuple[Int[Tensor, " rows"], "TrainingSet"]]:
        """Yield all examples in order, `size` at a time, with their numbers."""
        for index in ticking(torch.arange(len(self), device=self.tokens.device).split(size), "examples", "pass"):
            yield index, self.rows(index)

    @classmethod
    def joined(cls, parts: "Sequence[TrainingSet]") -> "TrainingSet":
        """All examples of several sets in one, padded to the same width."""
        pos, answer_len = (max(part.tokens.shape[1] for part in parts), max(part.answers.shape[1] for part in parts))
        return cls(
            torch.cat([_wider(part.tokens, pos, 0, left=True) for part in parts]),
            torch.cat([_wider(part.attention_mask, pos, 0, left=True) for part in parts]),
            torch.cat([_wider(part.answers, answer_len, IGNORED, left=False) for part in parts]),
        )


def training_set(
    model: TransformerBridge,
    task: Task,
    examples: Sequence[TaskExample],
    *,
    recipe: PromptRecipe | None = None,
    n_samples: int | None = None,
    seed: int = 0,
) -> TrainingSet:
    """Prompts of `task`, each with an instruction or demonstrations drawn for it and the first accepted answer.

    Args:
        recipe: How prompts are made; its seed divides the splits. None: the task's instruction, or demonstrations
            where it has none.
        n_samples: Number of prompts. More prompts than examples: examples are repeated with other instructions. None:
            one prompt for each example.
        seed: Draws the instruction and the demonstrations of each prompt.

    Raises:
        ValueError: no examples, too few demonstrations, or no prompt that fits the model's context; the log counts
            prompts that do not fit.
    """
    n_samples = len(examples) if n_samples is None else n_samples
    if n_samples < 1 or not examples:
        raise ValueError(f"task {task.name!r}: {n_samples} samples of {len(examples)} examples, expected 1 or more.")

    def some(pool: Sequence[TaskExample], n: int, number: int) -> PromptBatch:
        given = recipe or PromptRecipe()
        # a seed for each batch: the same one would draw the same instructions again
        return sampled_prompts(model.tokenizer, task, pool, given, n=n, seed=seed * 1_000_003 + number)

    first = some(examples, n_samples, 0)
    if n_samples < len(examples) and len(rows_that_fit(model, first, TRAINED)) < len(first):
        first = some(examples, len(examples), 0)  # so that others take the place of those that are too long
    if not (rows := rows_that_fit(model, first, TRAINED)):
        refuse_all(model, first, task, recipe or PromptRecipe(), TRAINED)
    first = without_long(model, first, task, rows).rows(slice(n_samples))
    # Examples whose answer the tokenizer cannot write, or whose prompt is too long, are not in the batch. Where each
    # example was wanted once, the others are all there is; otherwise they are drawn again until there are enough.
    n_samples = min(n_samples, len(first)) if n_samples == len(examples) else n_samples
    batches, n_drawn, n_in_vain = [first], 0, 0
    while (missing := n_samples - sum(map(len, batches))) > 0 and n_in_vain < _MOST_IN_VAIN:
        n_drawn += 1
        again = some(first.examples, missing, n_drawn)
        rows = rows_that_fit(model, again, TRAINED)  # with other demonstrations, a prompt may be too long now
        n_in_vain = 0 if rows else n_in_vain + 1
        batches += [again.rows(rows)] if rows else []
    return TrainingSet.joined([as_training_set(model, batch) for batch in batches])


def as_training_set(model: TransformerBridge, batch: PromptBatch) -> TrainingSet:
    """The prompts of a batch, each with its first accepted answer and the end-of-text token.

    Raises:
        ValueError: a prompt that with its answer does not fit the model's context.
    """
    tokens, mask = check_prompts(model, batch.tokens, batch.attention_mask)
    answers = check_answers(model, batch.answer_tokens, len(batch))
    end = model.tokenizer.eos_token_id
    if end is not None:
        answers = torch.cat([answers, answers.new_full((len(answers), 1), IGNORED)], 1)
        answers[torch.arange(len(answers)), (answers != IGNORED).sum(1)] = end
    check_length(model, mask, answers.shape[1])
    return TrainingSet(tokens, mask, answers)


def answer_logits(plain: nn.Module, data: TrainingSet) -> Float[Tensor, "n answer_len d_vocab"]:
    """Teacher-forced logits of a plain Hugging Face model at the positions that predict the answers; with gradients."""
    inputs = forced(data.tokens, data.attention_mask, data.answers)
    options: dict[str, Any] = {}
    if "position_ids" in inspect.signature(base_model(plain).forward).parameters:
        # without them some families (GPT-2) count padding on the left as positions
        options["position_ids"] = (inputs.attention_mask.cumsum(1) - 1).clamp(min=0)
    # logits of the prompt's other positions are never made: with a large vocabulary they take most of the memory
    given = {"attention_mask": inputs.attention_mask, "use_cache": False, "logits_to_keep": inputs.n_answer}
    return cast(Any, plain)(input_ids=inputs.tokens, **given, **options).logits


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run the body with the model in eval mode, without dropout, and put the mode back afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def base_model(plain: nn.Module) -> Any:
    """The Hugging Face model inside a peft wrapper, or the model itself."""
    wrapper: Any = plain
    return wrapper.get_base_model() if hasattr(plain, "get_base_model") else plain


def last_column(data: TrainingSet) -> int:
    """The column of the model's input in which the last prompt token of every example stands."""
    return data.tokens.shape[1] - 1


def _wider(tensor: Tensor, width: int, fill: int, *, left: bool) -> Tensor:
    """Rows padded with `fill` to this width, on the left or on the right."""
    missing = width - tensor.shape[1]
    return nn.functional.pad(tensor, (missing, 0) if left else (0, missing), value=fill)
