"""The demo's report: one HTML file that needs nothing else, with plotly.js inside once, for light and dark screens."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ivlens.common.version import __version__
from ivlens.show.demo.run import DemoResult
from ivlens.show.demo.writing import file_name
from ivlens.show.figures.conditions import LOOKS, condition_plot
from ivlens.show.figures.heads import head_heatmap, unit_of
from ivlens.show.figures.rows import Row, grouped, mean, rows_of
from ivlens.show.figures.similarity import similarity_matrix
from ivlens.show.figures.sweeps import strength_curves
from ivlens.show.figures.theme import Theme
from ivlens.show.pages.demo_tuning import tuning_figures, tuning_section
from ivlens.show.pages.html import embedded, script, style, template
from ivlens.tasks.task import Task
from ivlens.vectors.vector import InstructionVector

TABLE_CONDITIONS = ("bare", "iv", "iv_heads", "random", "other_tasks", "random_heads", "constant", "clean")
SEVERAL = ("random", "random_heads", "other_tasks")
RIGHT = (
    '<p class="note below">✓ exactly one of the accepted answers; otherwise the expected one in brackets. '
    "Greedy decoding, first line.</p>"
)
TILES = ("bare", "iv", "random", "other_tasks", "random_heads", "clean")


def write_page(result: DemoResult, path: str | Path) -> Path:
    """Write the report of a demo to `path` (about 5 MB, almost all of it plotly.js)."""
    target = Path(path)
    target.write_text(page(result), encoding="utf-8")
    return target


def page(result: DemoResult) -> str:
    """The report as one HTML text; it loads nothing from anywhere."""
    skeleton = template("demo.html")
    name = escape(Path(result.model.name).name)
    return skeleton.substitute(
        title=f"Instruction Vectors of {name}",
        heading=f"Instruction Vectors of <code>{name}</code>",
        lead=_lead(result),
        tiles=_tiles(result),
        tiles_note=f"Means over {len(result.able or result.tasks)} tasks, on inputs that chose neither heads nor "
        "settings.",
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
    figures = {
        "conditions": condition_plot(result.conditions, theme=theme),
        "similarity": similarity_matrix(result.vectors, theme=theme),
        "sweep-0": strength_curves(result.sweep, theme=theme),
    }
    for index, (task, found) in enumerate(zip(result.tasks, result.effects, strict=True)):
        figures[f"sweep-{index + 1}"] = strength_curves(_of_task(result.sweep, task.name), theme=theme)
        figures[f"heads-{index}"] = head_heatmap(
            found, top=result.options.k, limit=_limit(result), show_scale=False, theme=theme
        )
    return figures | tuning_figures(result.tuning, theme)


def _of_task(frame: pd.DataFrame, task: str) -> pd.DataFrame:
    return frame.loc[list(frame["task"] == task)]


def _limit(result: DemoResult) -> float:
    """One colour scale for all maps, ending at a round number."""
    largest = max(float(found.aie.nan_to_num(0.0).abs().max()) for found in result.effects)
    return max(0.01, math.ceil(100 * largest) / 100)


# --- text ------------------------------------------------------------------------------------------------------------


def _lead(result: DemoResult) -> str:
    able = result.able
    if not able:
        return (
            "<b>This model cannot do these tasks as it is asked here</b>, so no vector can carry them: "
            f"{_shortfalls(result)}. Look for prompts that it can answer (<code>ivlens prompts --model … --task "
            "…</code>; demonstrations often help: <code>--n-shots 5 --instruction none</code>), or take other tasks."
        )
    means = _means(result, able)
    left_out = ""
    if len(able) < len(result.tasks):
        left_out = (
            f" Of {len(able)} of {len(result.tasks)} tasks; the others the model cannot do as it is asked, so that no "
            f"vector can carry them: {_shortfalls(result)}."
        )
    return (
        "The Instruction Vector of a task is the summed average output of the attention heads that carry what the "
        f"prompt tells the model to do. Added to prompts with <b>no {_told(result)}</b>, it takes the accuracy from "
        f"{_percent(means['bare'])} to <b>{_percent(means['iv'])}</b>. Of the same length, "
        f"random vectors reach {_percent(means.get('random'))} and vectors of as many random heads "
        f"{_percent(means.get('random_heads'))}. With {_told(result)} it is {_percent(means['clean'])}.{left_out}"
    )


def _told(result: DemoResult) -> str:
    """What tells clean prompts their task."""
    recipes = [(found.recipe, task) for found, task in zip(result.effects, result.tasks, strict=True)]
    kinds = {
        "instruction": any(recipe.texts(task) for recipe, task in recipes),
        "demonstrations": any(recipe.shots(task) for recipe, task in recipes),
    }
    return " or ".join(kind for kind, there in kinds.items() if there) or "instruction"


def _shortfalls(result: DemoResult) -> str:
    """Tasks that the model cannot do, with its accuracies where they were asked."""
    found = []
    for effects in result.effects:
        ability = effects.ability
        if ability is not None and not ability.is_enough:
            bare = "" if ability.bare is None else f", bare {_percent(ability.bare)}"
            found.append(f"{escape(effects.task)} (clean {_percent(ability.clean)}{bare} of {ability.n} select inputs)")
    return ", ".join(found)


def _tiles(result: DemoResult) -> str:
    means = _means(result, result.able)
    return "".join(
        f'<div class="card tile{" main" if name == "iv" else ""}"><b>{_percent(means[name])}</b>'
        f"<span>{escape(LOOKS[name].label)}</span></div>"
        for name in TILES
        if name in means
    )


def _means(result: DemoResult, tasks: Sequence[str] = ()) -> dict[str, float]:
    """Mean accuracy under each condition over these tasks, or over all where none are named."""
    rows = rows_of(result.conditions, ("task", "condition", "accuracy"), "evaluate_intervention")
    rows = [row for row in rows if not tasks or row["task"] in tasks]
    by_condition = grouped(rows, lambda row: row["condition"])
    return {name: mean(row["accuracy"] for row in group) for name, group in by_condition.items()}


def _examples(result: DemoResult) -> str:
    rows = rows_of(result.examples, ("task", "input", "before", "after"), "run_demo")
    shown = (
        f"<p>Prompts carry no {_told(result)}; the first one reads:</p>"
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
    """The tasks share their inputs, so one prompt fills a row: without a vector, and with each of them."""
    head = _row("th", ["input", "no vector", *tasks])
    body = ""
    for text, group in grouped(rows, lambda row: row["input"]).items():
        plain = escape(group[0]["before"]) or "–"
        body += f'<tr><th>{escape(text)}</th><td class="wrong">{plain}</td>{"".join(map(_completed, group))}</tr>'
    table = f'<table class="sticky words"><thead>{head}</thead><tbody>{body}</tbody></table>'
    return f'<div class="card scroll">{table}</div>{RIGHT}'


def _completed(row: Row) -> str:
    text = escape(row["after"]) or "–"
    if row["right_after"]:
        return f'<td><span class="right">{text}&nbsp;✓</span></td>'
    return f"<td>{text}<small>({escape(row['answers'][0])})</small></td>"


def _table(result: DemoResult) -> str:
    means = _means(result)
    present = [name for name in TABLE_CONDITIONS if name in means]
    columns = "".join(f"<th class=n>{escape(LOOKS[name].label)}</th>" for name in present)
    head = f"<tr><th>task</th>{columns}<th>vector added at</th></tr>"
    cells = "".join(f"<td class='n{' iv' if name == 'iv' else ''}'>{_number(means[name])}</td>" for name in present)
    body = f"<tr class=mean><th>mean of {len(result.tasks)} tasks</th>{cells}<td></td></tr>"
    by_task = grouped(rows_of(result.conditions, ("task",), "evaluate_intervention"), lambda row: row["task"])
    for task in result.tasks:
        found = {row["condition"]: row for row in by_task[task.name]}
        cells = "".join(_accuracy_cell(found.get(name), name) for name in present)
        first = task.examples[0]
        sample = f"<small>{escape(first.input[:24])} → {escape(first.answer[:24])}</small>"
        if task.name not in result.able:
            sample += "<small>the model cannot do it as it is asked</small>"
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
    rows = rows_of(result.conditions, ("condition", "n", "n_vectors"), "evaluate_intervention")
    sizes = sorted({row["n"] for row in rows})
    prompts = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    counts = {row["condition"]: row["n_vectors"] for row in rows}
    several = [f"{counts[name]} {LOOKS[name].label}" for name in SEVERAL if name in counts]
    return (
        f"{prompts} test prompts per task; an output is right if it begins with an accepted answer, token by token. "
        f"Means over {', '.join(several)} where a column has several: a quick look, not a verdict."
    )


def _map_card(index: int, task: Task) -> str:
    return (
        f'<figure class="card"><h3>{escape(task.name)}</h3><div class="plot" data-figure="heads-{index}" '
        f'role="img" aria-label="Effect of each head on {escape(task.name)}"></div></figure>'
    )


def _sweep_options(tasks: Sequence[Task]) -> str:
    names = [f"mean of {len(tasks)} tasks", *(task.name for task in tasks)]
    return "".join(f'<option value="sweep-{index}">{escape(name)}</option>' for index, name in enumerate(names))


def _decoded(result: DemoResult) -> str:
    body = []
    for vector in result.vectors:
        pairs = result.decoded[vector.task]
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
    return f'<span class="mono">{" ".join(f"L{layer}H{head}" for layer, head in vector.heads)}</span>'


def _visible(token: str) -> str:
    return token.replace("\n", "⏎").replace("\t", "⇥") if token.strip() else token.replace(" ", "␣").replace("\n", "⏎")


def _settings(result: DemoResult) -> str:
    model, options = result.model, result.options
    corruptions = sorted({name for found in result.effects for name in found.corruptions})
    facts = {
        "model": f"{model.name} · {model.architecture} · {model.n_layers} layers × {model.n_heads} heads, "
        f"d_model {model.d_model} · weights {model.weights_hash[:12]}",
        "splits": "fit (heads, means), select (layer, strength, site), test (accuracies, examples), by the input",
        "effects": f"{options.n_prompts} corrupted prompts per task ({', '.join(corruptions)}), "
        f"score: {result.effects[0].settings.get('score', '')}",
        "vector": f"the {options.k} heads of largest effect, mean output times output projection, without its bias",
        "controls": f"{options.plan.n_draws} random vectors of equal norm; {options.plan.n_draws} sets of other heads; "
        f"the other {len(result.tasks) - 1} tasks' vectors; the answer that is right most often",
        "seed": str(options.drawn_seed),
        "made with": f"ivlens {__version__} in {result.seconds:.0f} s",
    }
    return "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())


def _files(result: DemoResult) -> str:
    names = ("conditions", "sweep", "effects", "examples", *(("tuning", "tuning_curves") if result.tuning else ()))
    tables = ", ".join(f'<a href="{name}.parquet">{name}.parquet</a>' for name in names)
    first = file_name(result.tasks[0].name)
    return (
        f"Beside this page: {tables}; <code>effects/{escape(first)}.safetensors</code> and so on (effects of every "
        f"head on every prompt), <code>vectors/{escape(first)}.safetensors</code> and so on (open them with "
        "<code>ivlens.InstructionVector.load</code>)."
    )


def _row(cell: str, texts: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{cell}>{escape(text)}</{cell}>' for text in texts)}</tr>"


def _percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * round(value, 2):.0f}&nbsp;%"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
