"""The demo's report: one HTML file that loads nothing from elsewhere, for light and dark screens.

plotly.js is in the file once, and draws all figures from JSON that stands beside it.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ivlens.common.files import file_name
from ivlens.common.names import path_of
from ivlens.common.version import __version__
from ivlens.models.mixers import head_labels
from ivlens.show.demo.run import DemoResult
from ivlens.show.figures.conditions import LOOKS, condition_plot
from ivlens.show.figures.heads import head_heatmap, unit_of
from ivlens.show.figures.rows import Row, grouped, rows_of
from ivlens.show.figures.similarity import similarity_matrix
from ivlens.show.figures.sweeps import strength_curves
from ivlens.show.figures.theme import Theme
from ivlens.show.pages.demo_lead import lead, means, percent, told
from ivlens.show.pages.demo_tuning import tuning_figures, tuning_section
from ivlens.show.pages.html import embedded, script, style, template
from ivlens.tasks.task import Task
from ivlens.vectors.vector import InstructionVector

TABLE_CONDITIONS = ("bare", "iv", "iv_heads", "random", "other_tasks", "random_heads", "constant", "clean")
SEVERAL = ("random", "random_heads", "other_tasks")  # conditions that are means over several vectors
RIGHT = (
    '<p class="note below">✓ begins with an accepted answer; otherwise the expected one in brackets. '
    "Greedy decoding, first line.</p>"
)
# conditions that are shown as large numbers on top of the page
TILES = ("bare", "iv", "random", "other_tasks", "random_heads", "clean")


def write_page(result: DemoResult, path: str | Path) -> Path:
    """Write the report of a demo to `path` (about 5 MB, almost all of it plotly.js)."""
    target = path_of(path)
    target.write_text(page(result), encoding="utf-8")
    return target


def page(result: DemoResult) -> str:
    """The report as one HTML text, which loads nothing from elsewhere."""
    skeleton = template("demo.html")
    # everything that a task, a model or its output says is escaped, here and below: it may contain HTML
    name, n_counted = escape(Path(result.model.name).name), len(result.able or result.tasks)
    return skeleton.substitute(
        title=f"Instruction Vectors of {name}",
        heading=f"Instruction Vectors of <code>{name}</code>",
        lead=lead(result),
        tiles=_tiles(result),
        tiles_note=f"Means over {n_counted} tasks, on inputs that chose neither heads nor settings.",
        examples=_examples(result),
        table=_table(result),
        table_note=_table_note(result),
        k=result.options.k,
        limit=f"{_limit(result):.2f}",
        unit=escape(unit_of(result.effects[0])),
        style=style(),
        maps="".join(_map_card(index, task) for index, task in enumerate(result.tasks)),
        sweep_options=_sweep_options(result.tasks),
        decoded=_decoded(result),
        tuning=tuning_section(result.tuning),
        settings=_settings(result),
        files=_files(result),
        plotly=get_plotlyjs(),
        script=script(),
        figures=embedded(lambda theme: _figures(result, theme)),
    )


# --- figures ---------------------------------------------------------------------------------------------------------


def _figures(result: DemoResult, theme: Theme) -> dict[str, go.Figure]:
    """All figures of the report by the names that its HTML uses, in the colours of one theme."""
    figures = {
        "conditions": condition_plot(result.conditions, theme=theme),
        "similarity": similarity_matrix(result.vectors, theme=theme),
        "sweep-0": strength_curves(result.sweep, theme=theme),  # the mean of all tasks; sweep-1 and on: each task
    }
    for index, (task, found) in enumerate(zip(result.tasks, result.effects, strict=True)):
        figures[f"sweep-{index + 1}"] = strength_curves(_of_task(result.sweep, task.name), theme=theme)
        # the page draws one colour scale for all maps, so no map shows its own
        figures[f"heads-{index}"] = head_heatmap(
            found, top=result.options.k, limit=_limit(result), show_scale=False, theme=theme
        )
    return figures | tuning_figures(result.tuning, theme)


def _of_task(frame: pd.DataFrame, task: str) -> pd.DataFrame:
    """The rows of one task."""
    return frame.loc[list(frame["task"] == task)]


def _limit(result: DemoResult) -> float:
    """The end of the colour scale of all maps: their largest effect, rounded up to two decimals."""
    largest = max(float(found.aie.nan_to_num(0.0).abs().max()) for found in result.effects)
    return max(0.01, math.ceil(100 * largest) / 100)


# --- text ------------------------------------------------------------------------------------------------------------


def _tiles(result: DemoResult) -> str:
    """The large numbers on top: mean accuracy under each condition, over the tasks that the model can do."""
    found = means(result, result.able)
    return "".join(
        f'<div class="card tile{" main" if name == "iv" else ""}"><b>{percent(found[name])}</b>'
        f"<span>{escape(LOOKS[name].label)}</span></div>"
        for name in TILES
        if name in found
    )


def _examples(result: DemoResult) -> str:
    """The first prompt in full, and a table of completions with and without the vector."""
    rows = rows_of(result.examples, ("task", "input", "before", "after"), "run_demo")
    shown = (
        f"<p>Prompts carry no {told(result)}; the first one reads:</p>"
        f"<pre><code>{escape(rows[0]['prompt'])}</code></pre>"
    )
    by_task = grouped(rows, lambda row: row["task"])
    if len({tuple(row["input"] for row in group) for group in by_task.values()}) == 1:
        return shown + _examples_side_by_side(rows, list(by_task))
    head = _row("th", ["task", "input", "without a vector", "with the vector"])
    body = "".join(
        f"<tr><th>{escape(row['task'])}</th><td>{escape(row['input'])}</td>"
        f'<td class="wrong">{escape(row["before"]) or "–"}</td>{_completed(row)}</tr>'
        for row in rows
    )
    return f'{shown}<div class="card scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>{RIGHT}'


def _examples_side_by_side(rows: Sequence[Row], tasks: Sequence[str]) -> str:
    """A table for tasks that share their inputs: a row per input, a column without a vector and one per task."""
    head = _row("th", ["input", "no vector", *tasks])
    body = ""
    for text, group in grouped(rows, lambda row: row["input"]).items():
        plain = escape(group[0]["before"]) or "–"
        body += f'<tr><th>{escape(text)}</th><td class="wrong">{plain}</td>{"".join(map(_completed, group))}</tr>'
    table = f'<table class="sticky words"><thead>{head}</thead><tbody>{body}</tbody></table>'
    return f'<div class="card scroll">{table}</div>{RIGHT}'


def _completed(row: Row) -> str:
    """The cell of a completion with the vector: a mark if it is right, otherwise the expected answer in brackets."""
    text = escape(row["after"]) or "–"
    if row["right_after"]:
        return f'<td><span class="right">{text}&nbsp;✓</span></td>'
    return f"<td>{text}<small>({escape(row['answers'][0])})</small></td>"


def _table(result: DemoResult) -> str:
    """The table of accuracies: a row per task, a column per condition."""
    found = means(result)
    present = [name for name in TABLE_CONDITIONS if name in found]
    columns = "".join(f"<th class=n>{escape(LOOKS[name].label)}</th>" for name in present)
    head = f"<tr><th>task</th>{columns}<th>vector added at</th></tr>"
    cells = "".join(f"<td class='n{' iv' if name == 'iv' else ''}'>{_number(found[name])}</td>" for name in present)
    body = f"<tr class=mean><th>mean of {len(result.tasks)} tasks</th>{cells}<td></td></tr>"
    by_task = grouped(rows_of(result.conditions, ("task",), "evaluate_intervention"), lambda row: row["task"])
    for task in result.tasks:
        found = {row["condition"]: row for row in by_task[task.name]}
        cells = "".join(_accuracy_cell(found.get(name), name) for name in present)
        first = task.examples[0]
        sample = f"<small>{escape(first.input[:24])} → {escape(first.answer[:24])}</small>"
        if task.name not in result.able:
            sample += "<small>the model cannot do this task with these prompts</small>"
        body += f"<tr><th>{escape(task.name)}{sample}</th>{cells}<td class=at>{_setting(found['iv'])}</td></tr>"
    return f'<table class="sticky"><thead>{head}</thead><tbody>{body}</tbody></table>'


def _accuracy_cell(row: Row | None, condition: str) -> str:
    if row is None:
        return "<td class=n>–</td>"
    between = f"{_number(row['accuracy_lo'])}–{_number(row['accuracy_hi'])}"
    return f"<td class='n{' iv' if condition == 'iv' else ''}'>{_number(row['accuracy'])}<small>{between}</small></td>"


def _setting(row: Row) -> str:
    return f"layer {row['layer']:g}, α = {row['alpha']:g}<small>{escape(str(row['site']))}</small>"


def _table_note(result: DemoResult) -> str:
    """What stands below the table: numbers of prompts and vectors, and what counts as right."""
    rows = rows_of(result.conditions, ("condition", "n", "n_vectors"), "evaluate_intervention")
    sizes = sorted({row["n"] for row in rows})
    prompts = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    counts = {row["condition"]: row["n_vectors"] for row in rows}
    several = [f"{counts[name]} {LOOKS[name].label}" for name in SEVERAL if name in counts]
    return (
        f"{prompts} test prompts per task; an output is right if it begins with an accepted answer and does not go on "
        "inside its last word. "
        f"Columns of controls are means over {', '.join(several)}: a quick look, not a verdict."
    )


def _map_card(index: int, task: Task) -> str:
    """The place of one task's head map on the page; its script draws the map there."""
    return (
        f'<figure class="card"><h3>{escape(task.name)}</h3><div class="plot" data-figure="heads-{index}" '
        f'role="img" aria-label="Effect of each head on {escape(task.name)}"></div></figure>'
    )


