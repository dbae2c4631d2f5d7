"""The tables of `benches/gemma.py`."""

from collections.abc import Sequence

import pandas as pd
from common import table

from ivlens.common.intervals import wilson

N_SHOTS, N_CLEAN, N_JUDGED, K = 5, 16, 32, 10  # demonstrations, prompts of means, judged inputs, heads of a vector

WAYS = (
    ("clean", "", "clean prompts"),
    ("bare", "", "bare inputs"),
    ("iv", "", "the vector, added once"),
    ("random", "", "random vectors"),
    ("random_heads", "", "vectors of random heads"),
    ("constant", "", "best constant"),
    ("mean_difference", "bare", "difference of means, clean − bare"),
    ("distributed", "mean", "distributed"),
    ("distributed", "minus_bare", "distributed, less bare means"),
    ("distributed_random_heads", "mean", "distributed, random heads of the same layers"),
    ("iv_heads", "", "heads replaced by their means"),
)


def show(found: pd.DataFrame) -> str:
    """The tables as Markdown."""
    frames = {str(of): rows.dropna(axis=1, how="all") for of, rows in found.groupby("table")}
    tasks = list(dict.fromkeys(found["task"]))
    about = (
        f"Gemma 3 270M, float32 from a file of 4 to 6 bits; {N_SHOTS} demonstrations, no instruction, seed 0; vectors "
        f"of {K} heads, added once to {N_JUDGED} bare *test* inputs, every vector and control at the layer and "
        "strength that did best on *select*. Brackets: Wilson. `make` and the wheels' names stand at the top of "
        "`benches/gemma.py`; the model is under Gemma's terms and no part of ivlens."
    )
    parts = ["## A second family (`python benches/gemma.py show --write`)", about]
    parts += ["### What attention adds, against the sum of scaled head writes", _scales(frames["scales"], tasks)]
    parts += ["### The same heads' vector under other scales", _vectors(frames["vectors"], tasks)]
    parts += ["### The vector beside other ways and controls", _rows(frames["rows"], tasks)]
    parts += [_heads(frames["heads"], frames["about"], tasks)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _scales(rows: pd.DataFrame, tasks: Sequence[str]) -> str:
    lines = []
    for task in tasks:
        own, mean, none = (rows[(rows["task"] == task) & (rows["scale"] == name)] for name in ("own", "mean", "none"))
        n = f"{own['prompt'].nunique()} × {own['layer'].nunique()}"
        low, high = mean["ratio"].quantile([0.05, 0.95])
        layer = mean.groupby("layer")["error"].mean()
        bare = none.groupby("layer")["ratio"].median()
        lines.append(
            [task, n, f"{own['error'].max():.1e}", f"{own['means_off'].max():.1e}"]
            + [f"{mean['ratio'].median():.3f} ({low:.2f} to {high:.2f})", f"{mean['cosine'].min():.5f}"]
            + [f"{mean['error'].mean():.3f}; worst layer L{layer.idxmax():.0f} {layer.max():.2f}"]
            + [f"{bare.min():.3f} (L{bare.idxmin():.0f}) to {bare.max():.2f} (L{bare.idxmax():.0f})"]
        )
    head = ["task", "prompts × layers", "each prompt's own scale: largest error", "head means: largest difference"]
    head += ["mean scale: length of sum ÷ of truth, median (5 % to 95 %)", "smallest cosine", "mean error"]
    head += ["without scale: length ÷ truth, median of layers"]
    return (
        "Errors are lengths of differences, as a share of the length of what attention added at the last prompt token, "
        "read from plain transformers as the stream behind attention less the stream before it.\n\n"
    ) + table(head, lines)


def _vectors(rows: pd.DataFrame, tasks: Sequence[str]) -> str:
    lines = []
    for scale in dict.fromkeys(rows["scale"]):
        line = [str(scale)]
        for task in tasks:
            (own,) = rows[(rows["task"] == task) & (rows["scale"] == scale)].to_dict("records")
            cosine = "" if own["cosine"] != own["cosine"] else f", cosine {own['cosine']:.3f}, norm {own['norm']:.0f}"
            line.append(f"{_accuracy(own['accuracy'], own['n'])} (L{own['layer']:.0f} ×{own['alpha']:g}{cosine})")
        lines.append(line)
    return (
        "Cosines are with the first line's vector, the one that `InstructionVector` makes; the last line's vectors "
        "differ from input to input.\n\n" + table(["scale", *tasks], lines)
    )


def _rows(rows: pd.DataFrame, tasks: Sequence[str]) -> str:
    rows, lines = rows.assign(variant=rows["variant"].fillna("")), []
    for condition, variant, label in WAYS:
        line = [label]
        for task in tasks:
            own = rows[(rows["task"] == task) & (rows["condition"] == condition) & (rows["variant"] == variant)]
            line.append("" if own.empty else _with_interval(own.iloc[0]))
        if any(line[1:]):
            lines.append(line)
    return table(["", *tasks], lines)


def _with_interval(row: pd.Series) -> str:
    at = "" if row["layer"] != row["layer"] else f"L{row['layer']:.0f} "
    at += "" if row["alpha"] != row["alpha"] else f"×{row['alpha']:g}"
    where = f" ({at.strip()})" if at else ""
    return f"{row['accuracy']:.2f} [{row['accuracy_lo']:.2f}, {row['accuracy_hi']:.2f}]{where}"


def _accuracy(accuracy: float, n: float) -> str:
    low, high = wilson(round(accuracy * n), int(n))
    return f"{accuracy:.2f} [{low:.2f}, {high:.2f}]"


def _heads(heads: pd.DataFrame, about: pd.DataFrame, tasks: Sequence[str]) -> str:
    lines = []
    for task in tasks:
        own, said = heads[heads["task"] == task], about[about["task"] == task].iloc[0]
        strongest = ", ".join(f"{row['label']} {row['aie']:.2f}" for row in own.head(5).to_dict("records"))
        lines.append([task, strongest, f"{said['clean_score']:.2f} → {said['base_score']:.2f}"])
    return table(["task", "strongest heads (AIE)", "score, clean → shuffled"], lines)
