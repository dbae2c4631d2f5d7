"""Tasks: what a file says, as inputs, answers and instructions; and the built-in bank."""

from ivlens.tasks.task import SplitName, Task, TaskExample, hash_of_tasks, list_tasks, load_bank, load_task, split_of

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
