"""Heads of instructions against heads of demonstrations: are they the same, and can one do the other's work?

    python benches/told.py run  [--model pocket] [--tasks a,b] [--shots 3] [--maps]
    python benches/told.py show [--write]

A task is told by an instruction, or by demonstrations. Both measurements have the same corrupted prompts (`drop`: bare
inputs), the same inputs and the same score, so that they differ in nothing but what the heads' means were read from.
Tasks are the first eight by name of those that the model answers at 0.5 or better in either form, on *select* inputs,
and below that without both; with `--tasks` they are the named ones, whatever the model does. With `--maps` only the
effects are compared, as for a model that follows no instruction. Answers are kept in `told.parquet`.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from common import table, write_section

import ivlens
from ivlens.analysis.attention import AblationOptions, HeadScores, head_scores
from ivlens.common.intervals import t_interval
from ivlens.effects import HeadEffects
from ivlens.forward.ability import measure_ability
from ivlens.tasks.bank import load_bank

FILE = Path(__file__).parent / "told.parquet"
LEAST, MOST = 0.5, 8
K, N_EFFECTS, N_MEANS, N_JUDGED, N_DRAWS = 10, 24, 32, 32, 9
GRIDS = {  # of pocket all six layers, of deeper models some in the middle
    "pocket": ivlens.Grid(alphas=(1.0, 2.0, 4.0), sites=("resid_post",)),
    "smollm2": ivlens.Grid(layers=(2, 6, 10, 12, 14, 16, 18, 20), alphas=(1.0, 2.0, 4.0), sites=("resid_post",)),
}
FORMS = ("instruction", "demonstrations")


def recipes(n_shots: int) -> dict[str, ivlens.PromptRecipe]:
    return {FORMS[0]: ivlens.PromptRecipe(n_shots=0), FORMS[1]: ivlens.PromptRecipe(instruction=None, n_shots=n_shots)}


def able(model: Any, n_shots: int) -> list[str]:
    """The tasks that the model answers in both forms, and not without being told."""
    chosen = []
    for _, task in sorted(load_bank().items()):
        found = [measure_ability(model, task, recipe) for recipe in recipes(n_shots).values() if not task.fused]
        if found and all(one is not None and one.clean >= LEAST > one.bare for one in found):
            chosen.append(task.name)
        if len(chosen) == MOST:
            break
    return chosen


def same_layers(first: HeadEffects, second: HeadEffects) -> float:
    """How many of the second's strongest heads would be among as many random heads in the layers of the first's."""
    tops = [Counter(layer for layer, _ in effects.top_heads(K)) for effects in (first, second)]
    return sum(n * tops[1][layer] / first.cie.shape[2] for layer, n in tops[0].items())


def answers(
    model: Any, task: ivlens.Task, name: str, n_shots: int, scores: HeadScores | None
) -> Iterator[tuple[str, pd.DataFrame]]:
    """How alike the two measurements are; accuracy without the heads of each; accuracy with the vector of each."""
    forms, options = recipes(n_shots), ivlens.EffectOptions(n_mean_prompts=N_MEANS)
    effects = {
        form: ivlens.head_effects(
            model, task, recipe=recipe, corruption="drop", score="logprob", n_prompts=N_EFFECTS, options=options
        )
        for form, recipe in forms.items()
    }
    both = ivlens.compare_heads(*effects.values(), k=K)
    vectors = {form: ivlens.InstructionVector.from_effects(each, K, model=model) for form, each in effects.items()}
    tops = [[*each.top_heads(K)] for each in effects.values()]
    about = {
        "shared": both.overlap,
        "chance": both.expected,
        "chance_in_layers": same_layers(*effects.values()),
        "correlation": both.correlation,
        "limit": max(0.0, both.reliability[0] * both.reliability[1]) ** 0.5,
        "cosine": vectors[FORMS[0]].cosine(vectors[FORMS[1]]),
        "n_heads": both.n_heads,
        "strongest": " | ".join(" ".join(f"L{layer}H{head}" for layer, head in top[:3]) for top in tops),
    }
    for form, each in effects.items():
        # what telling the task is worth, on the prompts of the effects
        about |= {f"gain_{form}": float((each.clean_scores - each.base_scores).mean())}
    yield "alike", pd.DataFrame([about])
    if scores is None:
        return
    for form, recipe in forms.items():
        for of, iv in vectors.items():
            left = ivlens.ablate_heads(
                model,
                task,
                iv,
                recipe=recipe,
                scores=scores,
                n_prompts=N_JUDGED,
                options=AblationOptions(
                    k=K, replaced_by="bare", n_draws=N_DRAWS, n_mean_prompts=N_MEANS, positions="prompt"
                ),
            ).table
            yield "ablated", left[left["ablated"].isin(["nothing", "vector"])].assign(prompts=form, heads_of=of)
    for form, recipe in forms.items():
        # what the vector is added to: nothing but the input, or a prompt of this form that tells another task
        for corruption in ("drop", recipe.corruption(task)):
            if corruption == "drop" and form == FORMS[1]:
                continue  # bare inputs are the same in both forms
            for of, iv in vectors.items():
                judged = ivlens.evaluate_intervention(
                    model,
                    task,
                    iv,
                    recipe=recipe,
                    at=GRIDS[name],
                    n_prompts=N_JUDGED,
                    n_draws=3,
                    options=ivlens.JudgeOptions(corruption=corruption, means=effects[of], other_vectors=()),
                ).table
                judged = judged[judged["condition"].isin(["clean", "bare", "iv", "random_heads"])]
                yield "steered", judged.assign(prompts="bare" if corruption == "drop" else form, heads_of=of)


def run(name: str, tasks: Sequence[str] | None, n_shots: int, only_maps: bool) -> None:
    model = ivlens.load_model(name, dtype="float32")
    chosen, scores = tasks or able(model, n_shots), None if only_maps else head_scores(model)
    print(f"{len(chosen)} tasks: {', '.join(chosen)}", flush=True)
    for task in chosen:
        known = pd.read_parquet(FILE) if FILE.exists() else pd.DataFrame(columns=["model", "task", "n_shots"])
        if ((known["model"] == name) & (known["task"] == task) & (known["n_shots"] == n_shots)).any():
            continue
        found = answers(model, ivlens.load_task(task), name, n_shots, scores)
        new = [frame.assign(table=what, task=task, model=name, n_shots=n_shots) for what, frame in found]
        pd.concat([known, *new], ignore_index=True).to_parquet(FILE, index=False)
        print(f"{task}: {new[0][['shared', 'chance_in_layers', 'correlation']].to_dict('records')[0]}", flush=True)


def show(found: pd.DataFrame) -> str:
    parts = [
        "## Heads of instructions and heads of demonstrations (`python benches/told.py show --write`)",
        f"{K} strongest heads of each; effects by log-probability of the answer, on {N_EFFECTS} bare inputs; accuracy "
        f"on {N_JUDGED} *test* inputs, or as many as there are. Intervals are t over tasks; one seed.",
    ]
    for name, rows in found.groupby("model", sort=False):
        frames = {str(of): each.dropna(axis=1, how="all") for of, each in rows.groupby("table")}
        shots = ", ".join(f"{n:.0f}" for n in sorted(set(rows["n_shots"])))
        parts += [f"### {name}, {rows['task'].nunique()} tasks, {shots} demonstrations"]
        parts += [_alike(frames["alike"])]
        parts += [draw(frames[of]) for of, draw in (("ablated", _ablated), ("steered", _steered)) if of in frames]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _alike(rows: pd.DataFrame) -> str:
    names = (
        "shared",
        "chance",
        "chance_in_layers",
        "correlation",
        "limit",
        "cosine",
        *(f"gain_{each}" for each in FORMS),
    )
    lines = [
        [row["task"], *(f"{row[each]:.2f}" for each in names), row["strongest"].replace("|", "/")]
        for row in rows.to_dict("records")
    ]
    lines.append(["mean", *(_mean(rows[each]) for each in names), ""])
    head = ["task", f"shared of {K}", "by chance", "by chance in the same layers", "rank correlation", "its limit"]
    head += ["cosine of the vectors", "gain, instruction", "gain, demonstrations"]
    return (
        "*Its limit*: the root of the product of both maps' reliabilities, which a correlation can hardly exceed. "
        "*Gain*: mean log-probability of the answer with the instruction or the demonstrations, less that without "
        "(nats).\n\n"
    ) + table([*head, "strongest, instruction / demonstrations"], lines)


def _ablated(rows: pd.DataFrame) -> str:
    lines = []
    for form in FORMS:
        on = rows[rows["prompts"] == form]
        whole = on[on["ablated"] == "nothing"].groupby("task")["accuracy"].mean()
        line = [f"by {form}", _mean(whole)]
        for of in FORMS:
            own = on[(on["heads_of"] == of) & (on["ablated"] == "vector")].set_index("task")
            chosen, drawn = (own.loc[own["drawn"] == each, "accuracy"] for each in (False, True))
            line += [_mean(whole - chosen), _mean(whole - drawn), _mean(drawn - chosen)]
        lines.append(line)
    head = ["prompts", "accuracy"]
    for of in FORMS:
        head += [f"lost without heads of {of}", "random heads of the same layers", "difference"]
    return (
        "Clean prompts, the heads' outputs at the last prompt token replaced by means over bare inputs; accuracy lost."
        f"\n\n{table(head, lines)}"
    )


def _steered(rows: pd.DataFrame) -> str:
    lines = []
    for form in ("bare", *FORMS):
        on = rows[rows["prompts"] == form]
        at = {(of, what): _accuracy(on, of, what) for of in FORMS for what in ("bare", "iv", "random_heads")}
        first, second = (at[of, "iv"] for of in FORMS)
        label = (
            "bare inputs" if form == "bare" else f"another task's {form}" if form == FORMS[0] else "shuffled answers"
        )
        own = [each for of in FORMS for each in (_mean(at[of, "iv"]), _mean(at[of, "random_heads"]))]
        lines.append([label, _mean(at[FORMS[0], "bare"]), *own, _mean(first - second)])
    head = ["added to", "without a vector"]
    for of in FORMS:
        head += [f"vector of {of}", "of random heads"]
    return table([*head, "first less second"], lines)


def _accuracy(rows: pd.DataFrame, of: str, condition: str) -> pd.Series:
    own = rows[(rows["heads_of"] == of) & (rows["condition"] == condition)]
    return own.groupby("task")["accuracy"].mean()


def _mean(values: pd.Series) -> str:
    """The mean over tasks with its t interval."""
    known = values.dropna()
    if len(known) < 2:
        return f"{known.mean():.2f}" if len(known) else ""
    mean, low, high = t_interval(known.to_numpy())
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "show"))
    parser.add_argument("--model", default="pocket", choices=list(GRIDS))
    parser.add_argument("--tasks", help="names, with commas")
    parser.add_argument("--shots", type=int, default=3)
    parser.add_argument("--maps", action="store_true", help="only compare effects")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    given = parser.parse_args()
    if given.what == "run":
        run(given.model, given.tasks.split(",") if given.tasks else None, given.shots, given.maps)
        return
    text = show(pd.read_parquet(FILE))
    print(text)
    if given.write:
        write_section("told", text)


if __name__ == "__main__":
    main()
