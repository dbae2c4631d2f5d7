"""`ivlens dynamics`: measure how Instruction Vectors change over a folder of checkpoints."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ivlens.cli._options import AsJson, FigureSuffix, PromptOptions, quiet_libraries
from ivlens.cli._output import p_note, p_text, print_json, print_table, told
from ivlens.cli.forget import SeriesOptions, said

if TYPE_CHECKING:
    import pandas as pd

    from ivlens.analysis.dynamics.causal import CausalOptions
    from ivlens.analysis.dynamics.comparison import Dynamics
    from ivlens.analysis.dynamics.stages import TrackOptions
    from ivlens.common.store.store import Store
    from ivlens.models.checkpoints import CheckpointSeries
    from ivlens.tasks.task import Task

# columns of the printed table, and their headings
SHOWN = {
    "checkpoint": "checkpoint",
    "task": "task",
    "accuracy": "accuracy",
    "iv_cosine_fixed": "IV cosine",
    "iv_cosine_rechosen": "heads re-chosen",
    "head_overlap": "head overlap",
    "aie_rank_correlation": "AIE ranks",
    "activation_cosine": "hidden state",
}


@Parameter(name="*")
@dataclass(frozen=True)
class TrackedOptions(SeriesOptions):
    """The models and tasks that are measured, and on how many prompts.

    Attributes:
        k: Number of heads in a vector.
        n_prompts: Number of corrupted prompts of each task for the effects.
        n_judge_prompts: At most so many prompts of each task for accuracy.
    """

    k: int = 10
    n_prompts: int = 24
    n_judge_prompts: int | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class CausalTests:
    """Tests of whether the vectors of one checkpoint still work in another.

    Attributes:
        causal: Also add vectors of the first model to the last one and vectors of the last model to the first one,
            beside their controls (causal.parquet): write test, read test, re-injection.
        new: The task that was trained: with `--causal`, its vector is also subtracted in the last model.
        n_draws: Number of random vectors, and of sets of random heads, beside every vector.
    """

    causal: Annotated[bool, Parameter(negative="")] = False
    new: str | None = None
    n_draws: int = 19


def dynamics(
    checkpoints: str,
    *,
    which: TrackedOptions | None = None,
    prompts: PromptOptions | None = None,
    tests: CausalTests | None = None,
    out: Path = Path("out/dynamics"),
    figures: FigureSuffix = "html",
    as_json: AsJson = False,
) -> int:
    """Measure Instruction Vectors of earlier tasks in every checkpoint: do they stay, and are they written and read?

    All tasks and checkpoints are asked in one form of prompt. If no option gives a form, it is the one in which the
    first model answers these tasks best on average.

    The measurements of every checkpoint are kept in `--out`. The same command goes on where it was interrupted, and
    measures new checkpoints.

    Example: `ivlens dynamics out/second_letter --task antonym --task english_french --causal --out out/dynamics`

    Args:
        checkpoints: Folder with whole models or peft adapters in its subfolders, as `ivlens tune --checkpoint-every N`
            writes it; or one checkpoint, or a model by its name, such as smollm2-terse.
        out: Folder for tasks.parquet, heads.parquet, layers.parquet, similarity.parquet, causal.parquet, the figures,
            and store/, which keeps the measurements of every checkpoint.
        figures: Suffix of the figures.
    """
    chosen, asked, how = which or TrackedOptions(), tests or CausalTests(), prompts or PromptOptions()
    how.recipe()  # wrong options are an error before any model is loaded
    if asked.new is not None and not asked.causal:
        raise ValueError(f"--new is {asked.new!r} without --causal, expected both: only causal tests use it; add it.")
    quiet_libraries()
    from ivlens.analysis.dynamics.causal import CausalOptions
    from ivlens.analysis.dynamics.recording import track
    from ivlens.analysis.dynamics.stages import TrackOptions
    from ivlens.common.checks import check_count
    from ivlens.common.disk import check_folder
    from ivlens.common.store.store import KEPT, Store

    check_folder(out)
    # all are opened before the long work, so that an unknown task is an error now
    tasks, series = chosen.tasks(*([] if asked.new is None else [asked.new])), chosen.series(checkpoints)
    taught = None if asked.new is None else tasks.pop()
    judged = chosen.n_judge_prompts
    for name, count in (("--n-prompts", chosen.n_prompts), ("--n-judge-prompts", judged), ("--k", chosen.k)):
        check_count(name, count, 1)
    check_count("n_draws", asked.n_draws, 1)
    recipe = how.chosen(series.first.open, tasks)
    options = TrackOptions(n_prompts=chosen.n_prompts, k=chosen.k, n_judge_prompts=judged, recipe=recipe)
    causal = CausalOptions(n_prompts=judged, n_draws=asked.n_draws, recipe=recipe) if asked.causal else None
    store = Store(out / KEPT)
    found = track(series, tasks, options, folder=store.folder, on_checkpoint=said)
    table = None if causal is None else _causal(series, found, tasks, taught, causal, options, store)
    trouble = _write(found, table, out, figures)
    rows = found.tasks.to_dict("records")
    if as_json:
        transfers = [] if table is None else table.to_dict("records")
        print_json({"tasks": rows, "causal": transfers, "recipe": recipe.to_dict(), "out": str(out)})
        return told(trouble)
    print_table([*SHOWN.values()], [[row[name] for name in SHOWN] for row in rows])
    if table is not None:
        print()
        print_table(
            ["test", "task", "condition", "accuracy", "Wilson 95 %", "p (Holm)"],
            [[row["test"], row["task"], row["condition"], row["accuracy"],
              f"{row['accuracy_lo']:.2f} to {row['accuracy_hi']:.2f}", p_text(row.get("p_holm"))]
             for row in table.to_dict("records")],
        )  # fmt: skip
        print(p_note(asked.n_draws, len(tasks)))
    print(f"\naccuracy on select inputs, of causal tests on test inputs; written: {out}")
    return told(trouble)


def _write(found: "Dynamics", tests: "pd.DataFrame | None", out: Path, suffix: str) -> str:
    """Write all tables and figures; returns why figures could not be written as images, or an empty text."""
    from ivlens.analysis.dynamics.cosines import similarity
    from ivlens.common.saves import filling
    from ivlens.show.figures.causal import causal_plot
    from ivlens.show.figures.dynamics import drift_heatmap, dynamics_curves
    from ivlens.show.figures.export import write_figures
    from ivlens.show.figures.similarity import similarity_matrix

    vectors = {
        f"{task} · {stage.name}": stage.vector(task) for stage in (found.stages[0], found.stages[-1])
        for task in stage.tasks
    }  # fmt: skip
    drawn = {
        "curves": dynamics_curves(found.tasks),
        "drift": drift_heatmap(found),
        "similarity": similarity_matrix([replace(vector, task=name) for name, vector in vectors.items()]),
    }
    if tests is not None:
        drawn["causal"] = causal_plot(tests)
    with filling(out) as scratch:
        for name in ("tasks", "heads", "layers"):
            getattr(found, name).to_parquet(scratch / f"{name}.parquet")
        similarity(vectors).to_parquet(scratch / "similarity.parquet")
        if tests is not None:
            tests.to_parquet(scratch / "causal.parquet")
        return write_figures({scratch / f"{name}.{suffix}": figure for name, figure in drawn.items()})[1]


def _causal(
    series: "CheckpointSeries",
    found: "Dynamics",
    tasks: "list[Task]",
    new: "Task | None",
    options: "CausalOptions",
    tracked: "TrackOptions",
    store: "Store",
) -> "pd.DataFrame":
    """The table of all causal tests between the first and the last model, from the store if it is there."""
    import pandas as pd

    from ivlens.analysis.dynamics.causal import causal_tests
    from ivlens.analysis.dynamics.stages import measure_stage
    from ivlens.common.store.keys import versions
    from ivlens.prompts.recipe import plain_options
    from ivlens.steering.summary import corrected

    last = series.later[-1]

    def measured() -> "pd.DataFrame":
        before, after, vector = series.first.open(), last.open(), None
        if new is not None:
            # the new task is asked by the same form, with demonstrations or an instruction of its own
            alike = replace(tracked, recipe=tracked.recipe.for_other_tasks(), n_judge_prompts=None)
            vector = measure_stage(after, [new], alike, first=before).vector(new.name)
        tests = causal_tests(before, after, (found.stages[0], found.stages[-1]), tasks, new=vector, options=options)
        return corrected(pd.concat([test.frame() for test in tests], ignore_index=True), by=("test", "condition"))

    settings = [dict(stage.settings) for stage in (found.stages[0], found.stages[-1])]
    what = {"kind": "causal", "models": [series.first.key(), last.key()], "stages": settings, **versions()}
    hashes = [task.full_hash() for task in tasks]  # the settings lack what divides inputs into splits
    what |= {"options": plain_options(options), "tasks": hashes, "new": None if new is None else new.full_hash()}
    return store.table(what, measured)
