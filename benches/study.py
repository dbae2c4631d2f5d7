"""The claims of the Instruction Vector paper on the built-in model: three orders of new tasks with three seeds each.

    python benches/study.py run  --out out/study-cells [--orders 0,1,2] [--seeds 3] [--cells N] [--regime short|long]
    python benches/study.py show [--out out/study-cells] [--write]

A cell is one `ivlens study` without its page. `run` keeps every cell and can be interrupted, or told to stop after some
new cells; `show` pools them: intervals are t over runs, of one run over its tasks. Margins are in
`ivlens/runs/study/claims.py`, and were written down before the first cell was run. `show` without `--out` reads the
cells that are committed.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from common import machine_line, table, write_section

from ivlens import load_model
from ivlens.analysis.dynamics import predictors
from ivlens.common.store.entries import TABLE
from ivlens.common.store.keys import versions
from ivlens.common.store.store import Store
from ivlens.models import model_identity
from ivlens.prompts.recipe import PromptRecipe, plain_options
from ivlens.runs.study import StudyOptions, claim_table, run_study
from ivlens.runs.study.claims import interval_text

# pairs of the pocket suite's five tasks; every task is in one pair at least
ORDERS = (
    ("middle_of_three", "second_letter"),
    ("swap_pair", "first_and_last_letter"),
    ("second_letter", "shortest_of_three"),
)
# the study's default, and the longer training that was tried first
REGIMES = {"short": StudyOptions(), "long": StudyOptions(steps=120, decay="constant")}
HERE = Path(__file__).parent
TABLES = {"evidence": TABLE, "tasks": "tasks.parquet", "new_scores": "new_scores.parquet"}


def run(out: Path, orders: Sequence[int], seeds: Sequence[int], n_cells: int | None, regime: str) -> None:
    torch.set_num_threads(1)
    model, store = load_model("pocket"), Store(out)
    for seed in seeds:
        for order in orders:
            options = replace(REGIMES[regime], new=ORDERS[order], recipe=PromptRecipe(seed=seed), seed=seed)
            run = f"{regime}-order{order}-seed{seed}"
            what = {"kind": "study", "options": plain_options(options), "model": model_identity(model).key}
            if store.find(what | versions()) is not None:
                continue
            if n_cells == 0:
                return
            n_cells = None if n_cells is None else n_cells - 1

            def fill(folder: Path, options: StudyOptions = options, run: str = run) -> None:
                found = run_study(options, model=model)
                for name, file in TABLES.items():
                    frame = found.dynamics.tasks if name == "tasks" else getattr(found, name)
                    frame.assign(run=run).to_parquet(folder / file)

            made = store.put(what | versions(), fill, {"run": run}).made
            print(f"{run}: {made['seconds']:.0f} s", flush=True)


def kept(out: Path) -> dict[str, pd.DataFrame]:
    """All cells, one below the other."""
    entries = Store(out).entries("study")
    return {name: pd.concat([pd.read_parquet(one.path(file)) for one in entries]) for name, file in TABLES.items()}


def committed() -> dict[str, pd.DataFrame]:
    frame = pd.read_parquet(HERE / "study.parquet")
    own = {name: rows.drop(columns="table") for name, rows in frame.groupby("table")}
    return {name: own[name].dropna(axis=1, how="all") for name in TABLES}  # columns of its own


def show(cells: dict[str, pd.DataFrame]) -> str:
    about = (
        "Six old tasks; the new ones: "
        + ", ".join(f"{number} {' then '.join(order)}" for number, order in enumerate(ORDERS))
        + ". Numbers: mean, and 95 % interval over runs and tasks. Pocket is built so that Instruction Vectors work: "
        "this demonstrates, it is no evidence about large models, and the intervals cover one base model."
    )
    parts = ["## The paper's claims on the pocket model (`benches/study.py`)", f"{machine_line()} {about}"]
    for regime, options in REGIMES.items():
        own = {name: frame[frame["run"].str.startswith(f"{regime}-")] for name, frame in cells.items()}
        if own["evidence"]["run"].nunique() > 1:
            parts += _regime(f"{options.steps} steps for each new task, {options.decay} decay", own)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _regime(title: str, cells: dict[str, pd.DataFrame]) -> list[str]:
    evidence = {str(run): rows for run, rows in cells["evidence"].groupby("run")}
    found = predictors(cells["tasks"][cells["tasks"]["step"] > 0], leave_out="run")
    claims = claim_table(evidence, found).to_dict("records")
    rows = [[row["text"], row["paper"], interval_text(row), row["beside"], f"**{row['verdict']}**"] for row in claims]
    single = [row["claim"] for row in claims if row["claim"] not in ("prediction", "large")]
    per_run = []
    for run, own in evidence.items():
        of_run = {row["claim"]: row for row in claim_table({run: own}, found).to_dict("records")}
        cell = "{value:.2f}, {verdict}".format_map
        per_run.append([run, *(cell(of_run[name]).replace(" in pocket", "") for name in single)])
    r2 = [
        [row["predictor"], "{r2:.2f} [{r2_lo:.2f}, {r2_hi:.2f}]".format_map(row), f"{row['r2_in_sample']:.2f}"]
        for row in found.to_dict("records")
    ]
    scores: dict[str, list[float]] = {}
    for row in cells["new_scores"].to_dict("records"):
        values = [value for name, value in row.items() if name not in ("guidance", "run") and value == value]
        scores.setdefault(row["guidance"], []).extend(values)
    new = ", ".join(f"{kind} {sum(values) / len(values):.2f}" for kind, values in scores.items())
    return [
        f"### {title}: {len(evidence)} runs",
        table(["claim", "paper", "here", "beside it", "verdict"], rows),
        f"Accuracy on the new tasks after training, by guidance: {new}.",
        table(["run", *single], per_run),
        table(["predictor of performance", "R², runs left out in turn", "R² in sample"], r2),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "show"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--orders", default="0,1,2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--regime", choices=REGIMES, default="short")
    parser.add_argument("--cells", type=int, help="stop after so many new cells")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md, and cells into study.parquet")
    given = parser.parse_args()
    if given.what == "run":
        run(given.out, [int(n) for n in given.orders.split(",")], range(given.seeds), given.cells, given.regime)
        return
    cells = committed() if given.out is None else kept(given.out)
    print(show(cells))
    if given.write:
        write_section("study", show(cells))
        pd.concat([frame.assign(table=name) for name, frame in cells.items()]).to_parquet(
            HERE / "study.parquet", index=False
        )


if __name__ == "__main__":
    main()
