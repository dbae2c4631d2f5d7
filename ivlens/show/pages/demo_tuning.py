"""The section of the demo's report on training: what the model forgets while it learns a new task."""

from html import escape

import plotly.graph_objects as go

from ivlens.show.demo.tuning import TuningDemo
from ivlens.show.figures.rows import Row, grouped, rows_of
from ivlens.show.figures.theme import LIGHT, Theme, styled, with_legend

NAMES = {"none": "plain LoRA", "instructions_lighter": "earlier instructions rehearsed"}


def forgetting_curves(
    tuning: TuningDemo, *, title: str = "What is forgotten on the way", theme: Theme = LIGHT
) -> go.Figure:
    """Accuracy on earlier tasks against accuracy on the new one, on *select*, one line per guidance."""
    rows = rows_of(tuning.curves, ("guidance", "step", "new", "watched"), "run_demo")
    figure = go.Figure()
    for name, points in grouped(rows, lambda row: row["guidance"]).items():
        figure.add_trace(_line(name, points, theme.control if name == "none" else theme.accent))
    styled(figure, theme, title, f"{tuning.steps} steps, select inputs", height=340)
    figure.update_xaxes(title_text="accuracy on the new task", range=[-0.03, 1.03], dtick=0.2)
    figure.update_yaxes(title_text="mean accuracy on earlier tasks", range=[-0.03, 1.06], dtick=0.2)
    return with_legend(figure, theme)


def _line(name: str, points: list[Row], colour: str) -> go.Scatter:
    """The line of one guidance, from its first judgement to its last."""
    return go.Scatter(
        x=[row["new"] for row in points], y=[row["watched"] for row in points], name=NAMES.get(name, name),
        mode="lines+markers", line={"color": colour, "width": 2}, marker={"size": 6, "color": colour},
        customdata=[[int(row["step"])] for row in points],
        hovertemplate="step %{customdata[0]}: new %{x:.2f}, earlier %{y:.2f}<extra></extra>",
    )  # fmt: skip


def tuning_figures(tuning: TuningDemo | None, theme: Theme) -> dict[str, go.Figure]:
    """The figures of this section by the names that the page's HTML uses; none if nothing was trained."""
    return {} if tuning is None else {"tuning": forgetting_curves(tuning, theme=theme)}


def tuning_section(tuning: TuningDemo | None) -> str:
    """The section as HTML; an empty text if nothing was trained."""
    if tuning is None:
        return ""
    rows = rows_of(tuning.scores, ("task", "role", "before"), "run_demo")
    # the other columns are accuracies after a training, one for each guidance
    kinds = [name for name in rows[0] if name not in ("task", "role", "before")]
    head = "".join(f"<th class=n>{escape(text)}</th>" for text in ("before", *(NAMES.get(one, one) for one in kinds)))
    body = "".join(
        f"<tr><th>{escape(row['task'])}<small>{'new' if row['role'] == 'new' else 'earlier'}</small></th>"
        f"{''.join(f'<td class=n>{row[name]:.2f}</td>' for name in ('before', *kinds))}</tr>"
        for row in rows
    )
    return (
        "<section>\n<h2>Teaching it one more task</h2>\n"
        f"<p>LoRA on the query and value projections, {tuning.steps} steps on a task that the model has not seen: "
        "once plainly, and once with guidance. With guidance it also gets the <i>instructions</i> of earlier tasks on "
        "the new task's inputs, and must answer them as it did before. The table shows accuracy on <i>test</i> inputs, "
        "the figure on <i>select</i> inputs along the training.</p>\n"
        f'<div class="card scroll"><table><thead><tr><th>task</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        f'\n<p class="note below">One seed and one learning rate in {tuning.seconds:.0f} s: a quick look, not a '
        'verdict.</p>\n<figure class="card" style="max-width:760px"><div class="plot" data-figure="tuning"></div>'
        "</figure>\n</section>\n"
    )
