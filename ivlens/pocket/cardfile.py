"""Writes a card as JSON, as a table for the terminal, and as the page that lies beside the weights."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from ivlens.common.saves import filling
from ivlens.pocket.card import Card

_INTRODUCTION = """A Llama-style language model trained from scratch on ivlens's task bank, so that every feature has
something true to show offline. It was built so that Instruction Vectors work in it (half of its training texts let
instruction and input meet only at the cue): a demonstration, not evidence about large models. `ivlens pocket train`
makes the weights, `ivlens pocket card` this page.

Every control chooses its layer, strength and site on the *select* inputs by itself, as the vector does. Accuracy is
greedy: what is generated begins with an accepted answer and does not go on inside its last word; *exact* asks that it
ends there. Intervals are Wilson's, 95 %, over distinct inputs. Words that no rule prompt contained are spelled out in
the training prose."""


def card_json(card: Card) -> str:
    """The whole card as one JSON object; NaN and infinite numbers become null."""
    # pandas writes null for NaN, which strict JSON does not have
    tables = {
        name: json.loads(getattr(card, name).to_json(orient="records", double_precision=6))
        for name in ("measures", "tasks", "interventions")
    }
    return json.dumps({"about": dict(card.about), **tables}, indent=1, ensure_ascii=False, allow_nan=False)


def card_table(card: Card) -> str:
    """The card's measures as a Markdown table."""
    lines = ["| measure | value | 95 % interval | exact | bar | |", "|---|---|---|---|---|---|"]
    for row in card.measures.to_dict("records"):
        numbers = f"{row['value']:.3f} | {row['low']:.3f} – {row['high']:.3f} | {row['exact']:.3f}"
        lines.append(f"| {row['title']} | {numbers} | {row['bar']} | {row['verdict']} |")
    return "\n".join(lines)


def write_card(card: Card, folder: Path) -> None:
    """Write `MODEL_CARD.md` and `card.json` into `folder`: both or, if anything fails, neither."""
    # the evaluation has more columns; a page has room for these
    columns = [
        "task",
        "condition",
        "n_vectors",
        "layer",
        "alpha",
        "site",
        "n",
        "accuracy",
        "accuracy_lo",
        "accuracy_hi",
        "exact",
    ]
    interventions = card.interventions.reindex(columns=[name for name in columns if name in card.interventions])
    parts = [
        "# The pocket model",
        _INTRODUCTION,
        card_table(card),
        "\n".join(f"- {key.replace('_', ' ')}: {_cell(value)}" for key, value in card.about.items()),
        "## Accuracy by task",
        _markdown(card.tasks),
        "## Interventions on shared-input tasks",
        _markdown(interventions),
    ]
    page, data = "\n\n".join(parts) + "\n", card_json(card) + "\n"
    with filling(folder) as scratch:
        (scratch / "MODEL_CARD.md").write_text(page, encoding="utf-8")
        (scratch / "card.json").write_text(data, encoding="utf-8")


def _markdown(frame: pd.DataFrame) -> str:
    """A table of pandas as a Markdown table, without its index."""
    cells = [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
    head = [f"| {' | '.join(map(str, frame.columns))} |", "|" + "---|" * len(frame.columns)]
    return "\n".join(head + [f"| {' | '.join(row)} |" for row in cells])


def _cell(value: Any) -> str:
    """A value as the text of a table cell; NaN and None are empty."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.3f}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return "" if value is None else str(value)
