"""The figure of vectors on each other's tasks."""

import pandas as pd
import plotly.graph_objects as go

from ivlens.show.figures.benchmarks import LEVELS
from ivlens.show.figures.rows import grouped, mean, rows_of
from ivlens.show.figures.theme import LIGHT, Theme, colour_at, colour_bar, readable_on, styled

MOST_NUMBERS = 12  # in smaller cells numbers do not fit


def matrix_plot(matrix: pd.DataFrame, *, theme: Theme = LIGHT) -> go.Figure:
    """Map of the accuracy on each task (rows) with the vector of each task (columns), on bare prompts.

    Every vector has the setting that is best for the task of the row on *select*, so a high value away from the
    diagonal says that a vector of another task can do this one, too.

    Args:
        matrix: `TaskEvaluations.matrix` of `ivlens.runs.evaluation`, with the columns task, vector and accuracy. Pairs
            that it lacks stay blank.

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    rows = rows_of(matrix, ("task", "vector", "accuracy"), "ivlens evaluate")
    tasks = list(dict.fromkeys(str(row["task"]) for row in rows))
    names = [name for name in dict.fromkeys(str(row["vector"]) for row in rows) if name not in tasks]
    vectors = [*(task for task in tasks if any(row["vector"] == task for row in rows)), *names]
    cells = {
        pair: mean(row["accuracy"] for row in group)
        for pair, group in grouped(rows, lambda row: (str(row["task"]), str(row["vector"]))).items()
    }
    values = [[cells.get((task, vector), float("nan")) for vector in vectors] for task in tasks]
    figure = go.Figure(
        go.Heatmap(
            z=values, x=vectors, y=tasks, zmin=0, zmax=1, colorscale=LEVELS, xgap=1, ygap=1, hoverongaps=False,
            colorbar=colour_bar(theme, "accuracy"),
            hovertemplate="%{y} with the vector of %{x}: %{z:.2f}<extra></extra>",
        )
    )  # fmt: skip
    for (task, vector), value in cells.items():
        if max(len(tasks), len(vectors)) <= MOST_NUMBERS and value == value:
            ink = readable_on(colour_at(LEVELS, value))
            text = f"<b>{value:.2f}</b>" if task == vector else f"{value:.2f}"
            figure.add_annotation(x=vector, y=task, text=text, showarrow=False, font={"size": 12, "color": ink})
    height = 190 + max(90, min(44 * len(tasks), 640))
    styled(
        figure, theme, "Vectors on each other's tasks", "test inputs · each vector at its best setting", height=height
    )
    figure.update_xaxes(
        title_text="vector of", showgrid=False, tickangle=-45 if len(vectors) > 3 else 0, automargin=True
    )
    figure.update_yaxes(title_text="asked", showgrid=False, autorange="reversed", automargin=True)
    return figure