def _sweep_options(tasks: Sequence[Task]) -> str:
    """The entries of the list that chooses a task's curves."""
    names = [f"mean of {len(tasks)} tasks", *(task.name for task in tasks)]
    return "".join(f'<option value="sweep-{index}">{escape(name)}</option>' for index, name in enumerate(names))


def _decoded(result: DemoResult) -> str:
    """A table of the tokens that each vector decodes to, and of its heads."""
    body = []
    for vector in result.vectors:
        pairs = result.decoded[vector.task]
        # colours go from the smallest to the largest logit of each vector
        logits = [logit for _, logit in pairs]
        low, spread = min(logits), max(logits) - min(logits) or 1.0
        chips = "".join(
            f'<span class="chip mono" style="--share:{(logit - low) / spread:.2f}" title="logit {logit:.2f}">'
            f"{escape(_visible(token))}</span>"
            for token, logit in pairs
        )
        body.append(f"<tr><th>{escape(vector.task)}</th><td>{chips}</td><td class=wide>{_heads(vector)}</td></tr>")
    head = '<tr><th>task</th><th>tokens</th><th class="wide">heads, strongest first</th></tr>'
    return f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"


def _heads(vector: InstructionVector) -> str:
    return f'<span class="mono">{" ".join(head_labels(vector.heads, vector.model.n_heads))}</span>'


