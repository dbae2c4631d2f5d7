"""`ivlens prompts`: find the form of prompt in which a model answers a task best."""

import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ivlens.cli._options import AsJson, ColumnOptions, ModelOptions
from ivlens.cli._output import print_json, print_table

if TYPE_CHECKING:
    from ivlens.forward.finding import PromptSearch


@Parameter(name="*")
@dataclass(frozen=True)
class SearchOptions:
    """The forms of prompt that are tried.

    Attributes:
        template: plain, after, qa, chat, or a JSON file with the fields of a template; can be given several times. By
            default all four, chat only if the tokenizer has a chat template.
        shots: Numbers of demonstrations, separated by commas.
        n_prompts: Number of inputs on which the best forms are tried.
        seed: Seed of splits, inputs, instructions and demonstrations.
    """

    template: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    shots: str = "0,5,10"
    n_prompts: int = 24
    seed: int = 0


def prompts(
    *,
    task: str,
    columns: ColumnOptions | None = None,
    where: ModelOptions | None = None,
    what: SearchOptions | None = None,
    as_json: AsJson = False,
) -> None:
    """Find the form of prompt in which a model answers a task best: template, demonstrations, instruction or none.

    Every form is tried on eight *select* inputs, the best four on all. A form's gain is the accuracy of its prompts
    minus the accuracy of the same inputs without instruction and demonstrations. Where no option fixes the form, other
    commands look for it in the same way and remember it; only the built-in model is asked as it was trained.

    Example: `ivlens prompts --model ./checkpoint --task present_past`, or with a template of your own
    `ivlens prompts --model ./checkpoint --task present_past --template plain --template mine.json --shots 0,3,8`

    Args:
        task: Name of a built-in task, or the path of a file or folder that holds a task.
    """
    from ivlens.forward.finding import find_prompts
    from ivlens.prompts.templates import find_template

    asked, shots = what or SearchOptions(), _numbers((what or SearchOptions()).shots)
    # templates and task are opened first: what is wrong with them is refused before the model is loaded
    templates = [find_template(name) for name in asked.template] or None
    loaded = (columns or ColumnOptions()).load(task)
    model = (where or ModelOptions()).load()
    search = find_prompts(model, loaded, templates=templates, shots=shots, n_prompts=asked.n_prompts, seed=asked.seed)
    options = options_of(search, asked.template)
    if as_json:
        print_json(
            {
                "task": search.task,
                "model": asdict(search.model),
                "forms": search.table.to_dict("records"),
                "n_forms": search.n_forms,
                "recipe": search.best.to_dict(),
                "options": options,
                "warning": search.warning,
            }
        )
        return
    _print(search)
    print(f"\nbest: {options}")
    if search.warning:
        print(f"\n{search.warning}")


def options_of(search: "PromptSearch", given: tuple[str, ...] = ()) -> str:
    """The best form as options of other commands; a template that came from a file is named by that file.

    Args:
        given: The templates as the user gave them.
    """
    from ivlens.forward.forms import told_by
    from ivlens.prompts.templates import find_template

    best = search.best
    # a template from a file has no name that another command would know
    files = [name for name in given if find_template(name) == find_template(best.template)]
    template = best.template if isinstance(best.template, str) else files[0] if files else best.template.name
    found = f"--template {shlex.quote(template)} --n-shots {best.n_shots} --instruction {told_by(best)}"
    return found + (f" --seed {best.seed}" if best.seed else "")


def _numbers(text: str) -> list[int]:
    """Whole numbers from a text such as `0,5,10`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 7 for part in parts):  # below a million, as other counts
        raise ValueError(
            f"--shots is {text!r}, expected numbers of demonstrations separated by commas, such as 0,5,10."
        )
    return [int(part) for part in parts]


def _print(search: "PromptSearch") -> None:
    print(f"{search.task} on {search.model}")
    print(f"accuracy on select inputs, of {search.n_forms} forms; the best four were tried on all\n")
    rows = [
        [*(row[name] for name in ("template", "n_shots", "instruction")), *_accuracies(row), row["n"], row["n_tokens"]]
        for row in search.table.to_dict("records")
    ]
    head = ["template", "shots", "instruction", "clean", "95 %", "bare", "95 %", "inputs", "tokens"]
    print_table(head, rows)


def _accuracies(row: dict[Any, Any]) -> list[Any]:
    """Accuracy and interval of the form's prompts, then of the bare inputs, as cells."""
    return [
        value
        for name in ("clean", "bare")
        for value in (float(row[name]), f"{row[f'{name}_lo']:.2f} to {row[f'{name}_hi']:.2f}")
    ]
