"""The page of `ivlens evaluate`: for each task what was asked, what its vector does, and all controls, in one file."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ivlens.common.files import file_name
from ivlens.common.names import path_of
from ivlens.common.version import __version__
from ivlens.effects.results import HeadEffects
from ivlens.runs.evaluation.results import TaskEvaluations
from ivlens.show.figures.by_k import by_k_plot
from ivlens.show.figures.conditions import condition_plot
from ivlens.show.figures.heads import head_heatmap, unit_of
from ivlens.show.figures.matrix import matrix_plot
from ivlens.show.figures.necessity import necessity_plot
from ivlens.show.figures.other_vectors import WAYS, other_vectors_plot
from ivlens.show.figures.similarity import similarity_matrix
from ivlens.show.figures.sweeps import strength_curves
from ivlens.show.figures.theme import Theme
from ivlens.show.judged_tables import Group, groups
from ivlens.show.pages.evaluate_lead import headline, lead, necessary, told
from ivlens.show.pages.html import embedded, script, style, template
from ivlens.show.tables import head_cells
from ivlens.steering.more_rows import MoreRows

WARNING = (
    "One model and one seed: intervals and p values say how much the numbers depend on which inputs were asked and "
    "which controls were drawn, and nothing about other models, prompts or seeds."
)
POCKET = (
    "The built-in model <b>pocket</b> was made so that Instruction Vectors work in it. This page shows how they are "
    "judged; it is <b>no evidence about other models</b>."
)
BARS = "Bars: Wilson's 95&nbsp;% interval over inputs."
LEVELS = "Dashed: bare input; dotted: clean prompt."
SEARCHED = "Every vector, controls too, has a search of its own on <i>select</i> inputs; here are <i>test</i> inputs."
# heading and text of each figure in a task's section
FIGURES = {
    "conditions": ("Accuracy beside every control", f"{SEARCHED} {BARS}"),
    "heads": (
        "Which heads carry the task",
        "Average indirect effect of each head on corrupted prompts; those marked make up the vector.",
    ),
    "settings": (
        "Where and how strongly it is added",
        "Accuracy on bare <i>select</i> inputs at every setting of the search. Dashed: no vector.",
    ),
    "necessity": (
        "Are these heads needed?",
        "Accuracy lost on clean prompts when outputs of heads at the last token are replaced by their means over other "
        "prompts. Bars: t, 95&nbsp;% over inputs.",
    ),
    "by_k": (
        "How many heads?",
        "Vectors of more and more heads, strongest first, each with a search of its own. Bands: Wilson's 95&nbsp;% "
        f"interval over inputs. {LEVELS}",
    ),
    "vectors": (
        "Other ways to a vector",
        f"Accuracy on bare inputs. Each way has a search of its own, and so have its controls. {BARS} {LEVELS}",
    ),
}


def write_page(result: TaskEvaluations, path: str | Path) -> Path:
    """Write the page of evaluations to `path` (about 5 MB, almost all of it plotly.js)."""
    target = path_of(path)
    target.write_text(page(result), encoding="utf-8")
    return target


def evaluation_figures(result: TaskEvaluations, theme: Theme) -> dict[str, go.Figure]:
    """All figures of the page by the names that its HTML uses, in the colours of one theme.

    Those of a task end in its number (`by_k-0`); figures of further rows are there only where the rows are.
    """
    found = dict[str, go.Figure]()
    if len(result.tasks) > 1:
        found["conditions"] = condition_plot(result.table, theme=theme)
        found["matrix"] = matrix_plot(result.matrix, theme=theme)
        found["similarity"] = similarity_matrix(result.vectors, theme=theme)
    for number, (task, effects) in enumerate(zip(result.tasks, result.effects, strict=True)):
        rows, settings = rows_of_task(result.table, task.name), rows_of_task(result.by_setting, task.name)
        conditions = set(rows["condition"])
        own = {
            "conditions": condition_plot(rows, theme=theme),
            "heads": head_heatmap(effects, top=result.options.k, theme=theme),
            "settings": strength_curves(settings, theme=theme),
        }
        if "necessity" in conditions:
            own["necessity"] = necessity_plot(rows, theme=theme)
        if "by_k" in conditions:
            own["by_k"] = by_k_plot(rows, theme=theme)
        if conditions & {way.condition for way in WAYS if way.condition != "iv"}:
            own["vectors"] = other_vectors_plot(rows, theme=theme)
        own["conditions"].update_xaxes(
            title_text="accuracy"
        )  # beside its labels, a longer title does not fit on a phone
        found |= {f"{name}-{number}": figure for name, figure in own.items()}
    return found


def rows_of_task(frame: pd.DataFrame, task: str) -> pd.DataFrame:
    """The rows of one task."""
    return frame.loc[frame["task"].to_numpy() == task]


def page(result: TaskEvaluations) -> str:
    """The page as one HTML text, which loads nothing from elsewhere."""
    # everything that a task, a model or its prompts say is escaped, here and below: it may contain HTML
    name = escape(Path(result.model.name).name)
    figures: dict[str, Mapping[str, go.Figure]] = {}

    def drawn(theme: Theme) -> Mapping[str, go.Figure]:
        figures[theme.name] = evaluation_figures(result, theme)
        return figures[theme.name]

    data = embedded(drawn)
    known = set(next(iter(figures.values())))
    return template("evaluate.html").substitute(
        title=f"Instruction Vectors of {name}, judged",
        heading=f"What Instruction Vectors do in <code>{name}</code>",
        lead=lead(result),
        warning=POCKET if result.model.name == "pocket" else WARNING,
        contents=_contents(result),
        overview=_overview(result),
        tasks="".join(_task(result, number, known) for number in range(len(result.tasks))),
        settings=_settings(result),
        files=_files(result),
        style=style(),
        plotly=get_plotlyjs(),
        script=script(),
        figures=data,
    )


def _contents(result: TaskEvaluations) -> str:
    """Links to the sections of several tasks."""
    if len(result.tasks) == 1:
        return ""
    links = "".join(f'<li><a href="#task-{n}">{escape(task.name)}</a></li>' for n, task in enumerate(result.tasks))
    return f'<nav aria-label="Tasks"><ul>{links}<li><a href="#made">How this was measured</a></li></ul></nav>'


def _overview(result: TaskEvaluations) -> str:
    """The section about all tasks together; nothing for one task."""
    if len(result.tasks) == 1:
        return ""
    matrix = _figure("matrix", "Vectors on each other's tasks", "Rows: the task that is asked; columns: the task whose "
                     "vector is added, at the setting that is best for this pair on <i>select</i>.")  # fmt: skip
    similar = _figure("similarity", "How alike the vectors are", "Cosine between the vectors of every two tasks.")
    text = f"{SEARCHED} {BARS} The mean of tasks has none: tasks were not drawn from anything."
    conditions = _figure("conditions", "Accuracy beside every control", text)
    pair = f'<div class="pair">{matrix}{similar}</div>'
    return f'\n<section>\n<h2>All tasks</h2>\n<div class="stack">{conditions}{pair}</div>\n</section>'


def _figure(key: str, heading: str, text: str) -> str:
    """The place of one figure, where the page's script draws it."""
    note = f'<p class="note">{text}</p>' if text else ""
    return (
        f'<figure class="card"><h3>{heading}</h3>{note}'
        f'<div class="plot" data-figure="{key}" role="img" aria-label="{heading}"></div></figure>'
    )


