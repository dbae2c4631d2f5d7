"""Opening tasks: a built-in one by its name, any other by its path or its name on the Hub."""

import logging
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path

from ivlens.common.arguments import checked
from ivlens.common.checks import check_filled
from ivlens.common.memory import without_collection
from ivlens.tasks.formats.columns import OPTIONS
from ivlens.tasks.formats.records import Columns, Record, Source
from ivlens.tasks.readers import open_source, read_bank_file
from ivlens.tasks.task import Task, TaskExample

logger = logging.getLogger(__name__)


@checked
def list_tasks(*, group: str | None = None, in_training: bool | None = None) -> list[str]:
    """Names of the built-in tasks, sorted.

    Args:
        group: Only tasks of this group, which share their inputs (`words`, `countries`, ...).
        in_training: True: only tasks that the built-in model was trained on; False: only the others.

    Raises:
        ValueError: No task has that group.
    """
    bank = load_bank()
    groups = {task.inputs for task in bank.values()}
    if group is not None and group not in groups:
        raise ValueError(f"Group {group!r:.60} is unknown, expected one of {', '.join(sorted(groups))}.")
    return [
        name for name, task in bank.items() if group in (None, task.inputs) and in_training in (None, task.in_training)
    ]


def load_bank() -> dict[str, Task]:
    """All built-in tasks by name, sorted; read once."""
    return {name: _bank_task(name) for name in bank_names()}


@checked
def load_task(
    name_or_path: str | Path,
    *,
    input_column: str | None = None,
    output_column: str | None = None,
    instruction_column: str | None = None,
    part: str | None = None,
    config: str | None = None,
) -> Task:
    """Open a built-in task by name, or anything else by path or Hub name.

    The format is recognised by the content, never by the file's name: task files of other projects, tables with named
    columns, Hugging Face `datasets`. docs/guide/data.md lists all of them.

    The name of a built-in task always means that task, even if the working directory has a file of this name: a result
    must not depend on where it is run. Write `"./antonym"` or `Path("antonym")` for the file. A string that is neither
    a built-in name nor a path is a Hub dataset if it reads `owner/name` or `hf://name`.

    A column called `prompt` holds the whole prompt (`Task.fused`), unless there is an instruction column, and so does a
    chat without a system text. Where most rows of the instruction column have an instruction of their own, instruction
    and input are joined to such a prompt. Choices and texts that a question is about stand in the prompt, and the
    answer of a multiple-choice record is the text of the right choice. `check_task` says how a file was read.

    Example:
        >>> import ivlens
        >>> task = ivlens.load_task("antonym")  # or a file, a folder, a data set on the Hub
        >>> len(task), task.examples[0].input, task.examples[0].answers
        (216, 'big', ('small', 'little', 'tiny'))

    Args:
        name_or_path: A built-in name, the path of a file or folder, or the name of a dataset on the Hub.
        input_column: The column or key that holds the inputs; None: one of the usual names is looked for.
        output_column: The column or key that holds the answers; None: likewise.
        instruction_column: The column or key that holds instructions, if any; None: likewise.
        part: The file of a folder, or the split of a dataset, to read alone (`train`, `eval`, `test`); None: all of
            them.
        config: The configuration of a Hub dataset.

    Returns:
        The task. Records without an input or an answer are left out and listed in `Task.skipped`. Records with the same
        input are merged: the later answers become alternatives. Numbers, `true` and `false` become texts, spelled as in
        the source.

    Raises:
        FileNotFoundError: No such file, folder or dataset.
        ValueError: No such built-in task, or the content is not usable; the message says where and what to do.
    """
    columns = Columns(input_column, output_column, instruction_column)
    is_plain = all(each is None for each in (*columns, part, config))
    if is_plain and isinstance(name_or_path, str) and name_or_path in bank_names():
        return _bank_task(name_or_path)  # read once
    return build_task(source_of_task(name_or_path, columns, part=part, config=config))


