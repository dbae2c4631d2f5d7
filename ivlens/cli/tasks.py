"""`ivlens tasks`: list the built-in tasks, show one, or say how a task's file is read."""

from typing import TYPE_CHECKING, Any

from cyclopts import App

from ivlens.cli._options import AsJson, ColumnOptions
from ivlens.cli._output import one_line, print_json, print_table
from ivlens.common.names import shown

if TYPE_CHECKING:
    from ivlens.tasks.task import Task

app = App(name="tasks", help="List the built-in tasks, or say how a task's file is read.", help_format="markdown")
N_EXAMPLES = 3


@app.default
def list_them(*, group: str | None = None, as_json: AsJson = False) -> None:
    """List the built-in tasks, each with its number of inputs and an example.

    Example: `ivlens tasks --group words`, one of them: `ivlens tasks show antonym`, or a file of your own:
    `ivlens tasks check questions.jsonl`

    Args:
        group: List only tasks of this group, which share their inputs.
    """
    from ivlens.tasks.bank import list_tasks, load_bank

    bank = load_bank()
    found = [bank[name] for name in list_tasks(group=group)]
    if as_json:
        print_json({"tasks": [_facts(task) for task in found]})
        return
    rows = [
        [task.name, len(task), task.inputs, task.kind, "yes" if task.in_training else "no", _example(task)]
        for task in found
    ]
    print_table(["task", "inputs", "group", "kind", "trained", "example"], rows)
    print(f"\n{len(found)} tasks; trained: whether the built-in model was trained on it")


@app.command
def show(name: str, /, *, columns: ColumnOptions | None = None, as_json: AsJson = False) -> None:
    """Show a task: its instructions, its splits, and examples.

    Example: `ivlens tasks show antonym`

    Args:
        name: Name of a built-in task, or the path of a file or folder that holds a task.
    """
    task = (columns or ColumnOptions()).load(name)
    if as_json:
        examples = [{"input": one.input, "answers": list(one.answers)} for one in task.examples]
        texts = {key: list(getattr(task, key)) for key in ("instructions", "held_out_instructions", "clozes", "prose")}
        print_json({**_facts(task), **texts, "fused": task.fused, "examples": examples})
        return
    sizes = ", ".join(f"{side} {n}" for side, n in _sizes(task).items())
    print(shown(f"{task.name}: {len(task)} inputs ({sizes})"))
    about = {"group": task.inputs, "kind": task.kind, "source": task.source}
    about |= {"trained": ("yes" if task.in_training else "no") if task.kind else ""}
    for what, text in about.items():
        if text:
            print(shown(f"{what}: {text}"))
    for what in ("instructions", "held_out_instructions", "clozes"):
        _print_texts(what.replace("_", "-", 1).replace("_", " "), getattr(task, what))
    _print_texts("examples", [_example(task, number) for number in range(min(N_EXAMPLES, len(task)))])


@app.command
def check(file: str, /, *, columns: ColumnOptions | None = None, as_json: AsJson = False) -> None:
    """Say how a task's file is read: its format, its columns, three examples, and what is left out and why.

    Also says what other columns would give.

    Example: `ivlens tasks check questions.jsonl --answer-column gold`

    Args:
        file: Path of a file or folder, or the name of a dataset on the Hub.
    """
    from ivlens.tasks.checking import check_task

    found = check_task(file, **(columns or ColumnOptions()).names())
    if as_json:
        print_json(found.to_dict())
        return
    print(shown(found, keep="\n"))


def _facts(task: "Task") -> dict[str, Any]:
    """What is known of a task, as plain values."""
    return {
        "name": task.name,
        "n": len(task),
        "splits": _sizes(task),
        "group": task.inputs,
        "kind": task.kind,
        "in_training": task.in_training,
        "source": task.source,
    }


def _sizes(task: "Task") -> dict[str, int]:
    """The number of inputs in each split, with seed 0."""
    from ivlens.tasks.task import split_of

    sides = [split_of(example.input) for example in task.examples]
    return {side: sides.count(side) for side in ("fit", "select", "test")}


def _example(task: "Task", number: int = 0) -> str:
    """One example in a line."""
    example = task.examples[number]
    return " -> ".join(_cut(one_line(text)) for text in (example.input, " / ".join(example.answers[:3])))


def _cut(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _print_texts(what: str, texts: Any) -> None:
    """A heading, and below it one line for each text; nothing where there are none."""
    if texts:
        print(f"\n{what}:")
        for text in texts:
            print(shown(f"  {one_line(text)}"))
