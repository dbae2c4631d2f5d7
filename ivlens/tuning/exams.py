"""Accuracy of a model in training on several tasks, fast enough to be measured every few steps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ivlens.forward.asking import Room, prompts_for
from ivlens.forward.borders import Borders
from ivlens.forward.scoring import Correct, judged_rows
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.task import Task, TaskExample
from ivlens.tuning.training.data import IGNORED, TrainingSet, answer_logits, as_training_set


@dataclass(frozen=True, eq=False)
class Exam:
    """Prompts of several tasks, with one row for each accepted answer of each prompt.

    Attributes:
        data: Prompts and answers. After every answer there is at least one column for the token that follows it.
        question: For each row, the number of its prompt.
        task: For each prompt, the number of its task in `names`.
        names: Names of the tasks.
        is_full: Whether a row's prompt and answer fill the model's context, so that no token can follow.
        borders: Which tokens of the model's tokenizer end or continue a word.
    """

    data: TrainingSet
    question: Int[Tensor, " rows"]
    task: Int[Tensor, " questions"]
    names: tuple[str, ...]
    is_full: Bool[Tensor, " rows"]
    borders: Borders

    def sit(self, plain: nn.Module, *, exact: bool = False, batch_size: int = 128) -> dict[str, float]:
        """Accuracy on each task by greedy decoding; with `exact`, the share of answers after which the text ends too.

        See docs/method.md, section 3 Scores and accuracy.
        """
        found = self.answered(plain, batch_size=batch_size)
        right = (found.exact if exact else found.accuracy).double().cpu()
        return {name: float(right[self.task == number].mean()) for number, name in enumerate(self.names)}

    def answered(self, plain: nn.Module, *, batch_size: int = 128) -> Correct:
        """For each prompt, whether greedy decoding begins with an accepted answer, and whether it also ends there."""
        right = Correct(*torch.zeros((2, len(self.task)), dtype=torch.bool, device=self.data.tokens.device))
        with torch.no_grad():
            for index, rows in self.data.portions(batch_size):
                logits = answer_logits(plain, rows)
                found = judged_rows(logits, rows.answers[:, :-1], self.is_full[index], self.borders)
                for kept, hits in zip(right, found, strict=True):
                    # a prompt is right if any of its rows is
                    kept[self.question[index][hits]] = True
        return right


def make_exam(
    model: TransformerBridge,
    questions: Iterable[tuple[Task, Sequence[TaskExample]]],
    *,
    recipe: PromptRecipe | Mapping[str, PromptRecipe] | None = None,
    n_prompts: int | None = None,
    seed: int = 0,
) -> Exam:
    """An exam of several tasks, with prompts made from the given examples of each task.

    Args:
        questions: Pairs of a task and the examples to ask about.
        recipe: How prompts are made, for all tasks or by the name of each; None: a task's instruction, or
            demonstrations where it has none.
        n_prompts: At most so many prompts of each task, drawn with the seed; None: all.

    Raises:
        ValueError: a prompt that does not fit the model, or too few demonstrations.
    """
    parts, owners, numbers, names = [], [], [], []
    for number, (task, listed) in enumerate(questions):
        examples = list(listed)
        # by the task's name: which prompts are drawn does not depend on the other tasks of the exam
        Random(f"{seed}\0{task.name}\0exam").shuffle(examples)
        asked = recipe[task.name] if isinstance(recipe, Mapping) else recipe
        # one token more than the answers: the examples of a training end in the end-of-text token
        batch = prompts_for(model, task, examples, asked or PromptRecipe(), n=n_prompts, room=Room(more=1))
        rows, prompt_of_row = batch.expanded()  # a row for each accepted answer
        parts.append(as_training_set(model, rows))
        owners.append(prompt_of_row + len(numbers))
        numbers += [number] * len(batch)
        names.append(task.name)
    data = _open_ended(TrainingSet.joined(parts), model.tokenizer.eos_token_id)
    # the token after an answer decides whether its last word goes on; where the context is full there is none
    is_full = data.attention_mask.sum(1) + (data.answers != IGNORED).sum(1) >= model.cfg.n_ctx
    question = torch.cat(owners).to(data.tokens.device)
    return Exam(data, question, torch.tensor(numbers), tuple(names), is_full, Borders(model.tokenizer))


def _open_ended(data: TrainingSet, end: int | None) -> TrainingSet:
    """These examples with a free column after each answer, in place of the end-of-text token of training examples."""
    if end is None:
        return replace(data, answers=nn.functional.pad(data.answers, (0, 1), value=IGNORED))
    last = (data.answers != IGNORED).sum(1, keepdim=True) - 1
    return replace(data, answers=data.answers.scatter(1, last, IGNORED))


def mean_score(scores: Mapping[str, float]) -> float:
    """Mean score over tasks; every task counts the same."""
    return sum(scores.values()) / len(scores)
