"""`ivlens effects`: measure which attention heads carry the instruction of a task."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ivlens.cli._options import AsJson, FileOptions, ModelOptions
from ivlens.cli._output import print_json, print_table, told

if TYPE_CHECKING:
    from ivlens.effects.results import HeadEffects
    from ivlens.tasks.task import Task

TABLE_SUFFIXES = (".csv", ".parquet")


def effects(
    *,
    task: str,
    where: ModelOptions | None = None,
    how: FileOptions | None = None,
    contrast: Annotated[bool, Parameter(negative="")] = False,
    top: int = 10,
    again: int = 10,
    out: Path | None = None,
    as_json: AsJson = False,
) -> int:
    """Measure the causal effect of every attention head on a task.

    On corrupted prompts, the output of one head at a time is replaced by the head's mean output on clean prompts. The
    head's effect is the gain in the right answer's score, averaged over prompts (AIE).

    Example: `ivlens effects --model pocket --task antonym --out antonym.effects.safetensors`

    Args:
        task: Name of a built-in task, or the path of a file or folder that holds a task.
        contrast: Also measure mean outputs on corrupted prompts, which `ivlens vector --effects ... --contrast`
            subtracts.
        top: Number of heads to print.
        again: Number of strongest heads that are measured again on *select* prompts. On the prompts that chose them,
            their effects look larger than they are; intervals are right only on other prompts. 0: none.
        out: File for all effects: .safetensors (to build vectors from), .csv or .parquet (a table), .html, .png, .svg
            or .pdf (a map of all heads).
    """
    _check_out(out)
    for name, count in (("--top", top), ("--again", again)):
        if count < 0:
            raise ValueError(f"{name} is {count}, expected 0 or more.")
    how = how or FileOptions()
    loaded = how.load(task)
    how.recipe()  # refuses wrong options before the model is loaded
    model = (where or ModelOptions()).load()
    found = how.measure(model, loaded, contrast=contrast)
    # a task too small for other prompts, or effects that were measured on *select*, leave nothing to measure again on
    if again and _has_others(found, loaded):
        found = _again(found, loaded, again)
    trouble = ""
    if out is not None:
        out, trouble = write_effects(found, out)
    if as_json:
        print_json({**describe(found), "heads": found.to_frame().to_dict("records"), "out": out and str(out)})
        return told(trouble)
    _print(found, top)
    if out is not None:
        print(f"\nwritten: {out}")
    return told(trouble)


def _print(found: "HeadEffects", top: int) -> None:
    from ivlens.show.tables import head_cells

    print(f"{found.task} on {found.model}")
    corruptions = ", ".join(sorted(set(found.corruptions)))
    how = f"score: {found.settings.get('score')}, method: {found.method}"
    print(f"{len(found.corruptions)} corrupted prompts ({corruptions}), {how}")
    print(f"prompts: {found.recipe}")
    for what in filter(None, (found.ability, found.taken)):
        print(what)
    print()
    split = "" if found.again is None else found.again.split
    head, rows = head_cells(found.to_frame().head(top).to_dict("records"), split)
    print_table(head, rows)
    if found.again is not None:
        print(f"\non {split}: {len(found.again.cie)} prompts that did not choose the heads")


def _has_others(found: "HeadEffects", task: "Task") -> bool:
    """Whether the task has *select* prompts, and the heads were not chosen on these."""
    from ivlens.tasks.task import split_of

    has_select = any(split_of(example.input, found.recipe.seed) == "select" for example in task.examples)
    return has_select and found.settings["split"] != "select"


def _again(found: "HeadEffects", task: "Task", n_heads: int) -> "HeadEffects":
    """The effects with the strongest heads measured again; if that fails, a warning and the effects as they were."""
    from ivlens.effects.again import measure_again

    try:
        return measure_again(found, task, heads=n_heads)
    except ValueError as error:  # too few prompts on *select*, say: minutes of measuring must not be lost for that
        logging.getLogger("ivlens").warning("the strongest heads are not measured again: %s", error)
        return found


def describe(found: "HeadEffects") -> dict[str, Any]:
    """Facts about a measurement as plain values, without the effects of single heads."""
    return {
        "task": found.task,
        "model": asdict(found.model),
        "n_prompts": len(found.corruptions),
        "corruptions": sorted(set(found.corruptions)),
        "recipe": found.recipe.to_dict(),
        "clean_accuracy": found.clean_accuracy,
        "bare_accuracy": found.bare_accuracy,
        "taken": found.taken and asdict(found.taken),
        "warnings": list(found.warnings),
        "settings": dict(found.settings),
    }


def write_effects(found: "HeadEffects", path: Path) -> tuple[Path, str]:
    """Write effects in the format of the suffix, whole or not at all.

    Returns:
        The file that was written, and why it is HTML where an image was asked for; "" where all is well.
    """
    from ivlens.common.files import write_whole

    suffix = path.suffix.lower()
    # through `write_whole`: an interrupted command leaves the old file or the new one, never half of it
    if suffix == ".safetensors":
        write_whole(path, found.save)
    elif suffix == ".csv":
        write_whole(path, lambda partial: found.to_frame().to_csv(partial, index=False))
    elif suffix == ".parquet":
        write_whole(path, found.to_frame().to_parquet)
    else:
        from ivlens.show.figures.export import write_figures
        from ivlens.show.figures.heads import head_heatmap

        (path,), trouble = write_figures({path: head_heatmap(found)})
        return path, trouble
    return path, ""


def _check_out(out: Path | None) -> None:
    """Refuse a file that cannot be written, or has an unknown suffix, before minutes of measuring."""
    from ivlens.common.disk import check_file

    known = (".safetensors", *TABLE_SUFFIXES, ".html", ".png", ".svg", ".pdf")
    if out is not None:
        check_file(out, known)
