"""Questions about vectors in a real model that `benches/vectors.py` raises, answered with numbers either way.

    python benches/questions.py run  [--model smollm2] [--tasks double,noun_article,third_person] [--seed 0] [--brief]
    python benches/questions.py show [--write]

- Why do some vectors fail where the prompt works? Is only the first token right, or does the rest need the vector too?
- Why do the vector's heads, replaced by their means, do less than their sum? Is it the strength?
- What is the strongest head of all tasks: what does it write, and what is left of the vector without it?
- Where `shuffle` takes nothing away, do heads that are chosen under `drop` make a vector?

Effects are those of `benches/vectors.py`, from its folder or measured anew. Answers are kept in `questions.parquet`.
With `--brief` only the last question is asked.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import table, write_section
from vectors import N_EFFECTS, N_JUDGED, N_MEANS, K, measured, recipe_of

import ivlens
from ivlens.common.intervals import t_interval, wilson
from ivlens.effects import HeadEffects
from ivlens.forward.hooks import patched_heads
from ivlens.steering.edits import HeadOutputs, head_addition, replacement
from ivlens.steering.prompt_sets import PromptSets
from ivlens.steering.search import Grid, searched
from ivlens.steering.trials import Trials

FILE = Path(__file__).parent / "questions.parquet"
STRENGTHS = (1.0, 2.0, 4.0)


def of_sum(iv: ivlens.InstructionVector, sets: PromptSets, strengths: Sequence[float]) -> dict[str, Any]:
    """The vector at its best layer: the share of first tokens, and of whole answers, that are right on *test*."""
    grid = Grid(alphas=strengths, sites=("resid_post",), positions=sets.positions)
    theta, test = iv.theta[None], sets.trials("test")
    ((best, _),) = searched(sets.trials("select"), theta, grid.settings(sets.model), grid)
    first = float(test.at([best], theta, part="first tokens").accuracy.mean())
    whole = test.at([best], theta)
    return {
        "first": first,
        "accuracy": float(whole.accuracy.mean()),
        "logprob": float(whole.logprob.mean()),
        "layer": best.layer,
        "alpha": best.alpha,
    }


def of_heads(sets: PromptSets, outputs: HeadOutputs, how: str, alpha: float) -> dict[str, Any]:
    """The heads replaced by their means, or their means added to them, at one strength."""
    test: Trials = sets.trials("test")
    edit = {"replaced": replacement, "added": head_addition}[how]
    scores = test.edited(lambda where: patched_heads(sets.model, edit(outputs, alpha, where), outputs.layers))
    return {"accuracy": float(scores.accuracy.mean()), "logprob": float(scores.logprob.mean()), "alpha": alpha}


def answers(model: Any, task: ivlens.Task, effects: HeadEffects, brief: bool) -> pd.DataFrame:
    """All interventions on one task; with `brief` only those that compare two corruptions."""
    iv = ivlens.InstructionVector.from_effects(effects, K, model=model)
    sets = PromptSets(model, task, effects.recipe, n_prompts=N_JUDGED, seed=effects.recipe.seed, kept={})
    every = replace(sets, positions="every", kept={})
    bare = sets.trials("test")
    rows: list[dict[str, Any]] = [
        {
            "what": "bare",
            "first": float(bare.at([(0, 0.0, "resid_post")], iv.theta[None], part="first tokens").accuracy.mean()),
            "accuracy": float(bare.unsteered().accuracy.mean()),
        },
        {
            "what": "clean",
            "accuracy": float(sets.trials("test", corrupted=False).unsteered().accuracy.mean()),
        },
        {"what": "sum, last prompt token"} | of_sum(iv, sets, STRENGTHS),
    ]
    if not brief:
        rows += of_strengths(model, iv, effects, sets, every)
    rows += of_drop(model, task, effects, {"last prompt token": sets} | ({} if brief else {"every token": every}))
    return pd.DataFrame(rows).assign(task=task.name, seed=effects.recipe.seed, n=len(bare.batch))


def of_drop(model: Any, task: ivlens.Task, effects: HeadEffects, sets: dict[str, PromptSets]) -> list[dict[str, Any]]:
    """The vector of the heads that are strongest on bare prompts; their means are those of the given effects."""
    dropped = ivlens.head_effects(
        model,
        task,
        recipe=effects.recipe,
        corruption="drop",
        n_prompts=N_EFFECTS,
        options=ivlens.EffectOptions(n_mean_prompts=N_MEANS, n_check_prompts=0),
    )
    heads = dropped.top_heads(K)
    iv = ivlens.InstructionVector.from_effects(effects, heads=heads, model=model)
    about = {"head": label(heads[0]), "shared": len(set(heads) & set(effects.top_heads(K)))}
    return [
        {"what": f"heads chosen under drop, {name}"} | about | of_sum(iv, own, STRENGTHS) for name, own in sets.items()
    ]


def of_strengths(
    model: Any, iv: ivlens.InstructionVector, effects: HeadEffects, sets: PromptSets, every: PromptSets
) -> list[dict[str, Any]]:
    """Sums and heads at several strengths and positions, and what the strongest head does."""
    rows = [
        {"what": "sum, every token"} | of_sum(iv, every, STRENGTHS),
        {"what": "sum, strength 1"} | of_sum(iv, sets, (1.0,)),
    ]
    means = HeadOutputs.of(iv)
    for alpha in STRENGTHS:
        rows.append({"what": f"heads replaced, {alpha:g}"} | of_heads(sets, means, "replaced", alpha))
        rows.append({"what": f"means added, {alpha:g}"} | of_heads(sets, means, "added", alpha))
    rows.append({"what": "means added at every token, 1"} | of_heads(every, means, "added", 1.0))
    alone = ivlens.InstructionVector.from_effects(effects, heads=[iv.heads[0]], model=model)
    others = ivlens.InstructionVector.from_effects(effects, heads=iv.heads[1:], model=model)
    name = {"head": label(iv.heads[0])}
    rows.append({"what": "strongest head alone"} | name | of_sum(alone, sets, (*STRENGTHS, 8.0)))
    rows.append({"what": "all but the strongest"} | name | of_sum(others, sets, STRENGTHS))
    rows.append(
        {
            "what": "the strongest head's write",
            "tokens": " ".join(token.strip() for token, _ in alone.decode(model, k=8)),
            "cosine": alone.cosine(iv),
            "share": iv.settings["shares"][0],
        }
        | name
    )
    return rows


def label(head: tuple[int, int]) -> str:
    return "L{}H{}".format(*head)


def taken(effects: HeadEffects) -> dict[str, Any]:
    """What the corruption of the effects takes away, in the unit of their score."""
    scores = {"clean_score": float(effects.clean_scores.mean()), "corrupted_score": float(effects.base_scores.mean())}
    return {"what": "corruption", "score": effects.settings["score"], "takes_enough": effects.taken.is_enough} | scores


def run(name: str, tasks: Sequence[str], seed: int, out: Path, brief: bool) -> None:
    model = ivlens.load_model(name, dtype="float32")
    for task in tasks:
        known = pd.read_parquet(FILE) if FILE.exists() else pd.DataFrame(columns=["model", "task", "seed", "what"])
        asked = set(known.loc[(known[["model", "task", "seed"]] == [name, task, seed]).all(axis=1), "what"])
        if "corruption" in asked:
            continue
        effects, loaded = measured(model, name, [task], seed, out)[task], ivlens.load_task(task)
        with torch.no_grad():
            found = answers(model, loaded, effects, brief)
        found = pd.concat([found, pd.DataFrame([taken(effects)]).assign(task=task, seed=seed, n=len(effects.cie))])
        pd.concat([known, found.assign(model=name)], ignore_index=True).to_parquet(FILE, index=False)
        print(found.to_string(), flush=True)


def show(found: pd.DataFrame) -> str:
    parts = [
        "## Questions about vectors in a real model (`python benches/questions.py show --write`)",
        f"{N_JUDGED} *test* inputs, vectors of {K} heads, {recipe_of(0).n_shots} demonstrations; layers and strengths "
        "of sums from *select*. *First*: the answer's first token is right; *whole*: the answer is. Brackets: Wilson.",
    ]
    for name, rows in found.groupby("model", sort=False):
        tasks = list(rows.loc[rows["what"] == "sum, strength 1", "task"])
        full = rows[rows["task"].isin(tasks)]
        kinds = [what for what in dict.fromkeys(full["what"]) if "write" not in what and what != "corruption"]
        lines = []
        for what in kinds:
            line = [what]
            for task in tasks:
                own = rows[(rows["task"] == task) & (rows["what"] == what)]
                line.append("" if own.empty else _cell(own))
            lines.append(line)
        writes = rows[rows["what"] == "the strongest head's write"]
        parts += [f"### {name}", table(["intervention", *tasks], lines)]
        parts += [
            table(
                ["task", "strongest head", "tokens that its write makes likelier", "cosine with the vector", "share"],
                [
                    [row["task"], row["head"], f"`{row['tokens']}`", f"{row['cosine']:.2f}", f"{row['share']:.2f}"]
                    for row in writes.to_dict("records")
                ],
            )
        ]
        parts += ["### Heads chosen under `shuffle` and under `drop`", _corruptions(rows)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _corruptions(rows: pd.DataFrame) -> str:
    """The vector under both corruptions, task by task, with the mean difference."""
    lines, differences = [], []
    for task, own in rows.groupby("task", sort=False):
        by = own.set_index("what")
        if "corruption" not in by.index:
            continue
        lost, ends = by.loc["corruption"], ("sum, last prompt token", "heads chosen under drop, last prompt token")
        first, second = (by.loc[[end]] for end in ends)
        differences.append(float(second["accuracy"].iloc[0] - first["accuracy"].iloc[0]))
        scores = f"{lost['score']}: {lost['clean_score']:.2f} → {lost['corrupted_score']:.2f}"
        clean, shared = f"{by.loc['clean', 'accuracy']:.2f}", second["shared"].iloc[0]
        lines.append([str(task), scores, clean, _cell(first), _cell(second), f"{differences[-1]:.2f}"])
        lines[-1].append("" if shared != shared else f"{shared:.0f}")
    if not lines:
        return "no task yet"
    if len(lines) > 1:
        mean, low, high = t_interval(differences)
        lines.append(["mean", "", "", "", "", f"{mean:.2f} [{low:.2f}, {high:.2f}]", ""])
    head = ["task", "what `shuffle` takes (score)", "clean", "heads under `shuffle`", "heads under `drop`"]
    return table([*head, "difference", f"heads shared of {K}"], lines)


def _cell(own: pd.DataFrame) -> str:
    n, accuracy = int(own["n"].sum()), float((own["accuracy"] * own["n"]).sum() / own["n"].sum())
    low, high = wilson(accuracy * n, n)
    first = "" if own["first"].isna().all() else f"first {float(own['first'].mean()):.2f}, "
    return f"{first}whole {accuracy:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "show"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tasks", default="double,noun_article,third_person,present_past,singular_plural")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/vectors"), help="where effects are kept")
    parser.add_argument("--brief", action="store_true", help="only compare heads under shuffle and under drop")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    given = parser.parse_args()
    if given.what == "run":
        run(given.model, given.tasks.split(","), given.seed, given.out, given.brief)
        return
    text = show(pd.read_parquet(FILE))
    print(text)
    if given.write:
        write_section("questions", text)


if __name__ == "__main__":
    main()
