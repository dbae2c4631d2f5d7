"""Does guidance help on the pocket suite? Every method and kind of guidance gets the same grid of learning rates.

    python benches/tuning.py run  --out out/tuning [--methods lora,full] [--guidance none,heads] [--tasks ...]
    python benches/tuning.py show [--out out/tuning] [--write]

`run` trains each of the tuning tasks from the built-in model; it keeps every cell, and can be interrupted. `show` takes
the committed cells, and in place of some of them or beside them those in `--out`; it prints, for scores of the new task
that the plain method reaches, the highest score on old tasks that any learning rate and any step had at that score or
above: old tasks at equal new-task score. Both scores are on *select*.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from common import machine_line, table, write_section

from ivlens import load_model
from ivlens.common.store.store import KEPT
from ivlens.runs.suites import BenchOptions, Cell, CellResult, Grid, load_suite
from ivlens.runs.suites.keeping import kept_cells
from ivlens.runs.suites.report import curve_frame
from ivlens.tuning import IVKL, RECIPES, GuidanceRecipe, HeadConsistency, Progressive, Rehearse, TuneOptions

TASKS = ("middle_of_three", "second_letter")  # the other three of the suite are for reports
RATES = {"full": (1e-4, 3e-4, 6e-4, 1e-3), "": (5e-4, 1e-3, 2e-3, 4e-3)}
# Each takes one part of the method, or one of its choices, by itself; those of the library come without a change.
ABLATIONS = {
    "progressive_subtracted": GuidanceRecipe((Progressive(sign=-1),)),
    "progressive_linear": GuidanceRecipe((Progressive("linear"),)),
    "progressive_cosine": GuidanceRecipe((Progressive("cosine"),)),
    "progressive_constant": GuidanceRecipe((Progressive("constant"),)),
    "kl_reverse": GuidanceRecipe((IVKL(weight=0.1, direction="reverse"),)),
    "kl_strong": GuidanceRecipe((IVKL(weight=0.1),), alpha=2.0),
    "kl_attn_out": GuidanceRecipe((IVKL(weight=0.1),), alpha=4.0, layer=1, site="attn_out"),
    "kl_first_token": GuidanceRecipe((IVKL(weight=0.1, answers=0.0),)),
    "heads_light": GuidanceRecipe((HeadConsistency(weight=0.1),)),
    "iv_added": GuidanceRecipe((Progressive(), IVKL(weight=0.1), HeadConsistency(weight=1.0))),
    "vector": GuidanceRecipe((HeadConsistency(weight=1.0, as_vector=True),)),
    "instruction_heads_light": GuidanceRecipe((Rehearse(kl=None, heads=HeadConsistency(weight=1.0)),)),
}
GUIDANCE = (
    "none",
    "instructions",
    "instructions_light",
    "instructions_lighter",
    "answers",
    "answers_light",
    "kl",
    "kl/zero_vector",
    "heads",
    "heads/random_heads",
    "iv",
    "iv/zero_vector",
    "instruction_vector",
    "instruction_vector/random_heads",
    "translations",
    "translations/zero_vector",
    "vectors",
    "vectors/zero_vector",
    "instruction_heads",
    "instruction_heads/random_heads",
    "heads/all_heads",
    "heads_light",
    "heads_light/random_heads",
    "progressive",
    "progressive_subtracted",
    "kl_reverse",
    "kl/random_vector",
    "kl_strong",
    "kl_attn_out",
    "kl_first_token",
    "progressive_linear",
    "progressive_cosine",
    "progressive_constant",
    "iv_added",
    "iv/random_vector",
    "vector",
    "vector/random_heads",
    "instruction_vector/all_heads",
    "instruction_heads/all_heads",
    "instruction_heads_light",
    "instruction_heads_light/random_heads",
    "vectors/random_vector",
    "translations/random_vector",
)
OPTIONS = BenchOptions(
    tune=TuneOptions(steps=240, batch_size=32, decay="constant", judge_every=20, n_samples=3200, n_prompts=64),
    target=0.9,
    n_general=4,
    n_earlier=8,
    few_shots=0,
)
CURVES = Path(__file__).parent / "tuning.parquet"
LEVELS = (0.5, 0.75, 0.9)


def run(out: Path, methods: Sequence[str], guidance: Sequence[str], tasks: Sequence[str]) -> None:
    RECIPES.update(ABLATIONS)
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
    return [one for folder in sorted(out.glob(f"*/{KEPT}")) for one in kept_cells(folder)]


def with_committed(results: Sequence[CellResult]) -> pd.DataFrame:
    """The curves of the committed cells, those that were made again replaced."""
    committed = pd.read_parquet(CURVES)
    if not results:
        return committed
    new, cell = curve_frame(results), ["task", "method", "guidance", "seed", "lr"]
    is_new = pd.MultiIndex.from_frame(committed[cell]).isin(pd.MultiIndex.from_frame(new[cell]))
    return pd.concat([committed[~is_new], new], ignore_index=True)


def best_old(curves: pd.DataFrame, wanted: float) -> tuple[float, float]:
    """The highest score on old tasks where the new one's is at least `wanted`, and the learning rate it had."""
    enough = curves[curves["new"] >= wanted]
    if enough.empty:
        return float("nan"), float("nan")
    row = enough.loc[enough["old"].idxmax()]
    return float(row["old"]), float(row["lr"])


def chosen(method: str, guidance: str) -> float:
    """The learning rate for reports: the best for old tasks at 0.75 of the plain method's best new score, on average.

    A rate at which that score was not reached on a task counts there by how far it came, below all that reached it.
    `inclora`, `ewc` and `olora` begin as `lora` does, and take its rates; `lwf` begins as `lora` with a zero vector in
    the teacher does.

    Raises:
        ValueError: nothing was tuned for that method and guidance.
    """
    curves = pd.read_parquet(CURVES)
    guidance = "kl/zero_vector" if (method, guidance) == ("lwf", "none") else guidance
    return _best_rate(method if method in set(curves["method"]) else "lora", guidance, curves)[0]


def _best_rate(method: str, guidance: str, curves: pd.DataFrame) -> tuple[float, float]:
    """The learning rate, and its merit."""
    of_method = curves[curves["method"] == method]
    own = of_method[of_method["guidance"] == guidance]
    if own.empty:
        raise ValueError(f"{method} with {guidance} was not tuned; run benches/tuning.py for it first.")
    tops = of_method[of_method["guidance"] == "none"].groupby("task")["new"].max()

    def merit(of_rate: pd.DataFrame) -> float:
        each = []
        for task, run in of_rate.groupby("task"):
            wanted = 0.75 * tops[task]
            old, _ = best_old(run, wanted)
            each.append(run["new"].max() / wanted - 1 if old != old else old)
        return sum(each) / len(each)

    merits = {float(rate): merit(run) for rate, run in own.groupby("lr")}
    return max(merits.items(), key=lambda item: item[1])


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
    parser.add_argument("--out", type=Path)
    parser.add_argument("--methods", default="lora,full")
    parser.add_argument("--guidance", default=",".join(GUIDANCE))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--write", action="store_true", help="into benches/RESULTS.md, and curves into tuning.parquet")
    options = parser.parse_args()
    if options.what == "run":
        run(options.out, *(getattr(options, name).split(",") for name in ("methods", "guidance", "tasks")))
    curves = with_committed([] if options.out is None else kept(options.out))
    print(show(curves))
    if options.write:
        write_section("tuning", show(curves))
        curves.to_parquet(CURVES, index=False)


if __name__ == "__main__":
    main()
