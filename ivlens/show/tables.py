"""Small tables that notebooks show for results: everything a task, a model or a file says is escaped."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ivlens.common.names import shown
from ivlens.effects.results import HeadEffects
from ivlens.forward.finding import PromptSearch
from ivlens.tasks.task import Task
from ivlens.vectors.vector import InstructionVector

N_HEADS, N_EXAMPLES, N_INSTRUCTIONS, MOST_LETTERS = 10, 3, 3, 160


def effects_html(effects: HeadEffects) -> str:
    """The strongest heads with their intervals, also as they were measured again, and what was measured."""
    rows = effects.to_frame().head(N_HEADS).to_dict("records")
    head, heads = head_cells(rows, "" if effects.again is None else effects.again.split)
    facts = {
        "model": effects.model,
        "prompts": f"{len(effects.cie)} corrupted ({', '.join(sorted(set(effects.corruptions)))}); {effects.recipe}",
        "score": f"{effects.settings.get('score', '')}, method {effects.settings.get('method', '')}",
        **({"the model itself": effects.ability} if effects.ability else {}),
        **({"taken away": effects.taken} if effects.taken else {}),
    }
    table = _table(head, heads)
    warnings = "".join(f"<p><b>Warning:</b> {escape(text)}</p>" for text in effects.warnings)
    return _titled(f"Head effects of {effects.task}", warnings + _facts(facts) + table)


def head_cells(rows: Sequence[Mapping[Hashable, Any]], again: str = "") -> tuple[list[str], list[list[str]]]:
    """Names of columns, and cells, for rows of `HeadEffects.to_frame`; `again`: the split of heads measured again."""
    kinds = [str(row["interval"]) for row in rows[:1]] + [str(row["interval_again"]) for row in rows[:1] if again]
    head = ["head", "AIE", *(kind or "interval" for kind in kinds[:1])]
    head += [f"AIE on {again}", *kinds[1:]] if again else []
    cells = []
    for row in rows:
        cells.append([str(row["label"]), *_effect(row)])
        cells[-1] += _effect(row, "_again") if again else []
    return head, cells


def _effect(row: Mapping[Hashable, Any], of: str = "") -> list[str]:
    value, low, high = (row[f"{name}{of}"] for name in ("aie", "low", "high"))
    if value != value:
        return ["–", "–"]
    return [f"{value:+.4g}", "–" if low != low else f"{low:+.4g} to {high:+.4g}"]


def vector_html(vector: InstructionVector) -> str:
    """Heads, norm, recipe and model."""
    facts = {
        "model": vector.model,
        "heads": " ".join(f"L{layer}H{head}" for layer, head in vector.heads) or "none: computed from other vectors",
        "norm": f"{vector.norm:.4g}",
        "prompts": vector.recipe or "not recorded, or of several recipes",
    }
    if "used_with" in vector.settings:
        facts["used with"] = f"{vector.settings['used_with'].get('name')}, which has other weights"
    return _titled(f"Instruction Vector of {vector.task}", _facts(facts))


def task_html(task: Task) -> str:
    """Counts, some examples, some instructions."""
    facts = {
        "examples": len(task.examples),
        "instructions": "one text with the input" if task.fused else _some(task.instructions),
        "skipped": len(task.skipped),
        "source": task.source,
    }
    shown = [(each.input, " | ".join(each.answers)) for each in task.examples[:N_EXAMPLES]]
    table = _table(("input", "answers"), shown)
    return _titled(f"Task {task.name}", _facts({name: value for name, value in facts.items() if value}) + table)


def search_html(search: PromptSearch) -> str:
    """All forms that were tried, the best one first."""
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
    facts = {"model": search.model, "best": search.best, "warning": search.warning}
    shown = _facts({name: value for name, value in facts.items() if value})
    return _titled(f"Forms to ask {search.task} in", shown + _table(head, rows))


def _some(texts: tuple[str, ...]) -> str:
    more = len(texts) - N_INSTRUCTIONS
    return " | ".join(texts[:N_INSTRUCTIONS]) + (f" | and {more} more" if more > 0 else "") if texts else "none"


def _titled(title: str, content: str) -> str:
    return f"<div><p><b>{_cell(title)}</b></p>{content}</div>"


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><th>{_cell(name)}</th><td>{_cell(value)}</td></tr>" for name, value in facts.items())
    return f"<table>{rows}</table>"


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    top = "".join(f"<th>{_cell(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    text = str(value)
    text = shown(text)
    return escape(text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…")
