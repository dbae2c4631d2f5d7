"""What every method forgets along a sequence of tasks, with and without guidance, at equal scores on the new tasks.

    python benches/sequences.py run  --out out/sequences [--methods full,lora,ewc] [--orders 0] [--seeds 3]
    python benches/sequences.py show [--out out/sequences] [--write]

The three tasks of the pocket suite on which nothing was tuned, in all six orders. Of every training the step is kept
whose score on old tasks is highest among those that reach TARGET on the new task, both on *select*: methods are
compared at equal scores on the new tasks, each where it forgets least. What is shown is on *test*.
Learning rates, strengths and guidance are those that `benches/tuning.py` and `benches/pairs.py` chose on the other two
tasks; O-LoRA keeps the paper's strength, since none makes a difference there. `run` makes the cells that are not
committed yet, keeps every one, and can be interrupted; `show` reads the committed ones and those in `--out`.
"""

import argparse
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pandas as pd
from common import machine_line, write_section
from tuning import chosen

from ivlens import load_model
from ivlens.common.store.store import KEPT
from ivlens.runs.suites import BenchOptions, Grid, all_cells, load_suite
from ivlens.runs.suites.keeping import kept_cells
from ivlens.runs.suites.report import cell_frame, markdown, summary_of
from ivlens.tuning import TuneOptions

TASKS = ("first_and_last_letter", "shortest_of_three", "swap_pair")
ORDERS = list(permutations(TASKS))
METHODS = ("full", "lora", "inclora", "ewc", "olora", "lwf")
TARGET = 0.6
OPTIONS = BenchOptions(
    tune=TuneOptions(
        steps=300, batch_size=32, decay="constant", judge_every=20, patience=4, n_samples=3200, n_prompts=64
    ),
    target=TARGET,
    n_general=8,
    n_earlier=8,
)
CELLS = Path(__file__).parent / "sequences.parquet"
KEY = ("method", "guidance", "order", "seed")


def run(out: Path, methods: list[str], guidance: list[str], orders: list[int], seeds: list[int]) -> None:
    model = load_model("pocket")
    suites = [load_suite("pocket", order=list(names)) for names in ORDERS]
    grid = Grid(model, lambda order: suites[order], OPTIONS, out, on_cell=lambda cell: print(cell.name, flush=True))
    cells = all_cells(methods, guidance, orders, seeds)
    done = set(zip(*(_committed()[name] for name in KEY), strict=True))
    todo = [cell for cell in cells if (cell.method, cell.guidance, cell.order, cell.seed) not in done]
    grid.run(replace(cell, lr=_rate(cell.method, cell.guidance)) for cell in todo)


def _rate(method: str, guidance: str) -> float:
    """Adapters with `answers` were not tuned on single tasks; they take the rate that weaker rehearsal has there."""
    return chosen(method, "answers_light" if guidance == "answers" and method != "full" else guidance)


def _committed() -> pd.DataFrame:
    return pd.read_parquet(CELLS) if CELLS.exists() else pd.DataFrame(columns=[*KEY])


def with_committed(cells: pd.DataFrame) -> pd.DataFrame:
    """The committed cells, those that were made again replaced, and the new ones."""
    committed = _committed()
    is_new = pd.MultiIndex.from_frame(committed[[*KEY]]).isin(pd.MultiIndex.from_frame(cells[[*KEY]]))
    return pd.concat([committed[~is_new], cells], ignore_index=True).sort_values([*KEY], ignore_index=True)


def kept(out: Path) -> pd.DataFrame:
    """One row for each cell, and how many of its tasks reached the target."""
    results = kept_cells(out / KEPT)
    cells = cell_frame(results)
    cells["reached"] = [sum(max(row["new"] for row in curve) >= TARGET for curve in one.curves) for one in results]
    cells["steps"] = [sum(int(curve[-1]["step"]) for curve in one.curves) for one in results]
    return cells


def show(cells: pd.DataFrame) -> str:
    reached = cells.groupby(["method", "guidance"])[["reached", "steps"]].mean()
    lines = [
        f"{method} with {guidance}: {row.reached:.2f} of {len(TASKS)} tasks reached {TARGET}, in {row.steps:.0f} steps."
        for (method, guidance), row in reached.iterrows()
    ]
    about = (
        f"Tasks {', '.join(TASKS)} in {cells['order'].nunique()} orders with {cells['seed'].nunique()} seeds, each "
        f"kept where it forgets least at {TARGET} or more on *select*; scores on *test*, intervals over runs."
    )
    head = f"## Sequences on the pocket suite (`benches/sequences.py`)\n\n{machine_line()} {about}"
    return "\n\n".join([head, markdown(summary_of(cells)), " ".join(lines)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "show"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--guidance", default="none,answers")
    parser.add_argument("--orders", default=",".join(map(str, range(len(ORDERS)))))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into RESULTS.md, and cells into sequences.parquet")
    given = parser.parse_args()
    if given.what == "run":
        orders = [int(number) for number in given.orders.split(",")]
        run(given.out, given.methods.split(","), given.guidance.split(","), orders, list(range(given.seeds)))
    cells = _committed() if given.out is None else with_committed(kept(given.out))
    print(show(cells))
    if given.write:
        write_section("sequences", show(cells))
        cells.to_parquet(CELLS, index=False)


if __name__ == "__main__":
    main()
