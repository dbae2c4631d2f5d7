"""More training inputs for the pocket suite's tasks, all of them rules: enough for a small model to learn the rule.

The bank lists about a hundred training inputs of each. On those alone a small model learns the pairs by heart: every
training prompt is right, and few others are. A rule gives the answer of any input, so inputs are added: words that
other tasks of the bank use, or new lists of the words that the training inputs consist of.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

from ivlens.tasks.bank import load_bank
from ivlens.tasks.task import Task, TaskExample, split_of

N_LISTS = 3000
_PARTS = {"fit": "train", "select": "eval", "test": "test"}
_WORD_GROUPS = ("nouns", "verbs")


def _shortest(words: list[str]) -> str:
    """The one shortest word, or nothing where two are equally short."""
    first, second, *_ = sorted(words, key=len)
    return first if len(first) < len(second) else ""


RULES: dict[str, Callable[[list[str]], str]] = {
    "second_letter": lambda words: words[0][1],
    "first_and_last_letter": lambda words: f"{words[0][0]} {words[0][-1]}",
    "middle_of_three": lambda words: words[1],
    "shortest_of_three": _shortest,
    "swap_pair": lambda words: f"{words[1]} {words[0]}",
}


def drilled(task: Task, *, n_lists: int = N_LISTS, seed: int = 0) -> Task:
    """`task` with more inputs to train on; those to select and to judge on stay the bank's.

    Every example says by its `part` (`train`, `eval`, `test`) what it is for. No added input is one of the bank's, so
    nothing that is judged is trained on.

    Args:
        task: One of the pocket suite's.
        n_lists: Added lists of words, for tasks about those; tasks about words get all nouns and verbs of the bank.
        seed: Of the lists.
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
    n_words = len(own[0].input.split())
    if n_words == 1:
        others = [task for task in load_bank().values() if task.inputs in _WORD_GROUPS]
        yield from ([word] for word in sorted({example.input for task in others for example in task.examples}))
        return
    words = sorted({word for example in own if example.part == "train" for word in example.input.split()})
    draws = Random(f"{seed}\0{n_words}")
    yield from (draws.sample(words, n_words) for _ in range(n_lists))
