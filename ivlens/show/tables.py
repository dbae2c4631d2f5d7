"""What notebooks show of results, as small HTML tables."""

from collections.abc import Hashable, Mapping, Sequence
from html import escape
from typing import Any

from ivlens.analysis.attention.results import HeadAttention
from ivlens.common.html import facts, table, titled
from ivlens.effects.compare import HeadComparison
from ivlens.effects.results import HeadEffects
from ivlens.forward.finding import PromptSearch
from ivlens.models.mixers import head_labels
from ivlens.tasks.task import Task
from ivlens.vectors.vector import InstructionVector

N_HEADS, N_EXAMPLES, N_INSTRUCTIONS = 10, 3, 3


def effects_html(effects: HeadEffects) -> str:
    """An HTML table of the strongest heads with their effects and intervals, below a table of what was measured."""
    rows = effects.to_frame().head(N_HEADS).to_dict("records")
    head, heads = head_cells(rows, "" if effects.again is None else effects.again.split)
    about = {
        "model": effects.model,
        "prompts": f"{len(effects.cie)} corrupted ({', '.join(sorted(set(effects.corruptions)))}); {effects.recipe}",
        "score": f"{effects.settings.get('score', '')}, method {effects.settings.get('method', '')}",
        **({"the model itself": effects.ability} if effects.ability else {}),
        **({"taken away": effects.taken} if effects.taken else {}),
    }
    warnings = "".join(f"<p><b>Warning:</b> {escape(text)}</p>" for text in effects.warnings)
    return titled(f"Head effects of {effects.task}", warnings + facts(about) + table(head, heads))


def head_cells(rows: Sequence[Mapping[Hashable, Any]], again: str = "") -> tuple[list[str], list[list[str]]]:
    """The names of the columns, and the cells of each row, for a table of heads.

    Args:
        rows: rows of `HeadEffects.to_frame`.
        again: the split on which these heads were measured again; empty where they were not.
    """
    # all intervals of one table are of one kind, so the first row can name the column
    kinds = [str(row["interval"]) for row in rows[:1]] + [str(row["interval_again"]) for row in rows[:1] if again]
    head = ["head", "AIE", *(kind or "interval" for kind in kinds[:1])]
    head += [f"AIE on {again}", *kinds[1:]] if again else []
    cells = []
    for row in rows:
        cells.append([str(row["label"]), *_effect(row)])
        cells[-1] += _effect(row, "_again") if again else []
    return head, cells


def _effect(row: Mapping[Hashable, Any], ending: str = "") -> list[str]:
    """Two cells: the AIE of a head and its interval, from the columns `aie`, `low` and `high` with this ending."""
    value, low, high = (row[f"{name}{ending}"] for name in ("aie", "low", "high"))
    if value != value:  # NaN: this head was not measured
        return ["–", "–"]
    return [f"{value:+.4g}", "–" if low != low else f"{low:+.4g} to {high:+.4g}"]


def vector_html(vector: InstructionVector) -> str:
    """An HTML table of a vector: its model, heads, norm and the prompts it was made from."""
    about = {
        "model": vector.model,
        "heads": " ".join(head_labels(vector.heads, vector.model.n_heads)) or "none: trained or computed",
        "norm": f"{vector.norm:.4g}",
        "prompts": vector.recipe or "not recorded, or of several recipes",
    }
    if "used_with" in vector.settings:
        about["used with"] = f"{vector.settings['used_with'].get('name')}, which has other weights"
    return titled(f"Instruction Vector of {vector.task}", facts(about))


def task_html(task: Task) -> str:
    """An HTML table of a task: counts, a few examples and a few instructions."""
    about = {
        "examples": len(task.examples),
        "instructions": "one text with the input" if task.fused else _some(task.instructions),
        "skipped": len(task.skipped),
        "source": task.source,
    }
    examples = [(each.input, " | ".join(each.answers)) for each in task.examples[:N_EXAMPLES]]
    known = {name: value for name, value in about.items() if value}
    return titled(f"Task {task.name}", facts(known) + table(("input", "answers"), examples))


def search_html(search: PromptSearch) -> str:
    """An HTML table of all prompt forms that were tried, the best one first, with clean and bare accuracies."""
    rows = [
        (
            *(row[name] for name in ("template", "n_shots", "instruction")),
            *(f"{row[what]:.2f} ({row[f'{what}_lo']:.2f} to {row[f'{what}_hi']:.2f})" for what in ("clean", "bare")),
            row["n"],
            f"{row['n_tokens']:.0f}",
        )
        for row in search.table.to_dict("records")
    ]
    head = ("template", "demonstrations", "instruction", "clean (95 %)", "bare (95 %)", "inputs", "tokens")
    about = {"model": search.model, "best": search.best, "warning": search.warning}
    known = facts({name: value for name, value in about.items() if value})
    return titled(f"Forms of prompt for {search.task}", known + table(head, rows))


def attention_html(found: HeadAttention) -> str:
    """An HTML table of where heads look, the first ones of many, below a table of what was measured."""
    shares = found.table()
    most = N_HEADS * len(found.prompts)
    rows = [[*row[:2], *("–" if value != value else f"{value:.2f}" for value in row[2:])] for row in shares.to_numpy()]
    about: dict[str, Any] = {
        "model": found.model,
        "prompts": ", ".join(f"{len(one.inputs)} {kind}" for kind, one in found.looked.items()),
        "recipe": found.recipe,
        **({"heads": f"{len(found.heads)}, of which the first {N_HEADS} are shown"} if len(rows) > most else {}),
    }
    return titled(f"Where heads look: {found.task}", facts(about) + table(map(str, shares.columns), rows[:most]))


def comparison_html(found: HeadComparison) -> str:
    """An HTML table of which heads two measurements share."""
    about = {
        "first": found.first,
        "second": found.second,
        f"shared, of {found.k}": f"{found.overlap} (by chance {found.expected:.2f}, p = {found.p:.2g})",
        "rank correlation": f"{found.correlation:.2f} ({found.low:.2f} to {found.high:.2f})",
        "of each with itself": " and ".join(f"{one:.2f}" for one in found.reliability),
        "heads of both": found.labels(found.shared) or "none",
        "of the first alone": found.labels(found.only_first) or "none",
        "of the second alone": found.labels(found.only_second) or "none",
    }
    warnings = "".join(f"<p><b>Warning:</b> {escape(text)}</p>" for text in found.warnings)
    return titled("Strongest heads of two measurements", warnings + facts(about))


def _some(texts: tuple[str, ...]) -> str:
    """The first few of these texts in one cell, and how many more there are."""
    more = len(texts) - N_INSTRUCTIONS
    return " | ".join(texts[:N_INSTRUCTIONS]) + (f" | and {more} more" if more > 0 else "") if texts else "none"
