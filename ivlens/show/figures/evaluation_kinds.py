"""Kinds of results that `ivlens evaluate` and judgements write, and what is drawn from each."""

from collections.abc import Iterator

import pandas as pd

from ivlens.show.figures.by_k import by_k_plot
from ivlens.show.figures.conditions import condition_plot, condition_rows
from ivlens.show.figures.found import Found
from ivlens.show.figures.kind import Kind, count, each
from ivlens.show.figures.matrix import matrix_plot
from ivlens.show.figures.necessity import necessity_plot
from ivlens.show.figures.other_vectors import WAYS, other_vectors_plot
from ivlens.show.figures.panels import COLUMNS
from ivlens.show.figures.paper import Drawing, Width
from ivlens.show.figures.rows import interval_kinds
from ivlens.show.figures.tables import condition_table

JUDGED = ("condition", "accuracy", "accuracy_lo")


def _conditions(name: str, file: Found) -> Iterator[Drawing]:
    frame = file.frame
    n_tasks = count(frame, "task")
    # the table's settings: one set, or one for each task; a table without settings is taken for a judgement on *test*
    splits = {str(one.get("split", "test")) for one in frame.attrs.get("tasks", [frame.attrs])}
    caption = (
        f"Accuracy on {' and '.join(sorted(splits))} inputs without what tells the task, under every condition, with "
        f"intervals ({interval_kinds(condition_rows(frame))}) over prompts; settings were searched on other "
        "inputs, for controls as for the vector."
    )
    # eight marks in each row; many tasks have to fit a page
    inches = 2.4 if n_tasks == 1 else 0.9 + (0.7 if n_tasks < 6 else 0.55) * (n_tasks + 1)
    yield Drawing(name, caption, condition_plot(frame), width="column" if n_tasks == 1 else "page", inches=inches)
    yield Drawing(name, caption, table=condition_table(frame))


def _more_rows(name: str, file: Found) -> Iterator[Drawing]:
    """Figures of those further rows that the table has."""
    frame = file.frame
    conditions, n_tasks = set(frame["condition"]), count(frame, "task")
    lines = -(-n_tasks // COLUMNS)  # of panels
    width: Width = "column" if n_tasks == 1 else "page"
    if "by_k" in conditions:
        kinds = interval_kinds(_of(frame, "by_k"))
        caption = (
            "Accuracy on bare test inputs with vectors of more and more heads, and with as many random heads (mean of "
            f"the draws, and the best one); bands: {kinds} over prompts; dashed: bare input; dotted: clean prompt."
        )
        yield Drawing(f"{name}-by_k", caption, by_k_plot(frame), width=width, inches=0.5 + 2.0 * lines)
    if "necessity" in conditions:
        caption = (
            "Accuracy lost on clean test prompts when the outputs of heads at the last prompt token are replaced by "
            "means over other prompts; bars: t 95 % over prompts."
        )
        yield Drawing(f"{name}-necessity", caption, necessity_plot(frame), width=width, inches=0.6 + 1.9 * lines)
    if conditions & {way.condition for way in WAYS if way.condition != "iv"}:
        caption = (
            "Accuracy on bare test inputs with vectors made in several ways, each beside its own controls; bars: "
            f"{interval_kinds(_of(frame, 'iv'))} over prompts; dashed: bare input; dotted: clean prompt."
        )
        yield Drawing(f"{name}-vectors", caption, other_vectors_plot(frame), width="page", inches=0.9 + 2.6 * lines)


def _of(frame: pd.DataFrame, condition: str) -> list[dict]:
    """The rows of one condition."""
    return frame.loc[frame["condition"].to_numpy() == condition].to_dict("records")


def _judged(name: str, file: Found) -> Iterator[Drawing]:
    yield from _conditions(name, file)
    yield from _more_rows(name, file)


def _matrix(name: str, file: Found) -> Iterator[Drawing]:
    frame = file.frame
    rows = pd.DataFrame(frame[frame["condition"].isin(["iv", "other_tasks"])])
    if count(rows, "vector") > 1:
        caption = (
            "Accuracy on bare test inputs of each task (rows) with the vector of each task (columns), every vector at "
            "the setting that is best for the row's task on select inputs."
        )
        yield Drawing(name, caption, matrix_plot(rows), inches=1.2 + 0.24 * count(rows, "task"))


def _is_by_vector(file: Found) -> bool:
    """Whether a table of a judgement has a row for each vector: then nothing in it is compared with the vector."""
    return file.has(*JUDGED, "task", "vector") and not file.has("lead")


EVALUATION_KINDS = (
    Kind("by_vector", _is_by_vector, each("matrix", _matrix)),
    Kind("conditions", lambda file: file.has(*JUDGED), each("conditions", _judged)),
)
