"""`ivlens evaluate`: what the Instruction Vectors of several tasks do in a model, with all controls and a report."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ivlens.cli._options import AsJson, ColumnOptions, FigureSuffix, ModelOptions, PromptOptions
from ivlens.cli._output import p_note, print_json, print_table, told

if TYPE_CHECKING:
    from ivlens.prompts.recipe import PromptRecipe
    from ivlens.runs.evaluation.plan import EvaluateOptions
    from ivlens.runs.evaluation.results import TaskEvaluations

Rows = Literal[
    "necessity", "by_k", "mean_difference", "distributed", "trained", "other_templates", "side_effects", "none"
]


@Parameter(name="*")
@dataclass(frozen=True)
class EvaluateAmounts:
    """How much is measured.

    Attributes:
        rows: Further rows of each judgement; give it once or more, or none. By default all. necessity: clean prompts
            with outputs of heads replaced; by_k: other numbers of heads; mean_difference: differences of mean streams;
            distributed: each head in its own layer; trained: a trained vector; other_templates: other templates;
            side_effects: what vectors do to unrelated texts.
        k: Number of heads in a vector.
        n_prompts: Corrupted prompts of each task on which effects are measured.
        n_judge_prompts: At most so many prompts of each split in every judgement.
        n_draws: Draws of each random control of a vector.
        n_more_draws: Draws of each random control of the further rows.
    """

    rows: Annotated[tuple[Rows, ...], Parameter(negative="")] = ()
    k: int = 10
    n_prompts: int = 24
    n_judge_prompts: int = 48
    n_draws: int = 19
    n_more_draws: int = 5

    def options(self, recipe: "PromptRecipe") -> "EvaluateOptions":
        """The options of the evaluation.

        Raises:
            ValueError: an amount that cannot be, or `none` beside other rows.
        """
        from ivlens.runs.evaluation.plan import EvaluateOptions
        from ivlens.steering.more_rows import ROWS, MoreRows

        if "none" in self.rows and len(self.rows) > 1:
            raise ValueError(
                f"--rows is {', '.join(self.rows)}, expected none alone, or other rows; leave it out for all."
            )
        more = None if "none" in self.rows else MoreRows(tuple(self.rows) or ROWS, n_draws=self.n_more_draws)
        names = ("k", "n_prompts", "n_judge_prompts", "n_draws")
        return EvaluateOptions(**{name: getattr(self, name) for name in names}, more=more, recipe=recipe)


def evaluate(
    *,
    where: ModelOptions | None = None,
    task: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    columns: ColumnOptions | None = None,
    amounts: EvaluateAmounts | None = None,
    prompts: PromptOptions | None = None,
    out: Path = Path("out/evaluate"),
    figures: FigureSuffix = "json",
    as_json: AsJson = False,
) -> int:
    """Judge the Instruction Vector of each task beside all controls and other ways to make a vector; write a report.

    For each task: effects of all heads, the vector of the strongest, its accuracy on bare *test* inputs beside random
    vectors, vectors of random heads and of other tasks; whether its heads are needed; other numbers of heads; side
    effects. The vectors of several tasks are controls of each other. All tasks are asked in one form of prompt. Where
    no option fixes it, it is the form in which the model answers these tasks best on average.

    Every part is kept in `--out` as soon as it is done: the same command goes on where it was interrupted.

    Example: `ivlens evaluate --model smollm2 --task third_person --task present_past --out out/evaluate`, or for a
    quick look `ivlens evaluate --task antonym --n-draws 5 --rows by_k --rows necessity`

    Args:
        task: A task, built in or a path; give it once or more.
        out: Folder for the report (index.html, works offline), rows.parquet, by_vector.parquet, heads.parquet,
            settings.parquet, vectors and figures, and for store/, which keeps all parts.
        figures: Format in which each figure is also written: png, svg, pdf, html or json.
    """
    from ivlens.common.disk import check_folder
    from ivlens.common.progress import say
    from ivlens.runs.evaluation.running import evaluate_tasks
    from ivlens.show.figures.export import write_figures
    from ivlens.show.figures.theme import LIGHT
    from ivlens.show.pages.evaluate import evaluation_figures, write_page

    if not task:
        raise ValueError("ivlens evaluate got no --task, expected one or more; try --task third_person.")
    check_folder(out)  # before minutes of measuring
    how, amounts = prompts or PromptOptions(), amounts or EvaluateAmounts()
    amounts.options(how.recipe())  # refuses wrong options before the model is loaded
    tasks = (columns or ColumnOptions()).load_all(task)
    model = (where or ModelOptions()).load()
    # one form for all tasks: they are compared, and outputs of heads are exchanged between their prompts
    options = amounts.options(how.chosen(model, tasks))
    try:
        result = evaluate_tasks(model, tasks, options, folder=out, say=lambda text: say(f"ivlens: {text}"))
    except KeyboardInterrupt:
        say(f"\nivlens: what is done is kept in {out}; the same command goes on from there.")
        raise
    result.write(out, also=lambda folder: write_page(result, folder / "index.html"))
    # after all else is written: without a browser for images this fails, and nothing else must be lost
    drawn = {
        out / "figures" / f"{_named(name, result)}.{figures}": figure
        for name, figure in evaluation_figures(result, LIGHT).items()
    }
    _, trouble = write_figures(drawn)
    if as_json:
        print_json({**_about(result), "page": str(out / "index.html")})
        return told(trouble)
    for number in range(len(result.tasks)):
        _print(result, number)
    print(f"report: {out / 'index.html'}")
    return told(trouble)


def _named(figure: str, result: "TaskEvaluations") -> str:
    """A figure's name in the folder: with the name of its task in place of the task's number."""
    from ivlens.common.files import file_name

    name, _, number = figure.rpartition("-")
    return f"{file_name(result.tasks[int(number)].name)}-{name}" if name else figure


def _about(result: "TaskEvaluations") -> dict[str, Any]:
    """The main results as plain values."""
    from ivlens.models.mixers import head_labels

    tasks = [
        {
            "task": effects.task,
            "best": evaluation.best._asdict(),
            "heads": head_labels(vector.heads, vector.model.n_heads),
            "clean_accuracy": effects.clean_accuracy,
            "bare_accuracy": effects.bare_accuracy,
            "warnings": list(effects.warnings),
        }
        for effects, vector, evaluation in zip(result.effects, result.vectors, result.evaluations, strict=True)
    ]
    return {**result.about(), "tasks": tasks, "rows": result.table.to_dict("records")}


def _print(result: "TaskEvaluations", number: int) -> None:
    """Print the tables of one task."""
    from ivlens.models.mixers import head_labels
    from ivlens.show.judged_tables import groups
    from ivlens.show.pages.evaluate import rows_of_task

    effects, evaluation, options = result.effects[number], result.evaluations[number], result.options
    layer, alpha, site = evaluation.best
    print(f"{effects.task} on {result.model}")
    print(f"prompts {effects.recipe}")
    vector = result.vectors[number]
    print(f"heads   {' '.join(head_labels(vector.heads, vector.model.n_heads))}")
    print(f"vector  added at layer {layer}, alpha {alpha:g}, {site}")
    for warning in effects.warnings:
        print(f"warning {warning}")
    found = groups(rows_of_task(result.table, effects.task))
    for group in found:
        print(f"\n{group.title}\n")
        print_table(group.head, group.rows)
    print(f"\n{p_note(options.n_draws, len(result.tasks))}")
    if options.more is not None and any("p" in group.head for group in found[1:]):
        n_more = options.n_draws if options.more.n_draws is None else options.more.n_draws
        print(f"further rows have {n_more} draws: p is never below {1 / (1 + n_more):.3g} there")
    print()
