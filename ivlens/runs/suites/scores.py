"""Score a model in training on a suite's tasks, each task by its own metric."""

from collections.abc import Sequence

import torch

from ivlens.forward.asking import Room, prompts_for
from ivlens.forward.completions import complete, first_line
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.recipe import PromptRecipe
from ivlens.runs.suites.suite import Suite, SuiteSplit, for_training, split_examples
from ivlens.tasks.task import Task, TaskExample
from ivlens.tuning.exams import Exam, make_exam
from ivlens.tuning.learner import Learner

_WRITTEN_AT_ONCE = 32  # prompts that are completed together


class Scorer:
    """Scores a model on the same prompts as often as it is asked.

    There are two ways. By tokens: one pass, without generation, tells whether greedy decoding gives exactly an answer
    (`exact`, see docs/method.md, 3 Scores and accuracy). By text: the model writes, and its text is scored by the
    task's metric. Tasks of the bank are scored by tokens, all others by text. On *select*, which is asked many times
    in a training, tasks with `suite_accuracy` are scored by tokens as well: that is faster, and the score is nearly the
    same. Rouge-L always needs the text.

    Args:
        n_prompts: At most so many prompts of each task.
        split: *test*, or *select* for judgements during training.
        recipe: How prompts are made; None: a task's instruction, or demonstrations where it has none.
        max_new_tokens: The most tokens that the model writes for a prompt.
    """

    def __init__(
        self,
        model: TransformerBridge,
        suite: Suite,
        tasks: Sequence[Task],
        *,
        n_prompts: int,
        split: SuiteSplit = "test",
        recipe: PromptRecipe | None = None,
        max_new_tokens: int = 64,
    ) -> None:
        self._suite, self._recipe, self._max_new_tokens = suite, recipe or PromptRecipe(), max_new_tokens
        self._recipe.check_for(tasks)
        asked = [(for_training(task), split_examples(task, split)) for task in tasks]

        def is_by_tokens(task: Task) -> bool:
            # tasks of the bank have a kind, others have none
            return bool(task.kind) or (split == "select" and suite.metrics[task.name] == "suite_accuracy")

        by_tokens = [(task, examples) for task, examples in asked if is_by_tokens(task)]
        self._exam: Exam | None = None
        if by_tokens:
            self._exam = make_exam(model, by_tokens, recipe=self._recipe, n_prompts=n_prompts, seed=self._recipe.seed)
        self._written = [(task, examples[:n_prompts]) for task, examples in asked if not is_by_tokens(task)]

    def scores(self, learner: Learner) -> dict[str, float]:
        """Mean score of each task by name, from 0 to 1."""
        found = {} if self._exam is None else self._exam.sit(learner.trained, exact=True)
        if self._written:
            bridge = learner.bridge()
            found |= {task.name: self._written_score(bridge, task, examples) for task, examples in self._written}
        return found

    def _written_score(self, bridge: TransformerBridge, task: Task, examples: Sequence[TaskExample]) -> float:
        """Mean score of what the model writes for these examples."""
        batch = prompts_for(bridge, task, examples, self._recipe, room=Room("first", 1))  # as `complete` asks for
        texts: list[str] = []
        for index in torch.arange(len(batch)).split(_WRITTEN_AT_ONCE):
            texts += complete(bridge, [batch.texts[row] for row in index], max_new_tokens=self._max_new_tokens)
        # a label is one line; what the model goes on to write after it is not its answer
        by_accuracy = self._suite.metrics[task.name] == "suite_accuracy"
        each = [
            self._suite.score(task.name, first_line(text) if by_accuracy else text.strip(), example.answers)
            for text, example in zip(texts, batch.examples, strict=True)
        ]
        return sum(each) / len(each)
