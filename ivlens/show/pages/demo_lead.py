"""The first paragraph of the demo's report, and the mean accuracies that it quotes."""

import math
from collections.abc import Sequence
from html import escape

from ivlens.show.demo.run import DemoResult
from ivlens.show.figures.rows import grouped, mean, rows_of


def lead(result: DemoResult) -> str:
    """The main result in one paragraph; if the model cannot do any of the tasks, that is the result."""
    able = result.able
    if not able:
        return (
            "<b>This model cannot do these tasks with these prompts</b>, so no vector can carry them: "
            f"{_shortfalls(result)}. Look for prompts that it can answer (<code>ivlens prompts --model … --task "
            "…</code>; demonstrations often help: <code>--n-shots 5 --instruction none</code>), or take other tasks."
        )
    # tasks that the model cannot do say nothing about vectors, and would only lower the means
    found = means(result, able)
    left_out = ""
    if len(able) < len(result.tasks):
        left_out = (
            f" These are means over {len(able)} of {len(result.tasks)} tasks. The model cannot do the others with "
            f"these prompts, so no vector can carry them: {_shortfalls(result)}."
        )
    return (
        "The Instruction Vector of a task is the summed average output of the attention heads that carry what the "
        f"prompt tells the model to do. Added to prompts with <b>no {told(result)}</b>, {_effect(found)}. "
        f"Random vectors of the same length reach {percent(found.get('random'))}, and vectors of as many random heads "
        f"{percent(found.get('random_heads'))}. With {told(result)}, accuracy is {percent(found['clean'])}.{left_out}"
    )


def _effect(found: dict[str, float]) -> str:
    """What the vector does to the mean accuracy, as the end of a sentence."""
    before, after = percent(found["bare"]), percent(found["iv"])
    if before == after:
        return f"it <b>changes nothing</b>: the accuracy stays at {before}"
    return f"it takes the accuracy from {before} to <b>{after}</b>"


def told(result: DemoResult) -> str:
    """What tells clean prompts their task, in words: instruction, demonstrations, or both."""
    recipes = [(found.recipe, task) for found, task in zip(result.effects, result.tasks, strict=True)]
    kinds = {
        "instruction": any(recipe.texts(task) for recipe, task in recipes),
        "demonstrations": any(recipe.shots(task) for recipe, task in recipes),
    }
    return " or ".join(kind for kind, there in kinds.items() if there) or "instruction"


def _shortfalls(result: DemoResult) -> str:
    """The tasks that the model cannot do, each with the clean and bare accuracies that show it."""
    found = []
    for effects in result.effects:
        ability = effects.ability
        if ability is not None and not ability.is_enough:
            bare = "" if ability.bare is None else f", bare {percent(ability.bare)}"
            found.append(f"{escape(effects.task)} (clean {percent(ability.clean)}{bare} of {ability.n} select inputs)")
    return ", ".join(found)


def means(result: DemoResult, tasks: Sequence[str] = ()) -> dict[str, float]:
    """Mean accuracy under each condition, over these tasks; over all tasks if none are named."""
    rows = rows_of(result.conditions, ("task", "condition", "accuracy"), "evaluate_intervention")
    rows = [row for row in rows if not tasks or row["task"] in tasks]
    by_condition = grouped(rows, lambda row: row["condition"])
    return {name: mean(row["accuracy"] for row in group) for name, group in by_condition.items()}


def percent(value: float | None) -> str:
    """A share as whole per cent; a dash if it is None or NaN."""
    return "–" if value is None or math.isnan(value) else f"{100 * round(value, 2):.0f}&nbsp;%"
