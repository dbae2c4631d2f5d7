"""More training inputs for the tasks of the pocket suite, so that a small model learns the rule of each task.

The bank has about a hundred training inputs for each task. From these alone a small model learns the pairs by heart: it
answers all training prompts right, and few others. All these tasks are rules, so the answer of any input is known, and
inputs are added: words of other tasks in the bank, or new lists of the words in the training inputs.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

from ivlens.tasks.bank import load_bank
from ivlens.tasks.task import Task, TaskExample, split_of

N_LISTS = 3000  # lists of words that are added to a task
_PARTS = {"fit": "train", "select": "eval", "test": "test"}  # names of the splits in files of suites
_WORD_GROUPS = ("nouns", "verbs")


def _shortest(words: list[str]) -> str:
    """The shortest word; an empty text where several are equally short, as the task then has no answer."""
    first, second, *_ = sorted(words, key=len)
    return first if len(first) < len(second) else ""


# for each task of the pocket suite, the answer to the words of an input; an empty one means that there is none
RULES: dict[str, Callable[[list[str]], str]] = {
    "second_letter": lambda words: words[0][1],
    "first_and_last_letter": lambda words: f"{words[0][0]} {words[0][-1]}",
    "middle_of_three": lambda words: words[1],
    "shortest_of_three": _shortest,
    "swap_pair": lambda words: f"{words[1]} {words[0]}",
}


def drilled(task: Task, *, n_lists: int = N_LISTS, seed: int = 0) -> Task:
    """The task with more training inputs; the inputs of *select* and *test* stay as they are in the bank.

    The `part` of every example (`train`, `eval`, `test`) says what it is for. No added input is among the bank's inputs
    of this task, so no input is both trained and judged on.

    Args:
        task: A task of the pocket suite.
        n_lists: How many lists of words are added to a task about lists. A task about single words gets all nouns and
            verbs of the bank instead.
        seed: Seed of the lists.
    """
    own = [replace(example, part=_PARTS[split_of(example.input)]) for example in task.examples]
    known, added = {example.input for example in own}, []
    for words in _inputs(own, n_lists, seed):
        text, answer = " ".join(words), RULES[task.name](words)
        if answer and text not in known:
            known.add(text)
            added.append(TaskExample(text, (answer,), "train"))
    return replace(task, examples=(*own, *added))


def _inputs(own: list[TaskExample], n_lists: int, seed: int) -> Iterator[list[str]]:
    """Words of new inputs, as many in each as in the task's own inputs."""
    n_words = len(own[0].input.split())
    if n_words == 1:
        others = [task for task in load_bank().values() if task.inputs in _WORD_GROUPS]
        yield from ([word] for word in sorted({example.input for task in others for example in task.examples}))
        return
    # words of training inputs alone: a word of a test input would be seen in training
    words = sorted({word for example in own if example.part == "train" for word in example.input.split()})
    draws = Random(f"{seed}\0{n_words}")
    yield from (draws.sample(words, n_words) for _ in range(n_lists))