@without_collection()
def source_of_task(name_or_path: str | Path, columns: Columns, *, part: str | None, config: str | None) -> Source:
    """What `load_task` reads, before records are merged or left out; errors as those of `load_task`."""
    given = {f"{name}_column": value for name, value in columns._asdict().items()} | {"part": part, "config": config}
    check_filled(**given)
    if not (isinstance(name_or_path, str) and name_or_path in bank_names()):
        return open_source(name_or_path, columns, part=part, config=config, known=bank_names())
    # a built-in task has no columns: whoever names one means a file
    if any(value is not None for value in given.values()):
        raise ValueError(
            f"load_task({name_or_path!r}) got column, part or config options, which built-in tasks do not have; "
            f"leave them out, or write './{name_or_path}' for a file of that name."
        )
    return replace(_bank_source(name_or_path), format="a built-in task")


@cache
def bank_names() -> tuple[str, ...]:
    """Names of the built-in tasks, sorted, without reading any of them."""
    folder = resources.files("ivlens") / "data" / "bank"
    return tuple(sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")))


@cache
def _bank_task(name: str) -> Task:
    """One built-in task, read once."""
    return build_task(_bank_source(name))


def _bank_source(name: str) -> Source:
    with resources.as_file(resources.files("ivlens") / "data" / "bank" / f"{name}.json") as path:
        # not the path, which differs between installations and would get into saved files
        return replace(read_bank_file(path), source=f"ivlens bank: {name}")


@without_collection()
def build_task(source: Source, *, quietly: bool = False) -> Task:
    """Make a task of records: merge records with the same input, leave out incomplete ones, and log how many.

    Args:
        quietly: Whether nothing is logged.
    """
    merged: dict[str, Record] = {}
    answers: dict[str, dict[str, None]] = {}  # a dict as an ordered set, since an input may have thousands of answers
    skipped: list[str] = []
    n_merged = 0
    for record in source.records:
        if why := record.lacks:
            about = (record.input.strip() or " / ".join(record.answers))[:60]
            skipped.append(f"{record.where}: {why}" + (f" ({about!r})" if about else ""))
            continue
        n_merged += record.input in merged
        merged.setdefault(record.input, record)  # of records with the same input, the first gives the part
        answers.setdefault(record.input, {}).update(dict.fromkeys(record.answers))
    if not merged:
        raise ValueError(
            f"{source.source}: all {len(source.records)} records lack an answer or an input (first: {skipped[0]}), "
            "expected at least one complete record; use the file that has the answers, or name another column with "
            f"{OPTIONS['output']}."
        )
    if not quietly:
        _report(source, skipped, n_merged)
    return Task(
        name=source.name,
        examples=tuple(TaskExample(text, tuple(answers[text]), record.part) for text, record in merged.items()),
        instructions=source.instructions,
        held_out_instructions=source.held_out_instructions,
        clozes=source.clozes,
        prose=source.prose,
        kind=source.kind,
        inputs=source.inputs,
        in_training=source.in_training,
        fused=source.fused,
        source=source.source,
        skipped=tuple(skipped),
        demonstrations=tuple(TaskExample(r.input, r.answers) for r in source.demonstrations if r.input and r.answers),
    )


def _report(source: Source, skipped: list[str], n_merged: int) -> None:
    """Log what the reader decided, and warn of all that was left out."""
    for note in source.notes:
        logger.info("Task %r: %s.", source.name, note)
    for loss in source.losses:
        logger.warning("Task %r: %s.", source.name, loss)
    if skipped:
        logger.warning(
            "Task %r: %d of %d records left out because they lack an answer or an input (first: %s), %d repeated "
            "inputs merged.", source.name, len(skipped), len(source.records), skipped[0], n_merged,
        )  # fmt: skip
    elif n_merged:  # nothing is lost: the later answers are alternatives
        logger.info("Task %r: %d repeated inputs merged.", source.name, n_merged)
