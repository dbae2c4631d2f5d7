"""Tasks: what a file says, as inputs, answers and instructions; and the built-in bank."""

from ivlens.tasks.bank import list_tasks, load_bank, load_task
from ivlens.tasks.task import SplitName, Task, TaskExample, hash_of_tasks, split_of

__all__ = [
    "SplitName",
    "Task",
    "TaskExample",
    "hash_of_tasks",
    "list_tasks",
    "load_bank",
    "load_task",
    "split_of",
]
