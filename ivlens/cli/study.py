"""`ivlens study`: test the paper's claims on one model and one sequence of tasks, with a report."""

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
        method: Training method: full, lora, inclora, ewc, olora, lwf or replay.
        steps: Optimiser steps for each new task.
        lr: Learning rate.
        batch_size: Prompts in one optimiser step.
        n_records: Checkpoints that are measured during each new task.
        n_prompts: Corrupted prompts of each task on which effects are measured.
        n_judge_prompts: Prompts of each earlier task in every judgement.
        n_exam_prompts: Prompts of each task wherever a training is judged, and of each general task.
        n_draws: Number of random vectors, and of sets of random heads, as controls of every vector.
        k: Number of heads in a vector.
        guidance: A kind of guidance that is compared with plain training; give it once for each, as named for tune.
            By default iv, iv/zero_vector and instructions_lighter.
        general: A task in which general abilities are measured before and after; give it once for each. By default six.
        instructed: Train the new tasks by their instructions, even where earlier tasks are asked by demonstrations.
            Trained by demonstrations, a model may forget nothing.
    """

    method: str = "lora"
    steps: int = 50
    lr: float = 1e-3
    batch_size: int = 32
    n_records: int = 3
    n_prompts: int = 24
    n_judge_prompts: int = 32
    n_exam_prompts: int = 16
    n_draws: int = 19
    k: int = 10
    guidance: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    general: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    instructed: Annotated[bool, Parameter(negative="")] = False


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
    """Train on new tasks, measure what is forgotten, and test every claim of the paper beside its controls.

    All tasks are asked in one form of prompt, but for new ones with --instructed. Where no option fixes it, it is the
    form in which the model answers the earlier tasks best on average.

    An interrupted study goes on from its trainings when the same command is given again.

    The report (index.html, works offline) has four steps: is the instruction forgotten, or the knowledge; does the
    vector stay; is it erased or overlaid; does guidance keep it. All tables (parquet) and figures are written too. With
    the built-in model it takes a few minutes on two cores.

    Example: `ivlens study --model pocket --out out/study`, or
    `ivlens study --model ./checkpoint --earlier tasks/antonym.json --earlier tasks/capital.json --new tasks/new.json`

    Args:
        earlier: A task that the model knows, built in or a path; give it twice or more. By default six with clozes.
        new: A task that the model is trained on; give it once or more, in order. By default two that pocket was not
            trained on.
        out: Folder to write to.
        figures: Format in which each figure is also written: png, svg, pdf, html or json.
    """
    from ivlens.common.disk import check_folder
    from ivlens.common.progress import say
    from ivlens.runs.study.results import write_study
    from ivlens.runs.study.running import run_study
    from ivlens.show.figures.export import write_figures
    from ivlens.show.figures.theme import LIGHT
    from ivlens.show.pages.study import about, claims_of, study_figures, write_page
    from ivlens.tasks.bank import load_task

    check_folder(out)  # before minutes of training
    where, how = where or ModelOptions(), prompts or PromptOptions()
    options = _options("pocket" if where.model is None else where.model, earlier, new, amounts or StudyAmounts(), how)
    known = [load_task(name) for name in options.earlier]
    model = where.load()
    # one form for all tasks: what a task loses must not depend on how it is asked
    options = replace(options, recipe=how.chosen(model, known))
    result = run_study(options, model=model, folder=out, say=lambda text: say(f"ivlens: {text}"))

    def also(folder: Path) -> None:
        write_page(result, folder / "index.html")
        claims_of(result).to_parquet(folder / "claims.parquet")

    write_study(result, out, also=also)
    # after all else is written: without a browser for images this fails, and minutes of training must not be lost
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
    """The study's options; tasks that are not given stay at their defaults."""
    from dataclasses import asdict

    from ivlens.prompts.recipe import PromptRecipe
    from ivlens.runs.study.plan import GUIDANCE, PLAIN, StudyOptions

    chosen = asdict(amounts)
    named = {"earlier": earlier, "new": new, "general": chosen.pop("general")}
    tasks = {name: value for name, value in named.items() if value}
    recipe, given = prompts.recipe(), chosen.pop("guidance") or GUIDANCE
    chosen["training"] = PromptRecipe(seed=recipe.seed) if chosen.pop("instructed") else None
    kinds = tuple(dict.fromkeys((PLAIN, *given)))
    return StudyOptions(model=model, **tasks, **chosen, guidance=kinds, recipe=recipe, seed=recipe.seed)


def _print(result: "StudyResult") -> None:
    from ivlens.runs.study.claims import interval_text
    from ivlens.show.pages.study import claims_of

    rows = [
        [row["claim"], interval_text(row), row["paper"], row["verdict"], row["why"]]
        for row in claims_of(result).to_dict("records")
    ]
    print_table(["claim", "here", "the paper", "verdict", "why not testable"], rows)
