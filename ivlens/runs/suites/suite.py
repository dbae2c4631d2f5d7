"""Suites: the tasks of each benchmark, their orders, their metrics, and how their examples are divided.

Only the pocket suite is built in; the others are read from a folder of the user's. The folder is first listed to find
all tasks that were asked for. Only when they are there is any file read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from ivlens.common.arguments import checked
from ivlens.common.checks import as_items
from ivlens.common.names import expanded, path_of
from ivlens.runs.suites.drills import drilled
from ivlens.runs.suites.places import HELD_PARTS, LAYOUTS, TASKS, canonical, found_places, incomplete, picked_place
from ivlens.runs.suites.rouge import SCORERS, Metric, metric_of, suite_accuracy
from ivlens.tasks.bank import list_tasks, load_task
from ivlens.tasks.formats.records import wrong
from ivlens.tasks.task import Task, TaskExample, split_of

SuiteSplit = Literal["train", "select", "test"]
# tasks of TRACE whose answers are long texts, scored by Rouge-L
_GENERATED = ("MeetingBank", "Py150", "20Minuten")
# Task orders of O-LoRA (Wang et al., 2023); 4 to 6 come from Progressive Prompts (Razdaibiedina et al., 2023).
_LONG_ORDERS = (
    "DBpedia, Amazon, Yahoo, AG News",
    "DBpedia, Amazon, AG News, Yahoo",
    "Yahoo, Amazon, AG News, DBpedia",
    "MNLI, CB, WiC, COPA, QQP, BoolQ, RTE, IMDB, Yelp, Amazon, SST-2, DBpedia, AG News, MultiRC, Yahoo",
    "MultiRC, BoolQ, WiC, MNLI, CB, COPA, QQP, RTE, IMDB, SST-2, DBpedia, AG News, Yelp, Amazon, Yahoo",
    "Yelp, Amazon, MNLI, CB, COPA, QQP, RTE, IMDB, SST-2, DBpedia, AG News, Yahoo, MultiRC, BoolQ, WiC",
)
# each order of the pocket suite is this one, shifted: in plain rotations a task would nearly always follow the same one
_ZIGZAG = (0, 1, 3, 2, 4)


@dataclass(frozen=True, eq=False)
class Suite:
    """A sequence of tasks to train on, and general tasks that are judged beside them.

    Attributes:
        name: One of `suite_names()`.
        tasks: The tasks to train on, in this order; they have the suite's own names, however folders are spelled.
        metrics: The metric of each task, general tasks included, by the task's name.
        general: Tasks that are never trained on, for GP and IP.
        order: Number of the order; None for an order of the user's own.
        source: The folder in which the tasks were found.
        missing: Tasks of the sequence that were not found (`partial=True`), by name, each with the reason.
        keep_case: Names of tasks in whose `suite_accuracy` case counts (FUNC, the bank): in tasks about words, such as
            capitalising, the case may be the whole answer.
    """

    name: str
    tasks: tuple[Task, ...]
    metrics: Mapping[str, Metric]
    general: tuple[Task, ...] = ()
    order: int | None = 0
    source: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    keep_case: frozenset[str] = frozenset()

    def score(self, task: str, prediction: str, answers: str | Sequence[str]) -> float:
        """Score of one prediction by the task's metric, from 0 to 1.

        Raises:
            ValueError: the suite has no such task, or there are no answers.
        """
        if task not in self.metrics:
            raise wrong(f"Suite {self.name!r}", f"got task {task!r}", f"one of {', '.join(self.metrics)}", "name one")
        if self.metrics[task] == "suite_accuracy":
            return suite_accuracy(prediction, answers, keep_case=task in self.keep_case)
        return SCORERS[self.metrics[task]](prediction, answers)


def suite_names() -> list[str]:
    """The names of all suites."""
    return ["trace", "func", "long", "ni-c1", "ni-g1", "ni-m1", "pocket"]


def n_orders(name: str) -> int:
    """How many orders of its tasks a suite has."""
    return {"pocket": len(_ZIGZAG), "long": 1 + len(_LONG_ORDERS)}.get(name, 1)


@checked
def load_suite(
    name: str,
    folder: str | Path | None = None,
    *,
    order: int | str | Sequence[str] = 0,
    n: int | None = None,
    partial: bool = False,
    general: str | Path | Sequence[str | Path] | None = None,
) -> Suite:
    """Load a suite: the sequence of tasks of a benchmark.

    - trace: the 8 tasks of TRACE; order 0 is the paper's.
    - func: every file of function-vectors in the folder, or in its `abstractive` and `extractive`; order 0: by name.
    - long: the 15 sets of the long-sequence benchmark; order 0 is that of `TASKS`, orders 1 to 3 (four sets) and 4 to
      6 (15 sets) are those of O-LoRA.
    - ni-c1, ni-g1, ni-m1: five tasks of Natural Instructions each; order 0 is that of `TASKS`.
    - pocket: five tasks that the built-in model never saw, with more inputs (`drilled`); in its orders 0 to 4 each task
      stands once at each place.

    MeetingBank, Py150 and 20Minuten are scored by Rouge-L; TRACE itself scores Py150 by edit similarity and 20Minuten
    by SARI. Tasks of Natural Instructions, and general tasks from files, are scored by `metric_of`, all others by
    `suite_accuracy`. See docs/method.md, 10 Sequences of tasks.

    Args:
        name: One of `suite_names()`.
        folder: The folder with the benchmark's files, which may lie up to three levels down. None for pocket.
        order: Number of one of the suite's orders, or the names of some or all tasks in an order of your own.
        n: Only the first so many tasks of the order; None: all.
        partial: Where tasks are missing, load the others in order, and list the missing ones in `Suite.missing`.
        general: General tasks, which are never trained, as for `load_task`. None: for pocket the tasks that its model
            was trained on, for other suites none.

    Raises:
        FileNotFoundError: tasks are missing; the message lists each of them, where it was looked for, and how the files
            should lie.
        ValueError: an unknown suite, order or task; an impossible `n`; a general task that is trained as well; damaged
            files.
    """
    order = order if isinstance(order, int) else as_items("order", order)
    if name not in suite_names():
        raise wrong(f"Suite {name!r:.60}", "is unknown", f"one of {', '.join(suite_names())}", "name one of them")
    if (name == "pocket") != (folder is None):
        expected = "none, it is built in" if name == "pocket" else f"one with {LAYOUTS[name]}"
        raise wrong(
            f"Suite {name!r}", f"got folder={folder and str(folder)!r}", expected, "correct the folder (--data)"
        )
    root = None if folder is None else expanded(path_of(folder, "folder"))
    found = found_places(name, root)
    names = _ordered(name, order, sorted(found), n)
    picked = {one: picked_place(name, one, found.get(one, [])) for one in names}
    missing = {one: why for one, (place, why) in picked.items() if place is None}
    if len(missing) == len(names) or (missing and not partial):
        raise incomplete(name, root, missing, len(names))
    # the suite's own names: the draws of prompts depend on a task's name, and should not on how a folder is spelled
    tasks = tuple(replace(load_task(place), name=one) for one, (place, _) in picked.items() if place is not None)
    if name == "pocket":
        tasks = tuple(map(drilled, tasks))
    if general is None:
        general = list_tasks(in_training=True) if name == "pocket" else []
    others = tuple(load_task(one) for one in as_items("general", general, (str, Path)))
    number, source = order if isinstance(order, int) else None, str(root or "ivlens bank")
    keep_case = frozenset(task.name for task in (*tasks, *others) if task.kind or (name == "func" and task in tasks))
    return Suite(name, tasks, _metrics(name, tasks, others), others, number, source, missing, keep_case)


def split_examples(task: Task, split: SuiteSplit | str, seed: int = 0) -> tuple[TaskExample, ...]:
    """The examples of a task to train on (`train`), to choose settings on (`select`), or to judge on (`test`).

    A source may have parts of its own: `train`; `eval`, `dev`, `valid` or `validation`; `test`. If it has all three
    kinds, these are the three splits. If it has `train` and one other kind, the other kind is the test, and a quarter
    of the training part becomes *select*. If it has no such parts, `Task.split` divides the examples, and `fit` is the
    training part. An input that stands in several parts belongs to the first of them, so a test set that repeats
    training inputs becomes smaller, and none of its inputs is trained on.

    Raises:
        ValueError: an unknown split, or one without examples.
    """
    if split not in get_args(SuiteSplit):
        known = ", ".join(get_args(SuiteSplit))
        raise wrong(f"Task {task.name!r}", f"got split {split!r}", f"one of {known}", "name one")
    parts = {example.part for example in task.examples}
    if "train" not in parts or not parts & {"test", *HELD_PARTS}:
        return task.split("fit" if split == "train" else split, seed)
    has_both = "test" in parts and bool(parts & set(HELD_PARTS))
    goes_to = {"train": "train", "test": "test"} | dict.fromkeys(HELD_PARTS, "select" if has_both else "test")
    chosen = [one for one in task.examples if goes_to.get(one.part) == split]
    if split != "test" and not has_both:
        trained = [one for one in task.examples if one.part == "train"]
        chosen = [one for one in trained if (split_of(one.input, seed) == "select") == (split == "select")]
    if not chosen:
        got = f"has nothing for {split!r} among {len(task)} examples of {', '.join(sorted(parts))}"
        raise wrong(f"Task {task.name!r}", got, "at least one", f"check the files in {task.source}")
    return tuple(chosen)


def for_training(task: Task) -> Task:
    """The task with its training examples alone, which means, heads, vectors and demonstrations may come from."""
    return replace(task, examples=split_examples(task, "train"))


def _orders(suite: str, found: Sequence[str]) -> list[Sequence[str]]:
    """All orders of a suite by number; `found` are the tasks that were found, for suites without a list of tasks."""
    if suite == "pocket":
        return [[found[(at + shift) % len(found)] for at in _ZIGZAG] for shift in range(len(found))]
    first = list(TASKS.get(suite, found))
    return [first, *(names.split(", ") for names in _LONG_ORDERS)] if suite == "long" else [first]


def _ordered(suite: str, order: int | Sequence[str], found: Sequence[str], n: int | None) -> Sequence[str]:
    """Names of the first `n` tasks of an order, which is a number or a list of names."""
    subject, orders = f"Suite {suite!r}", _orders(suite, found)
    if isinstance(order, int):
        if not 0 <= order < len(orders):
            numbers = "0" if len(orders) == 1 else f"0 to {len(orders) - 1}"
            raise wrong(subject, f"got order={order}", f"{numbers}, or a list of task names", "see load_suite")
        names = orders[order]
    else:
        names = [canonical(suite, text) or text for text in ([] if isinstance(order, str) else order)]
        # a func suite has no list of tasks: names without a file are reported later as missing, with the folder
        unknown = [one for one in names if suite != "func" and one not in orders[0]]
        if unknown or not names or len(set(names)) < len(names):
            got = f"got order={order!r:.200}" + (f" with {', '.join(unknown)}" if unknown else "")
            raise wrong(subject, got, f"a list of different names out of {', '.join(orders[0])}", "correct it")
    if n is not None and names and not 1 <= n <= len(names):
        raise wrong(subject, f"got n={n}", f"1 to {len(names)}, the tasks of this order", "leave n out for all")
    return names[:n]


def _metrics(suite: str, tasks: Sequence[Task], general: Sequence[Task]) -> dict[str, Metric]:
    """The metric of every task by name; a name that two tasks have is an error."""
    names = [task.name for task in (*tasks, *general)]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        got = f"has {', '.join(repeated)} twice"
        raise wrong(f"Suite {suite!r}", got, "general tasks that are not trained", "leave them out of general=")
    by_data = (*(task for task in general if not task.kind), *(tasks if suite.startswith("ni-") else ()))
    metrics: dict[str, Metric] = dict.fromkeys(names, "suite_accuracy")
    metrics |= {task.name: metric_of(task) for task in by_data}
    metrics |= {task.name: "rouge_l" for task in tasks if suite == "trace" and task.name in _GENERATED}
    return metrics
