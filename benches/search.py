"""Whether a search finds what the whole grid says: for vectors and controls of several tasks, and at what cost.

    python benches/search.py [--model smollm2] [--tasks NAME,...] [--write]

Each vector (of the task, of two other tasks, two random ones, two of random heads) is searched for twice on 32 prompts
of *select*: as `evaluate_intervention` does, and with every setting on every prompt (`n_finalists=0`). *Same accuracy*:
the two settings are right on as many prompts.
"""

import argparse
from typing import Any

import torch
from common import machine_line, table, write_section
from torch.utils.flop_counter import FlopCounterMode

from ivlens import Grid, InstructionVector, PromptRecipe, head_effects, load_model, load_task
from ivlens.effects import EffectOptions
from ivlens.steering.controls import random_head_vectors, random_vectors
from ivlens.steering.prompt_sets import PromptSets, followed_recipe
from ivlens.steering.search import best_settings, tried_layers

TASKS = {
    "smollm2": "third_person,present_past,singular_plural,first_of_three,first_letter,country_continent,capitalize,"
    "present_gerund",
    "pocket": "antonym,english_french,first_letter,capitalize,country_capital,synonym,singular_plural,present_past,"
    "uppercase",
}
N_PROMPTS, N_DRAWS, N_OTHERS = 32, 2, 2


def grid_of(model: Any, name: str, n_finalists: int) -> Grid:
    if name != "smollm2":
        return Grid(n_finalists=n_finalists)
    layers = tried_layers(model.cfg.n_layers)
    return Grid(layers=layers, alphas=(1.0, 2.0, 4.0), sites=("resid_post",), n_finalists=n_finalists)


def searched(name: str, tasks: list[str]) -> list[tuple[str, int, int, float, float, float]]:
    """For each task: vectors, same settings, same accuracies, mean accuracy lost, and operations of both searches."""
    model = load_model(name)
    recipe = PromptRecipe(n_shots=5, instruction=None) if name == "smollm2" else None
    options = EffectOptions(n_mean_prompts=32, n_check_prompts=0)
    effects = {
        task: head_effects(model, load_task(task), recipe=recipe, n_prompts=6, options=options) for task in tasks
    }
    vectors = {task: InstructionVector.from_effects(each, k=10) for task, each in effects.items()}
    rows = []
    for task, iv in vectors.items():
        others = [vectors[other] for other in tasks if other != task][:N_OTHERS]
        every = [
            iv,
            *random_vectors(iv, N_DRAWS, 0),
            *random_head_vectors(model, iv, effects[task], N_DRAWS, 0),
            *others,
        ]
        thetas, counted, found = torch.stack([vector.theta for vector in every]), [], []
        chosen = followed_recipe([iv], None, load_task(task), "test", 0)
        for n_finalists in (6, 0):
            grid = grid_of(model, name, n_finalists)
            prompts = PromptSets(model, load_task(task), chosen, "drop", N_PROMPTS, 0, **grid.passes)
            trials = prompts.trials("select")
            trials.unsteered()  # the prefix counts for neither
            with FlopCounterMode(display=False) as counter:
                found.append(best_settings(trials, thetas, grid.settings(model), grid))
            counted.append(counter.get_total_flops())
        quick, whole = (trials.at(settings, thetas).accuracy.mean(1) for settings in found)
        same = sum(a == b for a, b in zip(*found, strict=True))
        lost = whole - quick
        rows.append((task, len(every), same, int((lost <= 1e-6).sum()), float(lost.mean()), counted[0] / counted[1]))
        print(task, *rows[-1][1:], flush=True)
    return rows


def report(name: str, rows: list[tuple[Any, ...]]) -> str:
    n, same, equal = (sum(row[at] for row in rows) for at in (1, 2, 3))
    head = [name, "vectors", "same setting", "same accuracy", "accuracy lost", "arithmetic ÷ whole grid"]
    lines = [[row[0], *map(str, row[1:4]), f"{row[4]:.4f}", f"{row[5]:.2f}"] for row in rows]
    lost, cost = (sum(row[at] for row in rows) / len(rows) for at in (4, 5))
    lines.append(
        ["all", str(n), f"{same} ({same / n:.2f})", f"{equal} ({equal / n:.2f})", f"{lost:.4f}", f"{cost:.2f}"]
    )
    return table(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(TASKS), default="smollm2")
    parser.add_argument("--tasks", help="names, joined by commas")
    parser.add_argument("--write", action="store_true", help="put the table into benches/RESULTS.md")
    options = parser.parse_args()
    text = report(options.model, searched(options.model, (options.tasks or TASKS[options.model]).split(",")))
    title = f"## A search beside the whole grid (`python benches/search.py --model {options.model} --write`)\n"
    print(text)
    if options.write:
        write_section(f"search_{options.model}", f"{title}\n{machine_line()}\n\n{text}")


if __name__ == "__main__":
    main()
