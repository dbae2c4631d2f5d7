"""`ivlens forget`: over a folder of checkpoints, what became of the instruction and what of the knowledge."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ivlens.cli._options import AsJson, FigureSuffix, PromptOptions, quiet_libraries
from ivlens.cli._output import print_json, print_table, told

if TYPE_CHECKING:
    from ivlens.models.checkpoints import Checkpoint, CheckpointSeries
    from ivlens.tasks.task import Task


@Parameter(name="*")
@dataclass(frozen=True)
class SeriesOptions:
    """Which models and tasks.

    Attributes:
        before: The model to compare with: "pocket", a folder or a Hub name. By default the one that adapters name, or
            else the first checkpoint.
        task: A task the first model knows, built in or a path; give it several times. By default, for the built-in
            model, six of those it was trained on.
        device: auto, cpu, cuda, cuda:1 ...
        dtype: auto (as stored), float32, bfloat16 or float16.
    """

    before: str | None = None
    task: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    device: str = "auto"
    dtype: str = "auto"

    def series(self, checkpoints: Path) -> "CheckpointSeries":
        """In order."""
        from ivlens.models.checkpoints import checkpoint_series

        return checkpoint_series(checkpoints, first=self.before, device=self.device, dtype=self.dtype)

    def tasks(self) -> "list[Task]":
        """Opened."""
        from ivlens.runs.study.plan import EARLIER_TASKS
        from ivlens.tasks.bank import load_task

        return [load_task(name) for name in self.task or EARLIER_TASKS]


@Parameter(name="*")
@dataclass(frozen=True)
class ProbedOptions(SeriesOptions):
    """Which models and tasks are probed.

    Attributes:
        n_prompts: At most so many prompts of each task.
    """

    n_prompts: int | None = None


def said(checkpoint: "Checkpoint") -> None:
    """A line for each checkpoint."""
    from ivlens.common.progress import say

    say(f"ivlens: {checkpoint.name}")


def forget(
    checkpoints: Path,
    *,
    which: ProbedOptions | None = None,
    prompts: PromptOptions | None = None,
    out: Path = Path("out/forget"),
    split: Literal["select", "test"] = "test",
    measure: Literal["prob", "seq_prob", "accuracy", "exact", "ranked"] = "seq_prob",
    figures: FigureSuffix = "html",
    as_json: AsJson = False,
) -> int:
    """Take apart what checkpoints have forgotten: instruction probability and knowledge probability of tasks they knew.

    All tasks and checkpoints are asked in one form; where no option says in which, it is the one in which the first
    model answers these tasks best on average.

    Every checkpoint's measurements are kept in `--out`; the same command goes on where it was interrupted, and measures
    checkpoints that have come since.

    Example: `ivlens forget out/second_letter --task antonym --task country_capital --out out/forget`

    Args:
        checkpoints: Folder with whole models or peft adapters in its subfolders, as `ivlens tune --checkpoint-every N`
            writes it; or one checkpoint.
        out: Folder for probes.parquet (every example at every checkpoint), forgetting.parquet (both drops, with
            intervals) and the figure, and for store/, which keeps the measurements of every checkpoint.
        split: Inputs to judge on.
        measure: What the table and the figure show: probability of the first token or of the whole answer, accuracy
            (exact: the answer and nothing behind it), or ranked, the accuracy among the task's answers.
        figures: Suffix of the figure.
    """
    quiet_libraries()
    import pandas as pd

    from ivlens.analysis.forgetting.drops import decomposition
    from ivlens.analysis.forgetting.probabilities import ProbeOptions
    from ivlens.analysis.forgetting.series import probe_series
    from ivlens.common.disk import check_folder
    from ivlens.common.saves import filling
    from ivlens.common.store.store import KEPT
    from ivlens.show.figures.export import write_figures
    from ivlens.show.figures.forgetting import forgetting_plot

    chosen, how = which or ProbedOptions(), prompts or PromptOptions()
    how.recipe()  # what is wrong with it is said before any model is loaded
    check_folder(out)
    tasks, series = chosen.tasks(), chosen.series(checkpoints)
    recipe = how.chosen(series.first.open, tasks)
    options = ProbeOptions(split=split, n_prompts=chosen.n_prompts, recipe=recipe)
    probes = probe_series(series, tasks, options, folder=out / KEPT, on_checkpoint=said)
    before = probes[series.first.name]
    tables = [decomposition(before, probes[one.name]).assign(checkpoint=one.name) for one in series.later]
    table = pd.concat(tables, ignore_index=True)
    with filling(out) as scratch:
        table.to_parquet(scratch / "forgetting.parquet")
        each = [one.assign(checkpoint=name) for name, one in probes.items()]
        pd.concat(each, ignore_index=True).to_parquet(scratch / "probes.parquet")
        drawn = forgetting_plot(tables[-1], measure=measure)
        (figure,), trouble = write_figures({scratch / f"forgetting.{figures}": drawn})
    rows = [row for row in table.to_dict("records") if row["measure"] == measure]
    if as_json:
        facts = {"measure": measure, "before": series.first.name, "recipe": recipe.to_dict()}
        print_json({**facts, "rows": rows, "out": str(out)})
        return told(trouble)
    _print(rows, measure, out / figure.name)
    return told(trouble)


def _print(rows: list[dict[Hashable, Any]], measure: str, figure: Path) -> None:
    names = ("checkpoint", "task", "instruction_before", "instruction_after", "knowledge_before", "knowledge_after")
    head = [
        "checkpoint",
        "task",
        "instruction before",
        "after",
        "knowledge before",
        "after",
        "excess",
        "interval",
        "kind",
    ]
    print_table(head, [[*(row[name] for name in names), row["excess"], _between(row), row["interval"]] for row in rows])
    unit = "nats of log-odds" if measure.endswith("prob") else "points"
    print(f"\n{measure}; excess: by how much more the instruction's falls, in {unit}; figure: {figure}")


def _between(row: Mapping[Hashable, Any]) -> str:
    low, high = row["excess_lo"], row["excess_hi"]
    return "–" if low != low else f"{low:.2f} to {high:.2f}"
