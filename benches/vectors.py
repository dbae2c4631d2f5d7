"""What Instruction Vectors do in a real model: every task that it can do, beside all controls and other vectors.

    python benches/vectors.py run  [--model smollm2] [--tasks a,b] [--seeds 0,1,2] [--cells N] [--draws 19]
    python benches/vectors.py show [--write]

A cell is one task with one seed: its effects, its vector, and the judgement with all further rows (`MoreRows`). What is
finished is added to `vectors.parquet` beside this file, so that `run` goes on where it stopped, on this machine or on
another; `show` prints the tables from that file. Tasks are those built-in ones that the model answers at 0.5 or better
with ten demonstrations and no instruction, on *select* inputs of seed 0; that was the only choice made after looking.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from common import write_section
from vectors_tables import N_JUDGED, N_SHOTS, K, show

import ivlens
from ivlens.effects import HeadEffects
from ivlens.forward.ability import measure_ability
from ivlens.steering.search import sweep_settings
from ivlens.steering.summary import Setting
from ivlens.tasks.bank import load_bank

HERE = Path(__file__).parent
FILE = HERE / "vectors.parquet"
LEAST = 0.5  # clean accuracy of a task that is judged
GRID = ivlens.Grid(alphas=(1.0, 2.0, 4.0), sites=("resid_post",))
N_EFFECTS, N_MEANS = 24, 32
N_MORE_DRAWS = 5  # of the controls of further rows
N_HEADS = 40  # of the ranking that is kept
KEYS = ["model", "task", "seed"]


def read() -> pd.DataFrame:
    """All rows that were measured: of every kind (`table`), one below the other."""
    return pd.read_parquet(FILE) if FILE.exists() else pd.DataFrame(columns=[*KEYS, "table"])


def keep(frames: dict[str, pd.DataFrame], **about: Any) -> None:
    """Add the frames of one cell to the file, in the place of those that it has for it."""
    known = read()
    same = pd.Series(True, index=known.index)
    for name, value in about.items():
        same &= known[name] == value
    new = [frame.assign(table=name, **about) for name, frame in frames.items()]
    pd.concat([known[~same], *new], ignore_index=True).to_parquet(FILE, index=False)


def recipe_of(seed: int) -> ivlens.PromptRecipe:
    return ivlens.PromptRecipe(instruction=None, n_shots=N_SHOTS, seed=seed)


def able(model: Any, name: str) -> list[str]:
    """The tasks that are judged; accuracies of all tasks are measured once and kept."""
    known = read()
    known = known[(known["table"] == "ability") & (known["model"] == name)]
    if known.empty:
        rows = []
        for task in load_bank().values():
            found = measure_ability(model, task, recipe_of(0))
            print(f"{task.name}: {found}", flush=True)
            if found is not None:  # None: prompts that do not fit, or too few examples
                rows.append({"ability_task": task.name, **asdict(found)})
        keep({"ability": pd.DataFrame(rows)}, model=name, task="", seed=0)
        return able(model, name)
    return known.loc[known["clean"] >= LEAST, "ability_task"].to_list()


def measured(model: Any, name: str, tasks: Sequence[str], seed: int, folder: Path) -> dict[str, HeadEffects]:
    """The effects of all tasks, kept in a folder between runs."""
    found = {}
    for task in tasks:
        path = folder / f"{name}-{task}-{seed}.safetensors"
        if path.exists():
            found[task] = HeadEffects.load(path, model)
            continue
        began = time.perf_counter()
        effects = ivlens.head_effects(
            model,
            ivlens.load_task(task),
            recipe=recipe_of(seed),
            n_prompts=N_EFFECTS,
            options=ivlens.EffectOptions(n_mean_prompts=N_MEANS),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        found[task] = ivlens.measure_again(effects, ivlens.load_task(task), model=model, heads=K)
        found[task].save(path)
        print(f"effects of {task}, seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    return found


def cell(model: Any, effects: dict[str, HeadEffects], name: str, draws: int) -> dict[str, pd.DataFrame]:
    """The frames of one task: the judgement, the matrix of other tasks' vectors, layers and strengths, heads."""
    began = time.perf_counter()
    task, own = ivlens.load_task(name), effects[name]
    vectors = {other: ivlens.InstructionVector.from_effects(each, K, model=model) for other, each in effects.items()}
    # an average over tasks needs one score; tasks whose answers share a first token have another one
    pool = [each for each in effects.values() if each.settings["score"] == own.settings["score"]]
    universal = ivlens.InstructionVector.from_effects(own, K, model=model, universal=pool)
    others = [vector for other, vector in vectors.items() if other != name]
    more = ivlens.MoreRows(
        n_draws=N_MORE_DRAWS,
        n_mean_prompts=N_MEANS,
        others=[each for other, each in effects.items() if other != name][:5],
    )
    options = ivlens.JudgeOptions(means=own, other_vectors=others, more=more, progress=False)
    judged = ivlens.evaluate_intervention(
        model, task, vectors[name], at=GRID, n_prompts=N_JUDGED, n_draws=draws, options=options
    )
    again = ivlens.evaluate_intervention(
        model,
        task,
        universal,
        at=GRID,
        n_prompts=N_JUDGED,
        n_draws=0,
        options=ivlens.JudgeOptions(means=own, other_vectors=()),
    )
    rows = pd.concat([judged.table, again.table[again.table["condition"] == "iv"].assign(condition="universal")])
    matrix = judged.by_vector().query("condition == 'other_tasks'")[["vector", "accuracy", "layer", "alpha"]]
    layers = sweep_settings(model, task, vectors[name], grid=GRID, n_prompts=24)
    taken = own.taken
    about = {
        "corruption": ", ".join(sorted(set(own.corruptions))),
        "clean_score": float(own.clean_scores.mean()) if own.clean_scores is not None else None,
        "corrupted_score": float(own.base_scores.mean()),
        "taken": str(taken),
        "takes_enough": None if taken is None else taken.is_enough,
        "seconds": time.perf_counter() - began,
        "options": json.dumps({"grid": asdict(GRID), "more": more.recorded(), "draws": draws, "k": K}, default=str),
        "best": json.dumps(Setting(*judged.best)._asdict()),
        "versions": ivlens.__version__,
    }
    return {
        "rows": rows,
        "matrix": matrix.rename(columns={"vector": "of"}),
        "layers": layers,
        "heads": own.to_frame().head(N_HEADS).drop(columns=["task"]),
        "cells": pd.DataFrame([about]),
    }