def _visible(token: str) -> str:
    """The token with signs for line breaks and tabs, and for blanks if it holds nothing else."""
    return token.replace("\n", "⏎").replace("\t", "⇥") if token.strip() else token.replace(" ", "␣").replace("\n", "⏎")


def _settings(result: DemoResult) -> str:
    """How everything was measured, as a list of names and values."""
    model, options = result.model, result.options
    corruptions = sorted({name for found in result.effects for name in found.corruptions})
    facts = {
        "model": f"{model.name} · {model.architecture} · {model.n_layers} layers × {model.n_heads} heads, "
        f"d_model {model.d_model} · weights {model.weights_hash[:12]}",
        "splits": "fit (heads, means), select (layer, strength, site), test (accuracies, examples), by the input",
        "effects": f"{options.plan.n_prompts} corrupted prompts per task ({', '.join(corruptions)}), "
        f"score: {result.effects[0].settings.get('score', '')}",
        "vector": f"the {options.k} heads of largest effect, mean output times output projection, without its bias",
        "controls": f"{options.plan.n_draws} random vectors of equal norm; {options.plan.n_draws} sets of other heads; "
        f"the other {len(result.tasks) - 1} tasks' vectors; the answer that is right most often",
        "seed": str(options.drawn_seed),
        "made with": f"ivlens {__version__} in {result.seconds:.0f} s",
    }
    return "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())


def _files(result: DemoResult) -> str:
    """Which files lie in the same folder as the report."""
    names = ("conditions", "sweep", "effects", "examples", *(("tuning", "tuning_curves") if result.tuning else ()))
    tables = ", ".join(f'<a href="{name}.parquet">{name}.parquet</a>' for name in names)
    first = file_name(result.tasks[0].name)
    return (
        f"Beside this page: {tables}; <code>effects/{escape(first)}.safetensors</code> and so on (effects of every "
        f"head on every prompt), <code>vectors/{escape(first)}.safetensors</code> and so on (open them with "
        "<code>ivlens.InstructionVector.load</code>)."
    )


def _row(cell: str, texts: Iterable[str]) -> str:
    """A row of a table, its cells of the kind `th` or `td`."""
    return f"<tr>{''.join(f'<{cell}>{escape(text)}</{cell}>' for text in texts)}</tr>"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
