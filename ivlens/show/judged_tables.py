"""A judgement's rows as tables for readers: what belongs together stands together. Commands and pages show these."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from ivlens.show.figures.conditions import LOOKS
from ivlens.show.figures.rows import Row, interval_kinds, rows_of

# what is called what in each table
NECESSITY = {
    "necessity": "the vector's heads",
    "necessity_next_heads": "the heads next in strength",
    "necessity_random_heads": "random heads of the same layers",
}
SOURCES = {"other_tasks": "other tasks' prompts", "corrupted": "corrupted prompts", "bare": "bare inputs"}
VECTORS = {
    "iv": "sum of the heads' means",
    "distributed": "each head in its layer",
    "distributed_random_heads": "random heads in their layers",
    "mean_difference": "difference of mean streams",
    "mean_difference_random": "random directions",
    "trained": "trained by gradient",
    "trained_permuted": "trained on permuted answers",
}
VARIANTS = {
    ("distributed", "mean"): "mean",
    ("distributed", "minus_bare"): "mean − bare mean",
    ("mean_difference", "corrupted"): "clean − corrupted",
    ("mean_difference", "bare"): "clean − bare",
}
CONTROL_OF = {
    "distributed_random_heads": "distributed",
    "mean_difference_random": "mean_difference",
    "trained_permuted": "trained",
}
SIDE = {name: LOOKS[name].label for name in ("iv", "random", "random_heads", "other_tasks")} | VECTORS
SIDE["iv"] = LOOKS["iv"].label


class Group(NamedTuple):
    """Rows that belong together, as a table.

    Attributes:
        name: Which group it is.
        title: What the table shows.
        head: The names of its columns.
        rows: A list of cells for each row: texts, numbers, or None where there is nothing.
    """

    name: str
    title: str
    head: list[str]
    rows: list[list[Any]]


def groups(table: pd.DataFrame) -> list[Group]:
    """The tables of one task's judgement; only those of which there are rows.

    Args:
        table: The rows of one task in `TaskEvaluations.table`, or `Evaluation.table`.

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    needed = ("condition", "variant", "accuracy", "accuracy_lo", "accuracy_hi", "n_vectors", "layer", "alpha", "n")
    rows = [row for row in rows_of(table, needed, "ivlens.evaluate_intervention") if _is_known(row["accuracy"])]
    makers = (_controls, _necessity, _by_k, _vectors, _side_effects, _templates)
    return [group for make in makers if (group := make(rows)).rows]


def between(row: Mapping[str, Any], name: str = "accuracy", form: str = ".2f") -> str:
    """The interval of a value as text, such as "0.41 to 0.72"; empty where there is none."""
    low, high = row.get(f"{name}_lo"), row.get(f"{name}_hi")
    return f"{low:{form}} to {high:{form}}" if _is_known(low) and _is_known(high) else ""


def place_of(row: Mapping[str, Any]) -> str:
    """Where and how strongly a vector was added; empty where several have different places, or none has one."""
    parts = []
    if _is_known(row.get("layer")):
        parts.append(f"layer {row['layer']:g}")
    if _is_known(row.get("alpha")):
        parts.append(f"alpha {row['alpha']:g}")
    return ", ".join(parts)


def _is_known(value: Any) -> bool:
    return value is not None and value == value  # NaN equals nothing, itself included


def _of(rows: Sequence[Row], condition: str, variant: str = "") -> Row | None:
    """The row of a condition and variant."""
    return next((row for row in rows if (row["condition"], row["variant"]) == (condition, variant)), None)


def _several(row: Row) -> str:
    """How many vectors or sets of heads a row is the mean of, and the best one's accuracy; empty for one."""
    best = f", best {row['accuracy_best']:.2f}" if _is_known(row.get("accuracy_best")) else ""
    return f"{int(row['n_vectors'])}{best}" if row["n_vectors"] > 1 else ""


def _p(row: Row) -> list[str]:
    """The p value, corrected for the number of tasks where there are several."""
    p = row["p_holm"] if _is_known(row.get("p_holm")) else row.get("p")
    return [f"{p:.3f}" if _is_known(p) else ""]


def _accuracy(row: Row) -> list[Any]:
    return [float(row["accuracy"]), between(row)]


