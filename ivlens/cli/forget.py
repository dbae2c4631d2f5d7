"""`ivlens forget`: measure how instruction and knowledge probability change over a folder of checkpoints."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ivlens.cli._options import AsJson, ColumnOptions, FigureSuffix, PromptOptions, quiet_libraries
from ivlens.cli._output import print_json, print_table, told

if TYPE_CHECKING:
    from ivlens.models.checkpoints import Checkpoint, CheckpointSeries
    from ivlens.tasks.task import Task


@Parameter(name="*")
@dataclass(frozen=True)
class SeriesOptions(ColumnOptions):
    """The series of models, and the tasks that are measured in each.

    Attributes:
        before: The model to compare with: "pocket", "smollm2", a folder or a Hub name. By default the model that
            adapters were trained on, or else the first checkpoint.
        task: A task that the first model knows: a built-in name or a path; may be given several times. By default six
            tasks that the built-in model was trained on.
        device: auto, cpu, cuda, cuda:1 ...
        dtype: auto (as stored), float32, bfloat16 or float16.
    """

    before: str | None = None
    task: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    device: str = "auto"
    dtype: str = "auto"

    def series(self, checkpoints: str) -> "CheckpointSeries":
        """The checkpoints in the order of their steps, after the model to compare with."""
        from ivlens.models.checkpoints import checkpoint_series

        return checkpoint_series(checkpoints, first=self.before, device=self.device, dtype=self.dtype)

    def tasks(self, *also: str) -> "list[Task]":
        """The chosen tasks, opened, and behind them others that are named."""
        from ivlens.runs.study.plan import EARLIER_TASKS

        return self.load_all([*(self.task or EARLIER_TASKS), *also])


@Parameter(name="*")
@dataclass(frozen=True)
class ProbedOptions(SeriesOptions):
    """The models and tasks that are measured, and on how many prompts.

    Attributes:
        n_prompts: At most so many prompts of each task.
    """

    n_prompts: int | None = None


def said(checkpoint: "Checkpoint") -> None:
    """Print a line that names the checkpoint which is measured now."""
    from ivlens.common.progress import say

    say(f"ivlens: {checkpoint.name}")


def forget(
    checkpoints: str,
    *,
    which: ProbedOptions | None = None,
    prompts: PromptOptions | None = None,
    out: Path = Path("out/forget"),
    split: Literal["select", "test"] = "test",
    measure: Literal["prob", "seq_prob", "accuracy", "exact", "ranked"] = "seq_prob",
    figures: FigureSuffix = "html",
    as_json: AsJson = False,
) -> int:
    """Measure what checkpoints have forgotten of tasks: the instruction, or the knowledge.

    All tasks and checkpoints are asked in one form of prompt. If no option gives a form, it is the one in which the
    first model answers these tasks best on average.

    The measurements of every checkpoint are kept in `--out`. The same command goes on where it was interrupted, and
    measures new checkpoints.

    Example: `ivlens forget out/second_letter --task antonym --task country_capital --out out/forget`

    Args:
        checkpoints: Folder with whole models or peft adapters in its subfolders, as `ivlens tune --checkpoint-every N`
            writes it; or one checkpoint, or a model by its name, such as smollm2-terse.
        out: Folder for probes.parquet (every example at every checkpoint), forgetting.parquet (both drops, with
            intervals) and the figure, and for store/, which keeps the measurements of every checkpoint.
        split: The split whose inputs are asked.
        measure: What the table and the figure show: prob (probability of the answer's first token), seq_prob (of the
            whole answer), accuracy, exact (the answer, and then the end of the text or line), or ranked (accuracy when
            only the task's answers are compared).
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
    how.recipe()  # wrong options are an error before any model is loaded
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
    """Print the table, and below it the unit and the path of the figure."""
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
    print(f"\n{measure}; excess: how much more the instruction falls than the knowledge, in {unit}; figure: {figure}")


def _between(row: Mapping[Hashable, Any]) -> str:
    """The interval of the excess, as text; a dash where there is none (NaN)."""
    low, high = row["excess_lo"], row["excess_hi"]
    return "–" if low != low else f"{low:.2f} to {high:.2f}"
