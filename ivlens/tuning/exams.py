"""How many prompts of a task a model in training answers right, fast enough to be asked every few steps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ivlens.forward.scoring import greedy_match
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.build import build_prompts
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.task import Task, TaskExample
from ivlens.tuning.data import TrainingSet, answer_logits, as_training_set


@dataclass(frozen=True, eq=False)
class Exam:
    """Prompts of several tasks with all their accepted answers, one row for each.

    Attributes:
        data: prompts and answers, each ended by the end-of-text token: an answer with more behind it is wrong.
        question: the prompt that each row belongs to.
        task: number of each prompt's task in `names`.
        names: the tasks.
    """

    data: TrainingSet
    question: Int[Tensor, " rows"]
    task: Int[Tensor, " questions"]
    names: tuple[str, ...]

    def sit(self, plain: nn.Module, *, batch_size: int = 128) -> dict[str, float]:
        """Share of right answers for each task, by greedy decoding."""
        right = self.answered(plain, batch_size=batch_size).double().cpu()
        return {name: float(right[self.task == number].mean()) for number, name in enumerate(self.names)}

    def answered(self, plain: nn.Module, *, batch_size: int = 128) -> Bool[Tensor, " questions"]:
        """Whether greedy decoding writes one of the accepted answers and ends there."""
        right = torch.zeros(len(self.task), dtype=torch.bool, device=self.data.tokens.device)
        with torch.no_grad():
            for index, rows in self.data.portions(batch_size):
                hits = greedy_match(answer_logits(plain, rows), rows.answers)
                right[self.question[index][hits]] = True
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
        batch = build_prompts(model.tokenizer, task, examples[:n_prompts], asked)
        wide, source = batch.expanded()
        parts.append(as_training_set(model, wide))
        owners.append(source + len(numbers))
        numbers += [number] * len(batch)
        names.append(task.name)
    data = TrainingSet.joined(parts)
    return Exam(data, torch.cat(owners).to(data.tokens.device), torch.tensor(numbers), tuple(names))


def mean_score(scores: Mapping[str, float]) -> float:
    """Mean over tasks, each counting the same."""
    return sum(scores.values()) / len(scores)
