"""The first paragraph of the demo's report, and the means it quotes."""

import math
from collections.abc import Sequence
from html import escape

from ivlens.show.demo.run import DemoResult
from ivlens.show.figures.rows import grouped, mean, rows_of


def lead(result: DemoResult) -> str:
    """What was found, in a paragraph; where the model cannot do its tasks, that."""
    able = result.able
    if not able:
        return (
            "<b>This model cannot do these tasks as it is asked here</b>, so no vector can carry them: "
            f"{_shortfalls(result)}. Look for prompts that it can answer (<code>ivlens prompts --model … --task "
            "…</code>; demonstrations often help: <code>--n-shots 5 --instruction none</code>), or take other tasks."
        )
    found = means(result, able)
    left_out = ""
    if len(able) < len(result.tasks):
        left_out = (
            f" Of {len(able)} of {len(result.tasks)} tasks; the others the model cannot do as it is asked, so that no "
            f"vector can carry them: {_shortfalls(result)}."
        )
    return (
        "The Instruction Vector of a task is the summed average output of the attention heads that carry what the "
        f"prompt tells the model to do. Added to prompts with <b>no {told(result)}</b>, {_effect(found)}. Of the same "
        "length, "
        f"random vectors reach {percent(found.get('random'))} and vectors of as many random heads "
        f"{percent(found.get('random_heads'))}. With {told(result)} it is {percent(found['clean'])}.{left_out}"
    )


def _effect(found: dict[str, float]) -> str:
    before, after = percent(found["bare"]), percent(found["iv"])
    if before == after:
        return f"it <b>changes nothing</b>: the accuracy stays at {before}"
    return f"it takes the accuracy from {before} to <b>{after}</b>"


def told(result: DemoResult) -> str:
    """What tells the clean prompts their task, in words."""
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
            bare = "" if ability.bare is None else f", bare {percent(ability.bare)}"
            found.append(f"{escape(effects.task)} (clean {percent(ability.clean)}{bare} of {ability.n} select inputs)")
    return ", ".join(found)


def means(result: DemoResult, tasks: Sequence[str] = ()) -> dict[str, float]:
    """Mean accuracy under each condition over these tasks, or over all where none are named."""
    rows = rows_of(result.conditions, ("task", "condition", "accuracy"), "evaluate_intervention")
    rows = [row for row in rows if not tasks or row["task"] in tasks]
    by_condition = grouped(rows, lambda row: row["condition"])
    return {name: mean(row["accuracy"] for row in group) for name, group in by_condition.items()}


def percent(value: float | None) -> str:
    """A share as whole per cent; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{100 * round(value, 2):.0f}&nbsp;%"
