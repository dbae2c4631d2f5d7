"""Open the tasks and suites that a grid names; each is read once in a process."""

from functools import lru_cache
from typing import Any, NamedTuple

from ivlens.runs.suites.keeping import suite_facts
from ivlens.runs.suites.suite import Suite, load_suite
from ivlens.tasks.bank import load_bank, load_task
from ivlens.tasks.task import Task, hash_of_tasks


@lru_cache(maxsize=256)
def open_task(name: str) -> Task:
    """The task with this name or path, read once in a process."""
    return load_task(name)


@lru_cache(maxsize=4096)
def task_facts(name: str) -> tuple[str, str, tuple[str, ...]]:
    """Name, hash and parts of a task: everything about it that a result depends on."""
    task = open_task(name)
    parts = tuple(sorted({example.part for example in task.examples}))
    return task.name, task.full_hash(), parts


class KnownSuite(NamedTuple):
    """A suite in one of its orders, and everything about it that a result depends on."""

    suite: Suite
    facts: dict[str, Any]


@lru_cache(maxsize=64)
def suite_of_cell(name: str, folder: str | None, order: int, n: int | None) -> KnownSuite:
    """A suite with the first `n` tasks of an order, or all (None), read once in a process."""
    suite = load_suite(name, folder, order=order, n=n)
    return KnownSuite(suite, suite_facts(suite))


def forget_tasks() -> None:
    """Let all tasks and suites be read again when they are next asked for: their files may have changed."""
    open_task.cache_clear()
    suite_of_cell.cache_clear()
    task_facts.cache_clear()


@lru_cache(maxsize=1)
def bank_hash() -> str:
    """Hash of all built-in tasks; results depend on them, as counterfactual instructions are drawn from them."""
    return hash_of_tasks(load_bank().values())
