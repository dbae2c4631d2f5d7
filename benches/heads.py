"""What the strongest heads do in a real model: where they look, what kind they are, and what is lost without them.

    python benches/heads.py run  [--model smollm2] [--tasks third_person,...] [--seed 0]
    python benches/heads.py show [--write]

Effects and their prompts are those of `benches/vectors.py`. Answers are kept in `heads.parquet`, task by task.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from common import table, write_section
from vectors import N_SHOTS, able, measured

import ivlens
from ivlens.analysis.attention import AblationOptions, AttentionOptions
from ivlens.common.intervals import t_interval
from ivlens.effects import HeadEffects

FILE = Path(__file__).parent / "heads.parquet"
TASKS = "third_person,present_gerund,first_of_three,last_of_three,singular_plural"
N_HEADS = 5  # of each task
N_PROMPTS = 32
N_DRAWS = 19


def asked(model: Any, task: ivlens.Task, effects: HeadEffects) -> dict[str, pd.DataFrame]:
    """Where the strongest heads look, and the accuracy without chosen heads."""
    looked = ivlens.head_attention(
        model, task, effects, n_prompts=N_PROMPTS, options=AttentionOptions(k=N_HEADS, n_kept=0)
    )
    tables = [
        ivlens.ablate_heads(
            model,
            task,
            effects,
            n_prompts=N_PROMPTS,
            scores=looked.scores,
            options=AblationOptions(replaced_by=kind, n_draws=N_DRAWS, n_mean_prompts=N_PROMPTS, positions="prompt"),
        ).table.assign(replaced_by=kind)
        for kind in ("corrupted", "bare")
    ]
    return {"looks": looked.table(), "ablated": pd.concat(tables)}


def strongest(model: Any, name: str, seed: int, out: Path) -> pd.DataFrame:
    """The strongest heads of every task that the model can do."""
    rows = []
    for task, effects in measured(model, name, able(model, name), seed, out).items():
        for rank, (layer, head) in enumerate(effects.top_heads(N_HEADS)):
            about = {"rank": rank, "head": f"L{layer}H{head}", "aie": float(effects.aie[layer, head])}
            rows.append({"task": task, "score": effects.settings["score"], **about})
    return pd.DataFrame(rows).assign(of="strongest", model=name, seed=seed)


def run(name: str, tasks: Sequence[str], seed: int, out: Path) -> None:
    model = ivlens.load_model(name, dtype="float32")
    for task in tasks:
        known = pd.read_parquet(FILE) if FILE.exists() else pd.DataFrame(columns=["model", "task", "seed", "of"])
        looked = known[known["of"] == "looks"]
        if ((looked["model"] == name) & (looked["task"] == task) & (looked["seed"] == seed)).any():
            continue
        effects = measured(model, name, [task], seed, out)[task]
        frames = asked(model, ivlens.load_task(task), effects)
        about = {"model": name, "task": task, "seed": seed}
        new = [frame.assign(of=of, **about) for of, frame in frames.items()]
        pd.concat([known, *new], ignore_index=True).to_parquet(FILE, index=False)
        print(f"{task}: kept", flush=True)
    known = pd.read_parquet(FILE)
    if not ((known["model"] == name) & (known["of"] == "strongest") & (known["seed"] == seed)).any():
        pd.concat([known, strongest(model, name, seed, out)], ignore_index=True).to_parquet(FILE, index=False)


def show(found: pd.DataFrame) -> str:
    parts = [
        "## What the strongest heads do in a real model (`python benches/heads.py show --write`)",
        f"{N_SHOTS} demonstrations, no instruction. Shares of the attention from the last prompt token, over "
        f"{N_PROMPTS} *select* prompts; induction and previous-token scores on repeated random tokens. Then accuracy "
        f"on {N_PROMPTS} clean *test* prompts with the outputs of some heads at the last token replaced by means, "
        f"beside {N_DRAWS} draws of random heads of the same layers.",
    ]
    for name, rows in found.groupby("model", sort=False):
        looks = rows[rows["of"] == "looks"].dropna(axis=1, how="all")
        ablated = rows[rows["of"] == "ablated"].dropna(axis=1, how="all")
        parts += [f"### {name}", _strongest(rows[rows["of"] == "strongest"]), _looks(looks), _ablated(ablated)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _strongest(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    first = rows[rows["rank"] == 0]
    head = first["head"].mode().iloc[0]
    others = rows[(rows["head"] == head) & (rows["rank"] > 0)]
    places = [f"{task} (place {rank + 1:.0f})" for task, rank in zip(others["task"], others["rank"], strict=True)]
    among = f"; among the {N_HEADS} strongest of {', '.join(places)}" if places else ""
    return f"{head} has the largest effect in {(first['head'] == head).sum()} of {len(first)} tasks{among}."


def _looks(looks: pd.DataFrame) -> str:
    segments = [name for name in ("answers", "inputs", "query", "template", "start") if name in looks]
    lines = []
    for (task, head), own in looks.groupby(["task", "head"], sort=False):
        by = own.set_index("prompts")
        shares = [" → ".join(f"{by.loc[kind, part]:.2f}" for kind in by.index) for part in segments]
        scores = [f"{own[score].iloc[0]:.2f}" for score in ("induction", "previous")]
        lines.append([str(task), str(head), *shares, *scores])
    kinds = " → ".join(dict.fromkeys(looks["prompts"]))
    return f"Shares: {kinds}.\n\n" + table(["task", "head", *segments, "induction", "previous token"], lines)


def _ablated(rows: pd.DataFrame) -> str:
    lines = []
    for (task, kind), own in rows.groupby(["task", "replaced_by"], sort=False):
        for name in dict.fromkeys(own["ablated"]):
            chosen, drawn = (own[(own["ablated"] == name) & (own["drawn"] == each)] for each in (False, True))
            one = chosen.iloc[0]
            if one["accuracy"] != one["accuracy"] or (name == "nothing" and kind != "corrupted"):
                continue
            shown = f"{one['accuracy']:.2f} [{one['accuracy_lo']:.2f}, {one['accuracy_hi']:.2f}]"
            beside = "" if drawn.empty else f"{drawn['accuracy'].iloc[0]:.2f}"
            p = "" if one["p"] != one["p"] else f"{one['p']:.2f}"
            about = [task, "" if name == "nothing" else kind, name, int(one["n_heads"])]
            lines.append([*map(str, about), shown, beside, p])
    for kind, own in rows.groupby("replaced_by", sort=False):
        whole = own[own["ablated"] == "nothing"].set_index("task")["accuracy"]
        for name in dict.fromkeys(own.loc[own["ablated"] != "nothing", "ablated"]):
            with_ = own[own["ablated"] == name].set_index("task")
            chosen, drawn = (with_.loc[with_["drawn"] == each, "accuracy"].dropna() for each in (False, True))
            lost = [_mean(whole.reindex(each.index) - each) for each in (chosen, drawn)]
            lines.append([f"mean of {len(chosen)}: lost", str(kind), name, "", *lost, ""])
    return table(["task", "means over", "without", "heads", "accuracy", "random heads", "p"], lines)


def _mean(values: pd.Series) -> str:
    """A mean over tasks with its t interval."""
    mean, low, high = t_interval(values.to_numpy()) if len(values) > 1 else (values.mean(), float("nan"), float("nan"))
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]" if low == low else f"{mean:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "show"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/vectors"), help="where effects are kept")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    given = parser.parse_args()
    if given.what == "run":
        run(given.model, given.tasks.split(","), given.seed, given.out)
        return
    text = show(pd.read_parquet(FILE))
    print(text)
    if given.write:
        write_section("heads", text)


if __name__ == "__main__":
    main()