def _task(result: TaskEvaluations, number: int, known: set[str]) -> str:
    """The section of one task."""
    task, effects, shown = result.tasks[number], result.effects[number], result.shown[number]
    rows = rows_of_task(result.table, task.name)
    warnings = "".join(f'<div class="card warning"><p>{escape(text)}</p></div>' for text in effects.warnings)
    figures = {
        name: _figure(f"{name}-{number}", *about) for name, about in FIGURES.items() if f"{name}-{number}" in known
    }
    more = [figures[name] for name in ("necessity", "by_k", "vectors") if name in figures]
    return f"""
<section id="task-{number}">
<h2 class="task">{escape(task.name)}</h2>
{warnings}<p>{headline(rows, effects, result.options)} {necessary(rows)}</p>
<p class="note">Prompts: {escape(str(effects.recipe))}. {told(effects, task)}</p>
<div class="pair"><div><h3>A clean prompt</h3><pre><code>{escape(shown.clean)}</code></pre></div>
<div><h3>The same input, bare</h3><pre><code>{escape(shown.bare)}</code></pre>
<p class="note below">Accepted: {escape(" | ".join(shown.answers))}</p></div></div>
<div class="stack">{figures["conditions"]}
<div class="pair">{figures["heads"]}{figures["settings"]}</div>{"".join(more)}</div>
<details><summary>All rows as tables</summary>
{"".join(map(_table, (*groups(rows), _heads(effects, result.options.k))))}<p class="note below">{_note(result)}</p>
</details>
</section>"""