def _controls(rows: Sequence[Row]) -> Group:
    chosen = [row for name in LOOKS if (row := _of(rows, name)) is not None]
    n = int(chosen[0]["n"]) if chosen else 0
    cells = [[LOOKS[row["condition"]].label, *_accuracy(row), _several(row), place_of(row), *_p(row)] for row in chosen]
    title = f"The vector and its controls: accuracy on {n} test inputs"
    return Group("controls", title, ["", "accuracy", interval_kinds(chosen), "mean of", "added at", "p"], cells)


def _necessity(rows: Sequence[Row]) -> Group:
    found = [row for source in SOURCES for name in NECESSITY if (row := _of(rows, name, source)) is not None]
    cells = []
    for row in found:
        what, n = [SOURCES[row["variant"]], NECESSITY[row["condition"]]], str(int(row["n_vectors"]))
        cells.append(
            [*what, *_accuracy(row), float(row["lost"]), between(row, "lost"), n if n != "1" else "", *_p(row)]
        )
    head = ["replaced by means over", "outputs of", "accuracy", interval_kinds(found), "lost", "t 95 %", "mean of", "p"]
    return Group("necessity", "Are the heads needed? Clean prompts with outputs of heads replaced", head, cells)


def _by_k(rows: Sequence[Row]) -> Group:
    cells, own = [], [row for row in rows if row["condition"] == "by_k"]
    for row in own:
        drawn = _of(rows, "by_k_random_heads", row["variant"])
        beside = ["", "", "", ""]
        if drawn is not None:
            beside = [f"{drawn['accuracy']:.2f}", between(drawn), _several(drawn), *_p(drawn)]
        cells.append([row["variant"], *_accuracy(row), place_of(row), *beside])
    kind = interval_kinds(own)
    head = ["heads", "vector", kind, "added at", "random heads", kind, "mean of", "p"]
    return Group("by_k", "Other numbers of heads: accuracy on bare inputs", head, cells)


def _vectors(rows: Sequence[Row]) -> Group:
    # a control stands below the rows of the way that it belongs to
    ways = list(dict.fromkeys(_way(row) for name in VECTORS for row in rows if row["condition"] == name))
    names = [*VECTORS]
    found = [row for row in rows if row["condition"] in VECTORS]
    found.sort(key=lambda row: (ways.index(_way(row)), names.index(row["condition"])))
    cells = []
    for row in found:
        variant = VARIANTS.get(_way(row), row["variant"])
        cells.append([VECTORS[row["condition"]], variant, *_accuracy(row), _several(row), place_of(row), *_p(row)])
    head = ["made by", "", "accuracy", interval_kinds(found), "mean of", "added at", "p"]
    # the vector alone stands in the first table
    return Group("vectors", "Other ways to a vector: accuracy on bare inputs", head, cells if len(cells) > 1 else [])


def _way(row: Row) -> tuple[str, str]:
    """The way to make a vector that a row is about, its controls included."""
    condition, variant = str(row["condition"]), str(row["variant"])
    return CONTROL_OF.get(condition, condition), variant


def _side_effects(rows: Sequence[Row]) -> Group:
    found = [row for row in rows if row["condition"] in SIDE and _is_known(row.get("kl"))]
    cells = []
    for row in found:
        variant = VARIANTS.get((row["condition"], row["variant"]), row["variant"])
        numbers = [float(row["kl"]), between(row, "kl"), float(row["perplexity"]), float(row["perplexity_plain"])]
        cells.append([SIDE[row["condition"]], variant, *numbers])
    head = ["", "", "KL (nats)", "t 95 %", "perplexity", "without"]
    title = "Side effects on unrelated texts (KL: vector added at the last token; perplexity: at every token)"
    return Group("side_effects", title, head, cells)


def _templates(rows: Sequence[Row]) -> Group:
    names = list(dict.fromkeys(row["variant"] for row in rows if row["condition"] == "other_template"))
    conditions = ("other_template_bare", "other_template", "other_template_clean")
    cells = [[name, *(_text(_of(rows, condition, name)) for condition in conditions)] for name in names]
    head = ["template", "bare input", "with the vector", "clean prompt"]
    return Group("templates", "Other templates, with the setting found in the vector's own", head, cells)


def _text(row: Row | None) -> str:
    return "" if row is None else f"{row['accuracy']:.2f} ({between(row)})"
