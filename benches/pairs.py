"""How strongly old tasks should be held: chosen on sequences of the two tuning tasks, in both orders.

    python benches/pairs.py run  --out out/pairs [--parts strengths,guidance] [--seeds 1]
    python benches/pairs.py show --out out/pairs [--write]

*strengths*: the weights of EWC, LwF and O-LoRA, without guidance. *guidance*: rehearsal of whole answers with
LoRA at two weights, alone and with a held vector, whose heads are the chosen ones or random ones. The
protocol is that of `benches/sequences.py`. What is too strong forgets little because it learns little, so the choice is
among those with which most trainings reach the target on *select*: of these, the one that loses least, Forget and
general tasks together.
"""

import argparse
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path

import pandas as pd
from common import machine_line, table, write_section
from sequences import OPTIONS as SEQUENCE_OPTIONS
from tuning import TASKS, chosen

from ivlens import load_model
from ivlens.common.store.store import KEPT
from ivlens.runs.suites import BenchOptions, Cell, Grid, load_suite
from ivlens.runs.suites.keeping import kept_cells
from ivlens.tuning import IVKL, METHODS, RECIPES, GuidanceRecipe, HeadConsistency, Rehearse

WEIGHTS = {
    "ewc": (1.0, 10.0, 100.0, 300.0, 1000.0),
    "lwf": (0.01, 0.03, 0.1, 0.3, 1.0),
    "olora": (0.05, 0.5, 5.0, 50.0),
}
VECTOR = HeadConsistency(weight=0.3, as_vector=True)
GUIDANCE = {
    f"{name}{suffix}": GuidanceRecipe((Rehearse(kl=IVKL(weight=weight), heads=held, n_tokens=4),))
    for suffix, held in (("", None), ("_vector", VECTOR))
    for name, weight in (("answers_light", 0.1), ("answers", 0.3))
}
KINDS = (*GUIDANCE, "answers_light_vector/random_heads", "answers_vector/random_heads")
TARGET = 0.5  # three quarters of what plain LoRA reaches on the harder of the two
OPTIONS = BenchOptions(tune=SEQUENCE_OPTIONS.tune, target=TARGET, n_general=8, n_earlier=8, few_shots=0)


def strengths() -> list[Cell]:
    """Every weight of every method, registered under a name of its own."""
    cells = []
    for method, weights in WEIGHTS.items():
        for weight in weights:
            name = f"{method}@{weight:g}"
            METHODS[name] = partial(METHODS[method], weight=weight)
            cells.append(Cell(name, lr=chosen(method, "none")))
    return cells


def guidance() -> list[Cell]:
    """Plain training, and every kind of guidance, at the learning rates that single tasks chose."""
    RECIPES.update(GUIDANCE)
    rate = chosen("lora", "answers_light")
    return [Cell("lora", lr=chosen("lora", "none")), *(Cell("lora", kind, lr=rate) for kind in KINDS)]


PARTS = {"strengths": strengths, "guidance": guidance}


def run(out: Path, parts: list[str], orders: list[int], seeds: int) -> None:
    model = load_model("pocket")
    suites = [load_suite("pocket", order=list(names)) for names in permutations(TASKS)]
    grid = Grid(model, lambda order: suites[order], OPTIONS, out, on_cell=lambda cell: print(cell.name, flush=True))
    cells = [cell for part in parts for cell in PARTS[part]()]
    grid.run(replace(cell, order=order, seed=seed) for seed in range(seeds) for order in orders for cell in cells)


def kept(out: Path) -> pd.DataFrame:
    """One row for each method, weight, guidance and learning rate, means over runs."""
    rows = []
    for one in kept_cells(out / KEPT):
        method, _, weight = one.cell.method.partition("@")
        reached = sum(max(row["new"] for row in curve) >= TARGET for curve in one.curves)
        scores = {"reached": reached, "ap": one.metrics.ap, "forget": one.metrics.forget, "gp": one.metrics.gp_change}
        rows.append({"method": method, "weight": weight, "guidance": one.cell.guidance, "lr": one.cell.lr} | scores)
    each = pd.DataFrame(rows).groupby(["method", "weight", "guidance", "lr"])
    return each.mean().assign(runs=each.size()).reset_index()


def best(rows: pd.DataFrame) -> pd.Series:
    """The row that the rule above chooses, among those with most runs; controls are no candidates."""
    rows = rows[(rows["runs"] == rows["runs"].max()) & ~rows["guidance"].str.contains("/")]
    most = rows[rows["reached"] == rows["reached"].max()]
    return most.loc[(most["forget"] - most["gp"]).idxmin()]


def show(rows: pd.DataFrame) -> str:
    lines, picked = [], []
    for method, own in rows.groupby("method"):
        for guided, group in own.groupby(own["guidance"] != "none"):
            first = best(group)
            if len(group) > 1:
                what = f"with {first['guidance']}" if guided else f"at weight {first['weight']}"
                picked.append(
                    f"{method} {what}" + (" (none makes a difference; 0.5 is kept)" if method == "olora" else "")
                )
        lines += [
            [str(method), one.weight or "–", one.guidance, f"{one.lr:g}", f"{one.runs}", f"{one.reached:.2f}"]
            + [f"{value:.3f}" for value in (one.ap, one.forget, one.gp)]
            for one in own.sort_values("weight", key=lambda text: pd.to_numeric(text)).itertuples()
        ]
    about = (
        f"Tasks {' and '.join(TASKS)} in both orders, target {TARGET} on *select*; means over runs, scores on *test*. "
        "*reached*: tasks of the two whose training came to the target."
    )
    heads = ["method", "weight", "guidance", "lr", "runs", "reached", "AP", "Forget", "GP change"]
    head = f"## Pairs of tuning tasks (`benches/pairs.py`)\n\n{machine_line()} {about}"
    return "\n\n".join([head, table(heads, lines), f"Chosen: {'; '.join(picked)}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "show"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--orders", default="0,1")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="into benches/RESULTS.md")
    given = parser.parse_args()
    if given.what == "run":
        run(given.out, given.parts.split(","), [int(number) for number in given.orders.split(",")], given.seeds)
    text = show(kept(given.out))
    print(text)
    if given.write:
        write_section("pairs", text)


if __name__ == "__main__":
    main()
