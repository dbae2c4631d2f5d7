"""Draws what `benches/vectors.py` and `benches/heads.py` found in a real model, as figures for the docs.

    python benches/vectors_figures.py [--out figures]

Needs Chrome or Chromium. Nothing is measured here; all numbers are those of `vectors.parquet` and `heads.parquet`.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import heads
import pandas as pd
import vectors

from ivlens.common.intervals import t_interval
from ivlens.show.figures.attention import attention_bars
from ivlens.show.figures.by_k import LOOKS, by_k_plot
from ivlens.show.figures.conditions import condition_plot
from ivlens.show.figures.images import one_browser
from ivlens.show.figures.paper import Drawing
from ivlens.show.figures.sweeps import strength_curves
from ivlens.show.figures.theme import write_figure

MODEL, SHOWN = "smollm2", "third_person"
SCALE = 1.8  # 173 pixels per inch: enough for a page in a browser, and small files


def drawings(found: pd.DataFrame, looked: pd.DataFrame) -> Iterator[Drawing]:
    """The figures of one model, by their names."""
    own = found[found["model"] == MODEL]
    rows = own[own["table"] == "rows"].dropna(axis=1, how="all")
    n_tasks = rows["task"].nunique()
    yield Drawing("vectors-conditions", "", condition_plot(rows), width="page", inches=1.0 + 0.5 * (n_tasks + 1))
    yield Drawing("vectors-k", "", by_k_plot(over_tasks(rows)), inches=2.6)
    layers = own[own["table"] == "layers"].dropna(axis=1, how="all")
    yield Drawing("vectors-layers", "", strength_curves(layers), inches=2.4)
    looks = looked[(looked["model"] == MODEL) & (looked["task"] == SHOWN) & (looked["of"] == "looks")]
    yield Drawing("vectors-looks", "", attention_bars(by_segment(looks)), width="page", inches=3.4)


def over_tasks(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over tasks, with t intervals over them, of all numbers of heads and of plain prompts."""
    lines = []
    chosen = rows[rows["condition"].isin([*LOOKS, "clean", "bare"])].fillna({"variant": ""})
    for (condition, variant), own in chosen.groupby(["condition", "variant"]):
        mean, low, high = t_interval(own.groupby("task")["accuracy"].mean().to_numpy())
        about = {"condition": condition, "variant": variant, "interval": "t 95 %", "n": len(own)}
        lines.append(about | {"accuracy": mean, "accuracy_lo": max(low, 0.0), "accuracy_hi": min(high, 1.0)})
    return pd.DataFrame(lines)


def by_segment(looks: pd.DataFrame) -> pd.DataFrame:
    """A row for each head, kind of prompts and part of the prompt."""
    parts = [name for name in ("instruction", "inputs", "answers", "query", "template", "start") if name in looks]
    about = ["task", "prompts", "head", "induction", "previous"]
    long = looks.melt(about, parts, var_name="segment", value_name="share").rename(columns={"head": "label"})
    return long.assign(low=float("nan"), high=float("nan"), n=heads.N_PROMPTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("figures"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with one_browser():
        for drawing in drawings(vectors.read(), pd.read_parquet(heads.FILE)):
            path = out / f"{drawing.name}.png"
            write_figure(drawing.printed(), path, scale=SCALE)
            print(f"{path} ({path.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
