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
from common import table, write_section

import ivlens
from ivlens.common.intervals import t_interval
from ivlens.effects import HeadEffects
from ivlens.forward.ability import measure_ability
from ivlens.steering.search import sweep_settings
from ivlens.steering.summary import Setting
from ivlens.tasks.bank import load_bank

HERE = Path(__file__).parent
FILE = HERE / "vectors.parquet"
LEAST = 0.5  # clean accuracy of a task that is judged
N_SHOTS = 10
K = 10
GRID = ivlens.Grid(alphas=(1.0, 2.0, 4.0), sites=("resid_post",))
N_EFFECTS, N_MEANS, N_JUDGED = 24, 32, 48
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


MAIN = ("clean", "bare", "iv", "random", "random_heads", "other_tasks", "iv_heads", "universal", "constant")
WAYS = (
    ("iv", ""),
    ("mean_difference", "corrupted"),
    ("mean_difference", "bare"),
    ("distributed", "mean"),
    ("distributed", "minus_bare"),
    ("trained", ""),
    ("trained_permuted", ""),
)


def show(found: pd.DataFrame, model: str) -> str:
    """The tables of one model as Markdown."""
    own = found[found["model"] == model]
    frames = {str(name): rows.dropna(axis=1, how="all") for name, rows in own.groupby("table")}
    if "rows" not in frames:
        return f"no cell of {model} is finished; python benches/vectors.py run\n"
    rows, cells = frames["rows"].assign(variant=frames["rows"]["variant"].fillna("")), frames["cells"]
    tasks = list(dict.fromkeys(rows["task"]))
    seeds = cells.groupby("task")["seed"].nunique()
    per = f"{len(cells)} cells: {len(tasks)} tasks, {seeds.min()} to {seeds.max()} seeds" if len(cells) else ""
    about = (
        f"{per}; {N_SHOTS} demonstrations, no instruction; vectors of {K} heads, added to bare *test* inputs "
        f"({N_JUDGED} of each task and seed), each at the layer and strength that did best on *select*. Intervals of "
        "single tasks are Wilson's, or t over seeds where there are several; those of means are t over tasks."
    )
    parts = ["## What vectors do in a real model (`python benches/vectors.py show --write`)", about]
    parts += [_ability(frames["ability"])] if "ability" in frames else []
    parts += ["### The vector and its controls", _main(rows, tasks)]
    parts += ["### Other ways to make a vector", _ways(rows, tasks)]
    parts += ["### What the heads are needed for: accuracy lost on clean prompts", _necessity(rows, tasks)]
    parts += ["### Accuracy against the number of heads", _by_k(rows, tasks)]
    parts += ["### Other templates, and texts that have nothing to do with the task", _aside(rows, tasks)]
    parts += ["### The strongest heads, and what the corruption takes away", _heads(frames["heads"], cells, tasks)]
    if "matrix" in frames:
        parts += ["### The vector of each task (columns) on the bare inputs of each task (rows)", _matrix(frames, rows)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _cell(rows: pd.DataFrame, task: str, condition: str, variant: str = "", value: str = "accuracy") -> str:
    """The mean over seeds, with an interval."""
    own = rows[(rows["task"] == task) & (rows["condition"] == condition) & (rows["variant"] == variant)]
    own = own.dropna(subset=[value]) if value in own else own.iloc[:0]
    if own.empty:
        return ""
    mean = float(own[value].mean())
    if len(own) == 1:
        low, high = own[f"{value}_lo"].iloc[0], own[f"{value}_hi"].iloc[0]
    else:
        _, low, high = t_interval(own[value].to_numpy())
    return f"{mean:.2f} [{max(low, -1):.2f}, {min(high, 1):.2f}]" if low == low else f"{mean:.2f}"


def _plain(rows: pd.DataFrame, task: str, condition: str, variant: str = "", value: str = "accuracy") -> float:
    own = rows[(rows["task"] == task) & (rows["condition"] == condition) & (rows["variant"] == variant)]
    return float(own[value].mean()) if value in own and len(own) else float("nan")


def _means(rows: pd.DataFrame, tasks: Sequence[str], columns: Sequence[tuple[str, str]], value: str) -> list[str]:
    """The last line of a table: means over tasks, with t intervals over them."""
    line = ["mean"]
    for condition, variant in columns:
        each = pd.Series([_plain(rows, task, condition, variant, value) for task in tasks]).dropna()
        mean, low, high = t_interval(each.to_numpy()) if len(each) > 1 else (each.mean(), float("nan"), float("nan"))
        line.append("" if each.empty else f"{mean:.2f} [{low:.2f}, {high:.2f}]" if low == low else f"{mean:.2f}")
    return line


def _grid(rows: pd.DataFrame, tasks: Sequence[str], columns: Sequence[tuple[str, str]], value: str = "accuracy") -> str:
    lines = [[task, *(_cell(rows, task, *column, value=value) for column in columns)] for task in tasks]
    heads = [f"{condition}, {variant}" if variant else condition for condition, variant in columns]
    return table(["task", *(head.replace("_", " ") for head in heads)], [*lines, _means(rows, tasks, columns, value)])


def _ability(ability: pd.DataFrame) -> str:
    listed = ", ".join(
        f"{row['ability_task']} {row['clean']:.2f}"
        for row in ability.sort_values("clean", ascending=False).to_dict("records")
    )
    return f"Accuracy on clean prompts ({int(ability['n'].max())} *select* inputs), all built-in tasks: {listed}."


def _main(rows: pd.DataFrame, tasks: Sequence[str]) -> str:
    return _grid(rows, tasks, [(condition, "") for condition in MAIN])


def _ways(rows: pd.DataFrame, tasks: Sequence[str]) -> str:
    controls = [("mean_difference_random", "bare"), ("distributed_random_heads", "mean")]
    return _grid(rows, tasks, [*WAYS, *controls])


def _necessity(rows: pd.DataFrame, tasks: Sequence[str]) -> str:
    kinds = ("necessity", "necessity_next_heads", "necessity_random_heads")
    columns = [(kind, variant) for variant in ("corrupted", "other_tasks", "bare") for kind in kinds]
    return _grid(rows, tasks, columns, "lost")


def _by_k(rows: pd.DataFrame, tasks: Sequence[str]) -> str:
    ks = sorted({v for v in rows["variant"] if v.startswith("k=")}, key=lambda v: int(v[2:]))
    return _grid(rows, tasks, [(kind, k) for k in ks for kind in ("by_k", "by_k_random_heads")])


def _aside(rows: pd.DataFrame, tasks: Sequence[str]) -> str:
    lines = []
    for task in tasks:
        qa = [_cell(rows, task, name, "qa") for name in ("other_template", "other_template_clean")]
        effects = []
        for condition in ("iv", "random", "mean_difference", "trained"):
            variant = "bare" if condition == "mean_difference" else ""
            kl, after, before = (
                _plain(rows, task, condition, variant, value) for value in ("kl", "perplexity", "perplexity_plain")
            )
            effects.append("" if kl != kl else f"{kl:.2f}, ×{after / before:.2f}")
        lines.append([task, *qa, *effects])
    titles = ["vector in qa", "clean in qa", "vector: KL, perplexity", "random", "mean difference", "trained"]
    return table(["task", *titles], lines)


def _heads(heads: pd.DataFrame, cells: pd.DataFrame, tasks: Sequence[str]) -> str:
    lines = []
    for task in tasks:
        own = heads[heads["task"] == task].groupby("label")["aie"].mean().nlargest(5)
        taken = cells[cells["task"] == task]
        strongest = ", ".join(f"{label} {aie:.2f}" for label, aie in own.items())
        scores = f"{taken['clean_score'].mean():.2f} → {taken['corrupted_score'].mean():.2f}"
        lines.append([task, strongest, ", ".join(sorted(set(taken["corruption"]))), scores])
    return table(["task", "strongest heads (AIE)", "corruption", "score, clean → corrupted"], lines)


def _matrix(frames: dict[str, pd.DataFrame], rows: pd.DataFrame) -> str:
    matrix = frames["matrix"].groupby(["task", "of"])["accuracy"].mean()
    tasks, of = list(dict.fromkeys(rows["task"])), sorted({str(name) for _, name in matrix.index})
    lines = []
    for task in tasks:
        values = [_plain(rows, task, "iv") if name == task else matrix.get((task, name), float("nan")) for name in of]
        lines.append([task, *("" if value != value else f"{value:.2f}" for value in values)])
    return table(["on", *of], lines)


if __name__ == "__main__":
    main()
