"""`ivlens demo`: the whole method on one model, from effects to judged vectors, with a report."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ivlens.cli._options import AsJson, ModelOptions, PromptOptions
from ivlens.cli._output import print_json, print_table

if TYPE_CHECKING:
    from ivlens.show.demo.run import DemoResult

# conditions of the table, in the order of its columns, and their headings
COLUMNS = {
    "task": "task",
    "bare": "bare input",
    "iv": "IV added",
    "iv_heads": "its heads",
    "random": "random",
    "other_tasks": "other IVs",
    "random_heads": "random heads",
    "constant": "constant",
    "clean": "clean prompt",
}


@Parameter(name="*")
@dataclass(frozen=True)
class Amounts:
    """How much is measured.

    Attributes:
        n_prompts: Corrupted prompts of each task to measure effects on; by default 24 on pocket, 16 on other models.
        k: Number of heads in each vector.
        steps: Steps of the training at the end, with the built-in model; 0: no training.
    """

    n_prompts: int | None = None
    k: int = 10
    steps: int = 120


def demo(
    *,
    where: ModelOptions | None = None,
    task: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    amounts: Amounts | None = None,
    prompts: PromptOptions | None = None,
    out: Path = Path("out/demo"),
    as_json: AsJson = False,
) -> None:
    """Measure effects, build vectors, judge them beside their controls, and write a report.

    With the built-in model the command also teaches one new task, with and without guidance, to show what is forgotten.
    It takes about a minute on two cores, and writes index.html (which works offline), results as parquet, effects and
    vectors as safetensors. Where no option fixes the form of prompt, each task is asked in the form in which the model
    answers it best.

    Example: `ivlens demo`, or `ivlens demo --model ./checkpoint --task tasks/antonym.json --task tasks/synonym.json`

    Args:
        task: A built-in task or a path; give it twice or more. By default eight tasks that share their inputs; on
            smollm2 four tasks that it can answer, with five demonstrations.
        out: Folder to write to.
    """
    from ivlens.common.disk import check_folder
    from ivlens.show.demo.run import DemoOptions, run_demo
    from ivlens.show.demo.writing import summary, write_demo
    from ivlens.show.pages.demo import write_page

    check_folder(out)  # before anything is measured
    where, asked, amount = where or ModelOptions(), prompts or PromptOptions(), asdict(amounts or Amounts())
    recipe = asked.recipe()
    given = None if asked.is_open else recipe  # None: a form is looked for, for each task
    options = DemoOptions(
        "pocket" if where.model is None else where.model, task or None, recipe=given, seed=recipe.seed, **amount
    )
    result = run_demo(options, load=where.load)
    write_demo(result, out, also=lambda folder: write_page(result, folder / "index.html"))
    page = out / "index.html"
    if as_json:
        print_json({**summary(result), "recipe": given and given.to_dict(), "page": str(page)})
        return
    print(f"Accuracy on test inputs, {result.model}\n")
    _print_result(result)
    _print_tuning(result)
    print(f"\nreport: {page} ({result.seconds:.0f} s)")


def _print_result(result: "DemoResult") -> None:
    records = result.table().to_dict("records")
    columns = [name for name in COLUMNS if name in records[0]]
    rows = [
        [*(record[name] for name in columns), f"layer {record['layer']:g}, alpha {record['alpha']:g}, {record['site']}"]
        for record in records
    ]
    means = ["mean", *(sum(record[name] for record in records) / len(records) for name in columns[1:]), ""]
    print_table([*(COLUMNS[name] for name in columns), "IV added at"], [*rows, means])


def _print_tuning(result: "DemoResult") -> None:
    if result.tuning is None:
        if result.options.steps and result.options.model == "pocket":
            print("\nNo task was taught: LoRA needs the package peft; pip install 'ivlens[tune]'.")
        return
    guided = {"none": "plain LoRA", "instructions_lighter": "guided LoRA"}
    names = {"task": "task", "role": "role", "before": "before", **guided}
    print(f"\nTaught one more task in {result.tuning.steps} steps; guided: earlier tasks are rehearsed meanwhile\n")
    print_table([*names.values()], [[row[name] for name in names] for row in result.tuning.scores.to_dict("records")])
