"""`ivlens study`: the paper's argument on one model and one sequence of tasks, as one page."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ivlens.cli._options import AsJson, FigureSuffix, ModelOptions, PromptOptions
from ivlens.cli._output import print_json, print_table, told

if TYPE_CHECKING:
    from ivlens.runs.study.plan import StudyOptions
    from ivlens.runs.study.results import StudyResult


@Parameter(name="*")
@dataclass(frozen=True)
class StudyAmounts:
    """How much is trained and measured.

    Attributes:
        method: full, lora, inclora, ewc, olora, lwf or replay.
        steps: Optimiser steps for each new task.
        lr: Learning rate.
        n_prompts: Corrupted prompts of each task that effects are measured on.
        n_judge_prompts: Prompts of each earlier task in every judgement.
        n_draws: Random vectors, and sets of random heads, beside every vector.
        k: Heads in a vector.
    """

    method: str = "lora"
    steps: int = 50
    lr: float = 1e-3
    n_prompts: int = 24
    n_judge_prompts: int = 32
    n_draws: int = 19
    k: int = 10


def study(
    *,
    where: ModelOptions | None = None,
    earlier: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    new: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    amounts: StudyAmounts | None = None,
    prompts: PromptOptions | None = None,
    out: Path = Path("out/study"),
    figures: FigureSuffix = "json",
    as_json: AsJson = False,
) -> int:
    """Train on new tasks, take apart what is forgotten, and test every claim of the paper beside its controls.

    All tasks are asked in one form; where no option says in which, it is the one in which the model answers the earlier
    tasks best on average.

    An interrupted study goes on from its trainings when the same command is given again.

    The page (index.html, works offline) tells it in four steps: instruction or knowledge; does the vector stay; erased
    or overlaid; does guidance keep it. Beside it lie all tables as parquet and all figures. A few minutes with the
    built-in model on two cores.

    Example: `ivlens study --model pocket --out out/study`, or
    `ivlens study --model ./checkpoint --earlier tasks/antonym.json --earlier tasks/capital.json --new tasks/new.json`

    Args:
        earlier: A task the model knows, built in or a path; give it twice or more. By default six with clozes.
        new: A task it is trained on, in order. By default two that pocket was not trained on.
        out: Folder to write to.
        figures: Also write each figure as png, svg, pdf, html or json.
    """
    from ivlens.common.disk import check_folder
    from ivlens.common.progress import say
    from ivlens.runs.study.results import write_study
    from ivlens.runs.study.running import run_study
    from ivlens.show.figures.export import write_figures
    from ivlens.show.figures.theme import LIGHT
    from ivlens.show.pages.study import about, claims_of, study_figures, write_page
    from ivlens.tasks.bank import load_task

    check_folder(out)
    where, how = where or ModelOptions(), prompts or PromptOptions()
    options = _options("pocket" if where.model is None else where.model, earlier, new, amounts or StudyAmounts(), how)
    known = [load_task(name) for name in options.earlier]
    model = where.load()
    options = replace(options, recipe=how.chosen(model, known))
    result = run_study(options, model=model, folder=out, say=lambda text: say(f"ivlens: {text}"))

    def also(folder: Path) -> None:
        write_page(result, folder / "index.html")
        claims_of(result).to_parquet(folder / "claims.parquet")

    write_study(result, out, also=also)
    # last: a machine without a browser for images must not cost minutes of training
    drawn = {out / "figures" / f"{name}.{figures}": figure for name, figure in study_figures(result, LIGHT).items()}
    _, trouble = write_figures(drawn)
    if as_json:
        print_json({**about(result), "recipe": options.recipe.to_dict(), "page": str(out / "index.html")})
        return told(trouble)
    _print(result)
    print(f"\nreport: {out / 'index.html'} ({result.seconds:.0f} s)")
    return told(trouble)


def _options(
    model: str, earlier: tuple[str, ...], new: tuple[str, ...], amounts: StudyAmounts, prompts: PromptOptions
) -> "StudyOptions":
    from dataclasses import asdict

    from ivlens.runs.study.plan import StudyOptions

    tasks = {name: value for name, value in (("earlier", earlier), ("new", new)) if value}
    recipe = prompts.recipe()
    return StudyOptions(model=model, **tasks, **asdict(amounts), recipe=recipe, seed=recipe.seed)


def _print(result: "StudyResult") -> None:
    from ivlens.runs.study.claims import interval_text
    from ivlens.show.pages.study import claims_of

    rows = [
        [row["claim"], interval_text(row), row["paper"], row["verdict"]] for row in claims_of(result).to_dict("records")
    ]
    print_table(["claim", "here", "the paper", "verdict"], rows)
