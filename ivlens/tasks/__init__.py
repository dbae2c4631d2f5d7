"""Tasks (inputs, answers, instructions), the readers of task files, and the built-in bank of tasks."""

from ivlens.tasks.bank import list_tasks, load_bank, load_task
from ivlens.tasks.checking import TaskCheck, check_task
from ivlens.tasks.task import SplitName, Task, TaskExample, hash_of_tasks, split_of

__all__ = [
    "SplitName",
    "Task",
    "TaskCheck",
    "TaskExample",
    "check_task",
    "hash_of_tasks",
    "list_tasks",
    "load_bank",
    "load_task",
    "split_of",
]