def run(
    name: str, tasks: Sequence[str] | None, seeds: Sequence[int], n_cells: int | None, draws: int, out: Path
) -> None:
    model = ivlens.load_model(name, dtype="float32")
    chosen = able(model, name)
    for seed in seeds:
        effects = measured(model, name, chosen, seed, out)
        for task in tasks or chosen:
            known = read()
            if ((known["table"] == "cells") & (known[KEYS] == [name, task, seed]).all(axis=1)).any():
                continue
            if n_cells == 0:
                return
            n_cells = None if n_cells is None else n_cells - 1
            frames = cell(model, effects, task, draws)
            keep(frames, model=name, task=task, seed=seed)
            rows = frames["rows"].set_index("condition")["accuracy"]
            short = ", ".join(f"{each} {rows[each]:.2f}" for each in ("clean", "bare", "iv"))
            print(f"{task}, seed {seed}: {short} ({frames['cells']['seconds'][0]:.0f} s)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "show"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tasks", help="some of the tasks, with commas")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--cells", type=int, help="stop after so many new cells")
    parser.add_argument("--draws", type=int, default=19)
    parser.add_argument("--out", type=Path, default=Path("out/vectors"), help="where effects are kept")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    given = parser.parse_args()
    if given.what == "run":
        tasks = given.tasks.split(",") if given.tasks else None
        seeds = [int(seed) for seed in given.seeds.split(",")]
        run(given.model, tasks, seeds, given.cells, given.draws, given.out)
        return
    text = show(read(), given.model)
    print(text)
    if given.write:
        write_section("vectors", text)


if __name__ == "__main__":
    main()
