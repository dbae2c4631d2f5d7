"""`ivlens attention`: where heads look from the last prompt token, part by part of the prompt."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import Parameter

from ivlens.cli._options import AsJson, ColumnOptions, ModelOptions, PromptOptions
from ivlens.cli._output import print_json, print_table

if TYPE_CHECKING:
    from ivlens.analysis.attention.results import HeadAttention
    from ivlens.effects.results import HeadEffects
    from ivlens.prompts.recipe import PromptRecipe
    from ivlens.tasks.task import Task

PAGE, FILE, TABLE, SCORES = "index.html", "attention.safetensors", "attention.parquet", "scores.parquet"


@Parameter(name="*")
@dataclass(frozen=True)
class WatchedOptions(ColumnOptions):
    """The heads that are watched, and on how many prompts.

    Attributes:
        heads: The heads, such as L20H5,L18H6; by default those of --effects, or all.
        effects: File of effects that `ivlens effects --out x.safetensors` wrote: its strongest heads are watched, on
            prompts that are made in the same way.
        k: Number of strongest heads.
        n_prompts: Number of prompts of each kind.
        split: The split of the inputs.
    """

    heads: str | None = None
    effects: Path | None = None
    k: int = 10
    n_prompts: int = 32
    split: Literal["fit", "select", "test"] = "select"


def attention(
    *,
    task: str,
    where: ModelOptions | None = None,
    what: WatchedOptions | None = None,
    prompts: PromptOptions | None = None,
    out: Path = Path("out/attention"),
    top: int = 10,
    as_json: AsJson = False,
) -> None:
    """Measure where attention heads look: at the instruction, the demonstrations, their answers, the query.

    Attention is that of the last prompt token, on clean prompts and, if there are demonstrations, on prompts whose
    demonstrations have shuffled answers. Beside it stand how much each head is an induction head and a previous-token
    head.

    Example: `ivlens attention --model smollm2 --task third_person --heads L20H5,L18H6 --n-shots 5 --instruction none`

    Args:
        task: Name of a built-in task, or the path of a file or folder that holds a task.
        out: Folder for index.html (a page with figure, table and prompts token by token), attention.parquet (the shares
            of every head), scores.parquet (both scores of all heads of the model), and attention.safetensors (all of
            it, for `HeadAttention.load` and `ivlens figures`).
        top: Number of heads to print. Of more heads those are printed that look most at what tells the task.
    """
    from ivlens.analysis.attention.looking import AttentionOptions, head_attention
    from ivlens.analysis.attention.scores import ScoreOptions
    from ivlens.common.disk import check_folder

    what, how = what or WatchedOptions(), prompts or PromptOptions()
    _check(what, top)
    check_folder(out)
    loaded, effects = what.load(task), _effects(what)
    how.recipe()  # refuses wrong options before the model is loaded
    seed = how.seed or 0
    options = AttentionOptions(k=what.k, split=what.split, seed=seed, scores=ScoreOptions(seed=seed))
    model = (where or ModelOptions()).load()
    recipe = how.chosen(model, [loaded]) if effects is None else how.recipe(_recipe_of(effects, loaded))
    found = head_attention(
        model, loaded, what.heads or effects, recipe=recipe, n_prompts=what.n_prompts, options=options
    )
    _write(found, out)
    if as_json:
        facts = {"task": found.task, "model": asdict(found.model), "settings": dict(found.settings)}
        print_json({**facts, "rows": found.table().to_dict("records"), "out": str(out)})
        return
    _print(found, top)
    print(f"\nreport: {out / PAGE}")


def _check(what: WatchedOptions, top: int) -> None:
    """Refuse counts that make no sense, and two ways to choose heads."""
    for name, count, least in (("--top", top, 0), ("--k", what.k, 1), ("--n-prompts", what.n_prompts, 1)):
        if count < least:
            raise ValueError(f"{name} is {count}, expected {least} or more.")
    if what.heads is not None and what.effects is not None:
        raise ValueError("ivlens attention got --heads and --effects, expected one of them; leave the other out.")


def _effects(what: WatchedOptions) -> "HeadEffects | None":
    from ivlens.effects.results import HeadEffects

    return None if what.effects is None else HeadEffects.load(what.effects)


def _recipe_of(effects: "HeadEffects", task: "Task") -> "PromptRecipe":
    """The form of the effects' prompts; of another task's effects without their instruction."""
    return effects.recipe if effects.task == task.name else effects.recipe.for_other_tasks()


def _write(found: "HeadAttention", out: Path) -> None:
    from ivlens.common.saves import filling
    from ivlens.show.pages.attention import write_page

    with filling(out) as scratch:
        found.frame().to_parquet(scratch / TABLE)
        found.save(scratch / FILE)
        files = (TABLE, FILE)
        if found.scores is not None:
            found.scores.frame().to_parquet(scratch / SCORES)
            files = (TABLE, SCORES)
        write_page(found, scratch / PAGE, files=files)


def _print(found: "HeadAttention", top: int) -> None:
    """Print the shares of the first heads, or of those that look most at what tells the task."""
    table = found.table()
    n = ", ".join(f"{len(one.inputs)} {kind}" for kind, one in found.looked.items())
    print(f"{found.task} on {found.model}")
    print(f"attention from the last token of {n} prompts: shares of each part\nprompts: {found.recipe}\n")
    rows = table.to_dict("records")
    told = {
        row["head"]: row["instruction"] + row["inputs"] + row["answers"]
        for row in rows
        if row["prompts"] == found.prompts[0]
    }
    heads = list(told) if len(told) <= top else sorted(told, key=lambda head: -told[head])
    print_table(
        list(table.columns), [list(row.values()) for head in heads[:top] for row in rows if row["head"] == head]
    )
    if len(heads) > top:
        print(f"\n{top} of {len(heads)} heads: those that look most at what tells the task; all are in {TABLE}")