def _heads(effects: HeadEffects, k: int) -> Group:
    """The heads of the vector, with their effects on the prompts that chose them and on others."""
    again = "" if effects.again is None else effects.again.split
    head, cells = head_cells(effects.to_frame().head(k).to_dict("records"), again)
    return Group("heads", f"The heads of the vector and their effects ({unit_of(effects)})", head, cells)


def _table(group: Group) -> str:
    """A group of rows as a table with a heading."""
    is_number = [
        all(isinstance(row[column], float) or row[column] == "" for row in group.rows)
        and any(isinstance(row[column], float) for row in group.rows)
        for column in range(len(group.head))
    ]
    kinds = ["n" if number else "at" for number in is_number]
    head = "".join(f'<th class="{kind}">{escape(text)}</th>' for text, kind in zip(group.head, kinds, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{kind}">{_cell(value)}</td>' for value, kind in zip(row, kinds, strict=True))
        + "</tr>"
        for row in group.rows
    )
    return (
        f'<h3>{escape(group.title)}</h3><div class="card scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}"
    return "" if value is None else escape(str(value))


def _note(result: TaskEvaluations) -> str:
    """How to read the tables."""
    options = result.options
    holm = f", corrected for {len(result.tasks)} tasks (Holm)" if len(result.tasks) > 1 else ""
    more = options.more
    n_more = options.n_draws if more is None or more.n_draws is None else more.n_draws
    least, least_more = (f"{1 / (1 + n):.3g}" for n in (options.n_draws, n_more))
    return (
        "An output is right if greedy decoding begins with an accepted answer and does not go on inside its last word. "
        f"p: (1 + draws that reach the row they are a control of) / (1 + draws){holm}; before that it is never below "
        f"{least} with {options.n_draws} draws, {least_more} with the {n_more} of further rows, and more for vectors "
        "of few other tasks. Rows of several draws are means; intervals are over inputs, with the draws held fixed."
    )


def _settings(result: TaskEvaluations) -> str:
    """How everything was measured, as a list of names and values."""
    model, options, first = result.model, result.options, result.effects[0]
    corruptions = sorted({name for found in result.effects for name in found.corruptions})
    grid, more = options.grid, options.more
    layers = "up to 12 layers, evenly spaced" if grid.layers is None else f"layers {', '.join(map(str, grid.layers))}"
    asked = "all" if options.n_judge_prompts is None else f"at most {options.n_judge_prompts}"
    rows = "none"
    if more is not None:
        n_more = options.n_draws if more.n_draws is None else more.n_draws
        rows = ", ".join(name.replace("_", " ") for name in (*options.rows, *_aside(more)))
        rows += f"; {n_more} draws of each control, means over up to {more.n_mean_prompts} fit prompts"
    facts = {
        "model": f"{model.name} · {model.architecture} · {model.n_layers} layers × {model.n_heads} heads, "
        f"d_model {model.d_model} · weights {model.weights_hash[:12]}",
        "prompts": str(options.recipe),
        "splits": "fit (heads, means), select (layers and strengths, curves), test (other accuracies), by the input",
        "effects": f"{options.n_prompts} corrupted prompts per task ({', '.join(corruptions)}), score: "
        f"{first.settings.get('score', '')}; the {options.k} strongest heads measured again on select",
        "vector": f"the {options.k} heads of largest effect, mean output times output projection, without its bias",
        "search": f"{layers}; strengths {', '.join(f'{alpha:g}' for alpha in grid.alphas)}; {', '.join(grid.sites)}; "
        f"{asked} select inputs; the same for every control",
        "judged on": f"{asked} test inputs of each task",
        "controls": f"{options.n_draws} random vectors of equal norm; {options.n_draws} sets of as many other heads; "
        "vectors of other tasks; the answer that is right most often",
        "further rows": rows,
        "seed": str(options.recipe.seed),
        "made with": f"ivlens {__version__}",
    }
    return "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())


def _aside(more: MoreRows) -> tuple[str, ...]:
    """`side_effects`, where they were asked for: columns, and no rows of their own."""
    return tuple(name for name in more.rows if name == "side_effects")


def _files(result: TaskEvaluations) -> str:
    """Which files lie in the same folder as the page."""
    names = ("rows", "by_vector", "heads", "settings")
    tables = ", ".join(f'<a href="{name}.parquet">{name}.parquet</a>' for name in names)
    first = file_name(result.vectors[0].task)
    return (
        f"Beside this page: {tables}, <code>vectors/{escape(first)}.safetensors</code> and so on (open them with "
        "<code>ivlens.InstructionVector.load</code>), and all figures."
    )
