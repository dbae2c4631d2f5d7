"""The sentences of the page of `ivlens evaluate` that say what was found, with numbers and intervals."""

from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd

from ivlens.effects.results import HeadEffects
from ivlens.runs.evaluation.plan import EvaluateOptions
from ivlens.runs.evaluation.results import TaskEvaluations
from ivlens.show.figures.rows import Row, grouped, mean, rows_of
from ivlens.tasks.task import Task

DRAWN = {"random": "random vectors", "random_heads": "vectors of random heads", "other_tasks": "vectors of other tasks"}


def lead(result: TaskEvaluations) -> str:
    """The page's first paragraph: the mean over tasks that the model can do, with the vector and its controls."""
    able = [one.task for one in result.effects if one.ability is None or one.ability.is_enough]
    if not able:
        return (
            "<b>This model cannot do these tasks with these prompts</b>, so no vector can carry them. Look for prompts "
            "that it can answer (<code>ivlens prompts --model … --task …</code>), or take other tasks."
        )
    rows = [row for row in rows_of(result.table, ("task", "condition"), "ivlens evaluate") if row["task"] in able]
    by_condition = grouped(rows, lambda row: row["condition"])
    found = {name: mean(row["accuracy"] for row in by_condition.get(name, ())) for name in ("bare", "iv", "clean")}
    drawn = {
        text: mean(row["accuracy"] for row in by_condition[name] if row["accuracy"] == row["accuracy"])
        for name, text in DRAWN.items()
        if name in by_condition
    }
    beside = ", ".join(f"{text} {value:.2f}" for text, value in drawn.items() if value == value)
    of = f"the mean of {len(able)} tasks" if len(able) > 1 else f"of <code>{escape(able[0])}</code>"
    out = (
        f" The model cannot do {len(result.tasks) - len(able)} of the tasks with these prompts; they are not in these "
    )
    out += "means."
    return (
        "The Instruction Vector of a task is the summed mean output of the attention heads that carry what a prompt "
        f"tells the model to do. Added to bare inputs, it takes accuracy, {of}, from {found['bare']:.2f} to "
        f"<b>{found['iv']:.2f}</b>; prompts that tell the task reach {found['clean']:.2f}. Its controls: {beside}."
        f"{out if len(able) < len(result.tasks) else ''}"
    )


def headline(table: pd.DataFrame, effects: HeadEffects, options: EvaluateOptions) -> str:
    """What the vector of one task does to bare inputs, beside its strongest control."""
    rows = rows_of(table, ("condition", "accuracy"), "ivlens evaluate")
    iv, bare, clean = (_of(rows, name) for name in ("iv", "bare", "clean"))
    assert iv is not None and bare is not None and clean is not None
    where = "after" if iv["site"] == "resid_post" else "to what attention adds in"
    text = (
        f"Added to bare inputs {where} block {iv['layer']:g} with strength {iv['alpha']:g}, the vector of "
        f"{options.k} heads takes accuracy from {_number(bare)} to <b>{iv['accuracy']:.2f}</b> ({_between(iv)}); clean "
        f"prompts reach {_number(clean)}."
    )
    drawn = [row for name in DRAWN if (row := _of(rows, name)) is not None and row["accuracy"] == row["accuracy"]]
    if not drawn:
        return text
    best = max(drawn, key=lambda row: row["accuracy"])
    n, reached = int(best["n_vectors"]), int(best["n_as_good"])
    several = f"on average {_number(best)}, the best of {n} {best['accuracy_best']:.2f}" if n > 1 else _number(best)
    count = "none reaches" if not reached else f"{reached} of {n} {'reaches' if reached == 1 else 'reach'}"
    return f"{text} The strongest kind of control, {DRAWN[best['condition']]}, has {several}; {count} the vector."


def necessary(table: pd.DataFrame) -> str:
    """What clean prompts lose without the vector's heads; empty where that was not measured."""
    rows = rows_of(table, ("condition", "variant"), "ivlens evaluate")
    own = _of(rows, "necessity", "other_tasks")
    if own is None:
        return ""
    drawn, following = (_of(rows, f"necessity_{name}_heads", "other_tasks") for name in ("random", "next"))
    beside = [
        f"{text} {row['lost']:.2f} ({_between(row, 'lost')})"
        for text, row in (("random heads of the same layers", drawn), ("the heads next in strength", following))
        if row is not None
    ]
    return (
        "Where outputs of its heads are replaced on clean prompts by means over other tasks' prompts, the model loses "
        f"<b>{own['lost']:.2f}</b> ({_between(own, 'lost')}) of accuracy{'; without ' if beside else ''}"
        f"{' and without '.join(beside)}."
    )


def told(effects: HeadEffects, task: Task) -> str:
    """What the model itself does with these prompts, and what the corruption takes away."""
    parts = [f"The model itself, on <i>select</i> inputs: {escape(str(effects.ability))}."] if effects.ability else []
    if effects.taken:
        kinds = ", ".join(sorted(set(effects.corruptions)))
        parts.append(f"The corruption ({escape(kinds)}): {escape(str(effects.taken))}.")
    texts = effects.recipe.texts(task)
    if texts:
        parts.append(f"Instruction, for example: “{escape(texts[0])}”")
    return " ".join(parts)


def _of(rows: Sequence[Row], condition: str, variant: str = "") -> Row | None:
    found = [row for row in rows if row["condition"] == condition and row.get("variant", "") == variant]
    return found[0] if found else None


def _number(row: Row) -> str:
    return f"{row['accuracy']:.2f} ({_between(row)})"


def _between(row: dict[str, Any], name: str = "accuracy") -> str:
    return f"{row[f'{name}_lo']:.2f} to {row[f'{name}_hi']:.2f}"
