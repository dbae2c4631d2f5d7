"""What a trained vector reaches on *test* prompts, and its controls: permuted answers, and the best constant.

    python benches/trained.py [--model smollm2] [--tasks NAME,...] [--write]

The recipe of SmolLM2's prompts is five demonstrations without an instruction; pocket's is its own.
"""

import argparse
import time

from common import machine_line, table, write_section

from ivlens import (
    JudgeOptions,
    PromptRecipe,
    TrainedOptions,
    evaluate_intervention,
    load_model,
    load_task,
    train_vector,
)

TASKS = {"smollm2": "third_person,double,noun_article", "pocket": "third_person,antonym,double,country_continent"}
HEAD = ("clean", "bare", "trained", "layer", "length", "CPU s", "permuted", "its layer", "its CPU s", "constant")


def row(name: str, task_name: str) -> list[str]:
    """Accuracies on *test*, and seconds of computing; lengths are in units of the stream's at the vector's layer."""
    model, task = load_model(name), load_task(task_name)
    recipe = PromptRecipe(instruction=None, n_shots=5) if name == "smollm2" else PromptRecipe()
    cells: dict[str, str] = {}
    for permuted in (False, True):
        started = time.process_time()
        found = train_vector(model, task, recipe=recipe, options=TrainedOptions(permuted=permuted))
        spent, best = f"{time.process_time() - started:.0f}", found.vector.settings["trained"]["best"]
        judged = evaluate_intervention(
            model, task, found.vector, at=found.setting, n_draws=0, options=JudgeOptions(other_vectors=())
        )
        about = {"permuted" if permuted else "trained": f"{judged.accuracy():.2f}"}
        about |= {"its layer": str(best["layer"]), "its CPU s": spent} if permuted else {
            "layer": str(best["layer"]), "length": f"{best['length']:.2f}", "CPU s": spent
        }  # fmt: skip
        cells |= about | {each: f"{judged.accuracy(each):.2f}" for each in ("clean", "bare", "constant")}
    return [task_name, *(cells[each] for each in HEAD)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(TASKS), default="smollm2")
    parser.add_argument("--tasks", help="names, joined by commas")
    parser.add_argument("--write", action="store_true", help="put the table into benches/RESULTS.md")
    options = parser.parse_args()
    rows = []
    for name in (options.tasks or TASKS[options.model]).split(","):
        rows.append(row(options.model, name))
        print(*rows[-1], flush=True)
    text = table([options.model, *HEAD], rows)
    title = f"## A trained vector and its controls (`python benches/trained.py --model {options.model} --write`)\n"
    print(text)
    if options.write:
        write_section(f"trained_{options.model}", f"{title}\n{machine_line()}\n\n{text}")


if __name__ == "__main__":
    main()
