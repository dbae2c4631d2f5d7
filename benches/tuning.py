"""Does guidance help on the pocket suite? Every method and kind of guidance gets the same grid of learning rates.

    python benches/tuning.py run  --out out/tuning [--methods lora,full] [--guidance none,heads] [--tasks ...]
    python benches/tuning.py show --out out/tuning [--write]

`run` trains each of the tuning tasks from the built-in model; it keeps every cell, and can be interrupted. `show`
prints, for scores of the new task that the plain method reaches, the highest score on old tasks that any learning rate
and any step had at that score or above: old tasks at equal new-task score. Both scores are on *select*.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from common import machine_line, table, write_section

from ivlens import load_model
from ivlens.benchmarks import BenchOptions, Cell, CellResult, Grid, load_suite
from ivlens.benchmarks.report import curve_frame
from ivlens.tuning import TuneOptions

TASKS = ("middle_of_three", "second_letter")  # the other three of the suite are for reports
RATES = {"full": (1e-4, 3e-4, 1e-3, 2e-3), "": (3e-4, 1e-3, 2e-3, 4e-3)}
GUIDANCE = (
    "none",
    "iv",
    "heads",
    "heads/random_heads",
    "kl",
    "kl/zero_vector",
    "vectors",
    "vectors/zero_vector",
    "instructions",
    "instruction_heads",
    "instruction_heads/random_heads",
)
OPTIONS = BenchOptions(
    tune=TuneOptions(n_steps=150, batch_size=32, decay="constant", judge_every=25),
    n_samples=400,
    n_general=8,
    n_earlier=8,
    few_shots=0,
)
CURVES = Path(__file__).parent / "tuning.parquet"
LEVELS = (0.5, 0.75, 0.9)


def run(out: Path, methods: Sequence[str], guidance: Sequence[str], tasks: Sequence[str]) -> None:
    model = load_model("pocket")
    for task in tasks:
        suite = load_suite("pocket", order=[task])
        grid = Grid(model, lambda order, suite=suite: suite, OPTIONS, out / task, on_cell=_said)
        for method in methods:
            rates = RATES.get(method, RATES[""])
            grid.run(Cell(method, kind, lr=rate) for kind in guidance for rate in rates)


def _said(cell: Cell) -> None:
    print(cell.name, flush=True)


def kept(out: Path) -> list[CellResult]:
    files = sorted(out.glob("*/cells/*.json"))
    return [CellResult.from_dict(json.loads(file.read_text())["result"]) for file in files]


def best_old(curves: pd.DataFrame, wanted: float) -> tuple[float, float]:
    """The highest score on old tasks where the new one's is at least `wanted`, and the learning rate it had."""
    enough = curves[curves["new"] >= wanted]
    if enough.empty:
        return float("nan"), float("nan")
    row = enough.loc[enough["old"].idxmax()]
    return float(row["old"]), float(row["lr"])


def rows(curves: pd.DataFrame) -> Iterable[list[str]]:
    for (task, method), group in curves.groupby(["task", "method"], sort=False):
        top = group[group.guidance == "none"]["new"].max()
        for guidance, own in group.groupby("guidance", sort=False):
            found = [best_old(own, level * top) for level in LEVELS]
            cells = ["not reached" if old != old else f"{old:.2f} (lr {rate:g})" for old, rate in found]
            yield [str(task), str(method), str(guidance), f"{own['new'].max():.2f}", *cells]


def show(curves: pd.DataFrame) -> str:
    heads = [f"old at ≥ {level:g} of plain's best" for level in LEVELS]
    about = (
        "Old-task score (32 tasks of the built-in model) at equal new-task score, both on *select*, best over learning "
        "rates and steps; one seed. `NAME/CONTROL` replaces what should make NAME work."
    )
    return f"## Guidance on the pocket suite (`benches/tuning.py`)\n\n{machine_line()} {about}\n\n" + table(
        ["task", "method", "guidance", "best new", *heads], rows(curves)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "show"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", default="lora,full")
    parser.add_argument("--guidance", default=",".join(GUIDANCE))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--write", action="store_true", help="into benches/RESULTS.md, and curves into tuning.parquet")
    options = parser.parse_args()
    if options.what == "run":
        run(options.out, *(getattr(options, name).split(",") for name in ("methods", "guidance", "tasks")))
    curves = curve_frame(kept(options.out))
    print(show(curves))
    if options.write:
        write_section("tuning", show(curves))
        curves.to_parquet(CURVES, index=False)


if __name__ == "__main__":
    main()
