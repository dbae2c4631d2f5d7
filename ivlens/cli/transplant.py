"""`ivlens transplant`: head outputs and blocks of a model in its tuned copy, and the other way round."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ivlens.cli._options import AsJson, FigureSuffix, PromptOptions, quiet_libraries
from ivlens.cli._output import p_note, p_text, print_json, print_table, told

if TYPE_CHECKING:
    from ivlens.analysis.transplant.several import TransplantPlan
    from ivlens.prompts.recipe import PromptRecipe

KS = (1, 5, 10, 20, 40)
_RECEIVING = {"after": "tuned", "before": "first"}


@Parameter(name="*")
@dataclass(frozen=True)
class TransplantAmounts:
    """What is transplanted, and on how many prompts.

    Attributes:
        task: A task that the first model knows: a built-in name or a path; may be given several times. By default six
            tasks that the built-in model was trained on.
        k: A number of heads, strongest first; may be given several times. By default 1, 5, 10, 20 and 40.
        n_prompts: Number of corrupted prompts of each task for the effects, by which heads are ranked.
        n_judge_prompts: At most so many prompts of each task for accuracy.
        n_draws: Sets of random heads of the same layers beside each number.
        positions: every: at the last prompt token and at each token of the answer; prompt: at the last prompt token.
        splices: Also splice the models: lower blocks of one, upper blocks of the other, at each layer.
        device: auto, cpu, cuda, cuda:1 ...
        dtype: auto (as stored), float32, bfloat16 or float16.
    """

    task: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    k: Annotated[tuple[int, ...], Parameter(negative="")] = ()
    n_prompts: int = 24
    n_judge_prompts: int | None = None
    n_draws: int = 19
    positions: Literal["prompt", "every"] = "every"
    splices: bool = True
    device: str = "auto"
    dtype: str = "auto"

    def plan(self, recipe: "PromptRecipe") -> "TransplantPlan":
        """What is measured; ValueError for an amount that cannot be."""
        from ivlens.analysis.transplant.heads import TransplantOptions
        from ivlens.analysis.transplant.several import TransplantPlan
        from ivlens.analysis.transplant.splicing import SpliceOptions
        from ivlens.common.checks import check_count

        for k in self.k:
            check_count("--k", k, 1)
        heads = TransplantOptions(ks=self.k or KS, n_draws=self.n_draws, positions=self.positions)
        splices = SpliceOptions() if self.splices else None
        return TransplantPlan(heads, splices, self.n_prompts, self.n_judge_prompts, recipe)


def transplant(
    before: str,
    after: str,
    *,
    amounts: TransplantAmounts | None = None,
    prompts: PromptOptions | None = None,
    out: Path = Path("out/transplant"),
    figures: FigureSuffix = "html",
    as_json: AsJson = False,
) -> int:
    """Put head outputs of a model into its tuned copy, and the other way round: is the old computation still there?

    On the same prompts of earlier tasks, outputs of the strongest heads of the first model, for each prompt its own,
    take the place of those in the tuned model. If this brings the task back, and not as much with random heads of the
    same layers, training has changed what these heads say and not what is made of it. The other direction shows whether
    the tuned model's heads take the task away. Splices run the lower blocks of one model and the upper ones of the
    other: where accuracy jumps, there training has changed the task.

    What was measured of each task is kept in `--out`; the same command goes on where it was interrupted.

    Example: `ivlens transplant pocket out/second_letter --task antonym --task country_capital --out out/transplant`

    Args:
        before: The first model: "pocket", "smollm2", a folder or a Hub name.
        after: The tuned model: a folder with a whole model or a peft adapter, or with several in its subfolders, of
            which the last one is taken; or a model by its name, such as smollm2-terse.
        out: Folder for transplant.parquet, splices.parquet, the figures, and store/, which keeps what was measured.
        figures: Suffix of the figures.
    """
    chosen, how = amounts or TransplantAmounts(), prompts or PromptOptions()
    how.recipe()  # wrong options are an error before any model is loaded
    quiet_libraries()
    chosen.plan(how.recipe())
    from ivlens.analysis.transplant.several import transplants
    from ivlens.common.disk import check_folder
    from ivlens.common.saves import filling
    from ivlens.common.store.store import KEPT, Store
    from ivlens.models.checkpoints import checkpoint_series
    from ivlens.runs.study.plan import EARLIER_TASKS
    from ivlens.show.figures.export import write_figures
    from ivlens.show.figures.transplants import splice_plot, transplant_plot
    from ivlens.tasks.bank import load_task

    check_folder(out)
    tasks = [load_task(name) for name in chosen.task or EARLIER_TASKS]
    series = checkpoint_series(after, first=before, device=chosen.device, dtype=chosen.dtype)
    last = series.later[-1]
    plan = chosen.plan(how.chosen(series.first.open, tasks))
    models = series.first.key(), last.key()
    swapped, spliced = transplants(series.first.open, last.open, models, tasks, plan, Store(out / KEPT))
    drawn = {"transplant": transplant_plot(swapped)} | ({"splices": splice_plot(spliced)} if len(spliced) else {})
    with filling(out) as scratch:
        swapped.to_parquet(scratch / "transplant.parquet")
        if len(spliced):
            spliced.to_parquet(scratch / "splices.parquet")
        _, trouble = write_figures({scratch / f"{name}.{figures}": figure for name, figure in drawn.items()})
    if as_json:
        facts = {"before": series.first.name, "after": last.name, "recipe": plan.recipe.to_dict(), "out": str(out)}
        print_json({**facts, "transplant": swapped.to_dict("records"), "splices": spliced.to_dict("records")})
        return told(trouble)
    _print(swapped.to_dict("records"))
    print(p_note(chosen.n_draws, len(tasks)))
    print(f"\naccuracy on test inputs; written: {out}")
    return told(trouble)


def _print(rows: list[dict[Any, Any]]) -> None:
    """Print the table of transplants: a row for each model, number and kind of heads."""
    head = ["task", "into the", "heads", "k", "accuracy", "Wilson 95 %", "gain", "share", "p"]
    print_table(
        head,
        [[row["task"], _RECEIVING[row["into"]], row["heads"], row["k"] or "–", row["accuracy"],
          f"{row['accuracy_lo']:.2f} to {row['accuracy_hi']:.2f}", _signed(row.get("gain")), _signed(row.get("share")),
          p_text(row.get("p_holm"))]
         for row in rows],
    )  # fmt: skip


def _signed(value: float | None) -> str:
    """A number with its sign; a dash where there is none."""
    return "–" if value is None or value != value else f"{round(value, 2) + 0.0:+.2f}"  # never "-0.00"
