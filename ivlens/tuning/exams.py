"""How many prompts of a task a model in training answers right, fast enough to be asked every few steps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ivlens.forward.asking import prompts_for
from ivlens.forward.borders import Borders
from ivlens.forward.scoring import Correct, judged_rows
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.task import Task, TaskExample
from ivlens.tuning.training.data import IGNORED, TrainingSet, answer_logits, as_training_set


@dataclass(frozen=True, eq=False)
class Exam:
    """Prompts of several tasks with all their accepted answers, one row for each.

    Attributes:
        data: prompts and answers; behind the longest answer, too, there is a column for the token that follows.
        question: the prompt that each row belongs to.
        task: number of each prompt's task in `names`.
        names: the tasks.
        is_full: rows whose prompt and answer fill the model's context.
        borders: of the model's tokenizer.
    """

    data: TrainingSet
    question: Int[Tensor, " rows"]
    task: Int[Tensor, " questions"]
    names: tuple[str, ...]
    is_full: Bool[Tensor, " rows"]
    borders: Borders

    def sit(self, plain: nn.Module, *, exact: bool = False, batch_size: int = 128) -> dict[str, float]:
        """Accuracy on each task, by greedy decoding; `exact`: the share of answers that end where they should."""
        found = self.answered(plain, batch_size=batch_size)
        right = (found.exact if exact else found.accuracy).double().cpu()
        return {name: float(right[self.task == number].mean()) for number, name in enumerate(self.names)}

    def answered(self, plain: nn.Module, *, batch_size: int = 128) -> Correct:
        """Which questions greedy decoding answers with one of the accepted answers, and where it ends with that."""
        right = Correct(*torch.zeros((2, len(self.task)), dtype=torch.bool, device=self.data.tokens.device))
        with torch.no_grad():
            for index, rows in self.data.portions(batch_size):
                logits = answer_logits(plain, rows)
                found = judged_rows(logits, rows.answers[:, :-1], self.is_full[index], self.borders)
                for kept, hits in zip(right, found, strict=True):
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
    """Prompts of every task that ask the examples beside it.

    Args:
        recipe: how prompts are made, of all tasks or by the name of each; None: a task's instruction, or
            demonstrations where it has none.
        n_prompts: at most so many of each task, drawn with the seed; None: all.

    Raises:
        ValueError: a prompt that does not fit the model, or too few demonstrations.
    """
    parts, owners, numbers, names = [], [], [], []
    for number, (task, listed) in enumerate(questions):
        examples = list(listed)
        Random(f"{seed}\0{task.name}\0exam").shuffle(examples)
        asked = recipe[task.name] if isinstance(recipe, Mapping) else recipe
        batch = prompts_for(model, task, examples[:n_prompts], asked or PromptRecipe())
        wide, source = batch.expanded()
        parts.append(as_training_set(model, wide))
        owners.append(source + len(numbers))
        numbers += [number] * len(batch)
        names.append(task.name)
    data = _open_ended(TrainingSet.joined(parts), model.tokenizer.eos_token_id)
    is_full = data.attention_mask.sum(1) + (data.answers != IGNORED).sum(1) >= model.cfg.n_ctx
    question = torch.cat(owners).to(data.tokens.device)
    return Exam(data, question, torch.tensor(numbers), tuple(names), is_full, Borders(model.tokenizer))


def _open_ended(data: TrainingSet, end: int | None) -> TrainingSet:
    """Answers without the end-of-text token that training ends them with: whatever follows them is looked at."""
    if end is None:
        return replace(data, answers=nn.functional.pad(data.answers, (0, 1), value=IGNORED))
    last = (data.answers != IGNORED).sum(1, keepdim=True) - 1
    return replace(data, answers=data.answers.scatter(1, last, IGNORED))


def mean_score(scores: Mapping[str, float]) -> float:
    """Mean over tasks, each counting the same."""
    return sum(scores.values()) / len(scores)
