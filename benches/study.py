"""The claims of the Instruction Vector paper: several orders of new tasks, on the built-in model and on a real one.

    python benches/study.py run   --out out/study-cells [--regime NAME] [--orders 0,1,2] [--seeds N] [--cells N]
    python benches/study.py pilot --out out/study-cells  --regime NAME
    python benches/study.py show [--out out/study-cells] [--write]

A cell is one `ivlens study` without its page. `run` keeps every cell and can be interrupted, also within a cell, or
told to stop after some new cells. `show` pools them with the committed ones: intervals are t over runs, of one run over
its tasks. Its `--out` may also be the file that `gpu_study.py` writes.

`short` and `long` are of the built-in model. `few` is of SmolLM2-135M-Instruct, which is asked by five demonstrations
and trained by instructions; in `shots` it is trained by demonstrations too; `terse` is of the same model after it was
taught to follow instructions, by an adapter; `taught` of one that was taught with all weights. `pilot` finds the length
of the training for these, in an order and with a seed that are not reported.

Margins are in `ivlens/runs/study/claims.py`; they, the tasks, orders, seeds, kinds of guidance and the rule for the
length of the training were written down before the first cell of a real model was run (docs/study.md).
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree

import pandas as pd
import torch
from common import machine_line, table, write_section

from ivlens import load_model, load_task
from ivlens.analysis.dynamics import predictors
from ivlens.analysis.forgetting import GENERAL, SAID
from ivlens.common.store.entries import TABLE
from ivlens.common.store.keys import versions
from ivlens.common.store.store import KEPT, Store
from ivlens.models import model_identity
from ivlens.models.boot import TransformerBridge
from ivlens.models.plain import plain_model
from ivlens.prompts.recipe import PromptRecipe, plain_options
from ivlens.runs.study import StudyOptions, claim_table, run_study
from ivlens.runs.study.claims import interval_text
from ivlens.runs.study.plan import new_tasks
from ivlens.runs.study.results import iv_place
from ivlens.runs.suites.suite import for_training, split_examples
from ivlens.steering.prompt_sets import PromptSets
from ivlens.tasks.task import Task
from ivlens.tuning.exams import Exam, make_exam
from ivlens.tuning.learner import Learner
from ivlens.tuning.training.data import training_set

# pairs of the pocket suite's five tasks; every task is in one pair at least
POCKET_ORDERS = (
    ("middle_of_three", "second_letter"),
    ("swap_pair", "first_and_last_letter"),
    ("second_letter", "shortest_of_three"),
)
# the other two tasks of the suite are those of the pilot
REAL_ORDERS = (
    ("middle_of_three", "second_letter"),
    ("second_letter", "first_and_last_letter"),
    ("first_and_last_letter", "middle_of_three"),
)
PILOT_ORDER, PILOT_SEED, PILOT_STEPS = ("swap_pair", "shortest_of_three"), 9, 40
GUIDANCE = ("none", "iv", "iv/zero_vector", "answers")
HELD = ("heads", "heads/random_heads")  # for the regime of short prompts alone: the hours of `few` are for its orders


@dataclass(frozen=True)
class Regime:
    """Options that all cells of a regime share, the new tasks of each of its orders, and the title of its tables."""

    options: StudyOptions
    orders: tuple[tuple[str, str], ...]
    title: str

    @property
    def is_real(self) -> bool:
        return self.options.model != "pocket"


def real(
    model: str, earlier: Sequence[str], recipe: PromptRecipe, steps: int, training: PromptRecipe | None = None
) -> StudyOptions:
    """The options of a real model: fewer prompts and draws than on pocket, in the form in which it is asked."""
    return StudyOptions(
        model=model, earlier=earlier, recipe=recipe, training=training, steps=steps, guidance=GUIDANCE, lr=2e-3,
        batch_size=8, n_records=1, n_prompts=16, n_judge_prompts=24, n_exam_prompts=8, n_draws=9,
    )  # fmt: skip


# tasks with knowledge (clozes) which the model answers in half of 32 *select* prompts or more, facts among them
FEW_EARLIER = (
    "country_continent", "country_language", "present_gerund", "present_past", "singular_plural", "third_person"
)  # fmt: skip
TERSE_EARLIER = ("antonym", "comparative", "country_capital", "country_language", "present_past", "singular_plural")
FIVE_SHOTS = PromptRecipe(instruction=None, n_shots=5)
REGIMES = {
    "short": Regime(StudyOptions(), POCKET_ORDERS, "Pocket, 50 steps for each new task, linear decay"),
    "long": Regime(
        StudyOptions(steps=120, decay="constant"), POCKET_ORDERS, "Pocket, 120 steps for each new task, constant decay"
    ),
    "few": Regime(
        real("smollm2", FEW_EARLIER, FIVE_SHOTS, 10, PromptRecipe()), REAL_ORDERS,
        "SmolLM2-135M-Instruct, asked by five demonstrations, trained by instructions",
    ),
    "shots": Regime(
        real("smollm2", FEW_EARLIER, FIVE_SHOTS, 10), REAL_ORDERS,
        "SmolLM2-135M-Instruct, asked and trained by five demonstrations",
    ),
    "terse": Regime(
        replace(real("smollm2-terse", TERSE_EARLIER, PromptRecipe(), PILOT_STEPS), guidance=GUIDANCE + HELD),
        REAL_ORDERS,
        "SmolLM2-135M-Instruct, recently taught to answer instructions",
    ),
    # whether what `terse` shows comes of its adapter: `ivlens terse train --method full --out out/terse-full` first
    "taught": Regime(
        real("out/terse-full", TERSE_EARLIER, PromptRecipe(), PILOT_STEPS), REAL_ORDERS,
        "SmolLM2-135M-Instruct, all weights recently taught to answer instructions",
    ),
}  # fmt: skip
HERE = Path(__file__).parent
NAMES = ("evidence", "tasks", "new_scores", "answers", "general", "frontier", "transplants", "splices")
TABLES = {name: TABLE if name == "evidence" else f"{name}.parquet" for name in NAMES}


class Saying:
    """Prints what a cell begins, with the cell's name and the time since it was begun."""

    def __init__(self, name: str) -> None:
        self.name, self.began = name, time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"{self.name}, {time.monotonic() - self.began:.0f} s: {text}", flush=True)


def run(
    out: Path,
    orders: Sequence[int],
    seeds: Sequence[int],
    n_cells: int | None,
    regime: str,
    *,
    model: TransformerBridge | None = None,
    until: float = float("inf"),
) -> None:
    """Run the cells of a regime that the store lacks.

    Args:
        model: the regime's model, opened on any device; None: it is opened here, and pocket takes one thread.
        until: no cell is begun after this time (`time.monotonic`).
    """
    own, store = REGIMES[regime], Store(out / KEPT)
    if model is None:
        torch.set_num_threads(torch.get_num_threads() if own.is_real else 1)
        model = load_model(own.options.model)
    for seed in seeds:
        for order in orders:
            told = None if own.options.training is None else replace(own.options.training, seed=seed)
            recipe = replace(own.options.recipe, seed=seed)
            options = replace(own.options, new=own.orders[order], recipe=recipe, training=told, seed=seed)
            name = f"{regime}-order{order}-seed{seed}"
            what = {"kind": "study", "options": plain_options(options), "model": model_identity(model).key}
            if store.find(what | versions()) is not None:
                continue
            if n_cells == 0 or time.monotonic() > until:
                return
            n_cells = None if n_cells is None else n_cells - 1
            work = out / "work" / name  # what an interrupted cell goes on from

            def fill(folder: Path, options: StudyOptions = options, name: str = name, work: Path = work) -> None:
                found = run_study(options, model=model, folder=work, say=Saying(name))
                for part, file in TABLES.items():
                    frame = found.dynamics.tasks if part == "tasks" else getattr(found, part)
                    # the models of a cell, where a table has several, go into a column of their own
                    frame.rename(columns={"run": "model"}).assign(run=name).to_parquet(folder / file)

            made = store.put(what | versions(), fill, {"run": name}).made
            rmtree(work, ignore_errors=True)
            print(f"{name}: {made['seconds']:.0f} s", flush=True)


def pilot(out: Path, regime: str, lr: float | None) -> None:
    """Train on the pilot's new tasks, and print what is left of earlier ones at every judged step.

    `left` is the mean over earlier tasks of `(now - floor) / (before - floor)` on *select*, where the floor is what the
    bare input gives, or the commonest answer. docs/study.md says how the length of trainings follows from it.
    """
    own = REGIMES[regime].options
    own = own if lr is None else replace(own, lr=lr)
    recipe, told = replace(own.recipe, seed=PILOT_SEED), replace(own.told, seed=PILOT_SEED)
    model = load_model(own.model)
    earlier = [(task, task.split("select", PILOT_SEED)) for task in map(load_task, own.earlier)]
    exam = make_exam(model, earlier, recipe=recipe, n_prompts=16, seed=PILOT_SEED)
    before, floors = exam.sit(plain_model(model)), {task.name: floor(model, task, recipe) for task, _ in earlier}
    print("before:", {name: f"{value:.2f} over {floors[name]:.2f}" for name, value in before.items()}, flush=True)
    learner = Learner(model, own.method)
    for number, task in enumerate(new_tasks(PILOT_ORDER)):
        asked = [(for_training(task), split_examples(task, "select"))]
        new = make_exam(model, asked, recipe=told, n_prompts=16, seed=PILOT_SEED)

        def judge(trained: torch.nn.Module, new: Exam = new, name: str = task.name) -> dict[str, float]:
            old, learnt = exam.sit(trained), new.sit(trained)[name]
            left = [(old[one] - floors[one]) / (before[one] - floors[one]) for one in old if before[one] > floors[one]]
            found = {"new": learnt, "left": sum(left) / max(1, len(left))}
            print(name, {what: round(value, 2) for what, value in (found | old).items()}, flush=True)
            return found

        data = training_set(
            model, asked[0][0], asked[0][0].examples, recipe=told, n_samples=own.n_samples, seed=PILOT_SEED
        )
        tune = replace(own.tune, steps=PILOT_STEPS, judge_every=5, seed=PILOT_SEED)
        learner.learn(data, tune, folder=out / "pilot" / f"{regime}-{own.lr:g}" / str(number), judge=judge)


def floor(model: TransformerBridge, task: Task, recipe: PromptRecipe) -> float:
    """The accuracy on *select* of bare inputs, or the share of the commonest answer if that is more."""
    sets, examples = PromptSets(model, task, recipe, n_prompts=16), task.split("select", recipe.seed)
    counts = Counter(answer for example in examples for answer in set(example.answers))
    bare = float(sets.trials("select").unsteered().accuracy[0].mean())
    return max(bare, max(counts.values()) / len(examples))


def kept(out: Path) -> dict[str, pd.DataFrame]:
    """All cells, one below the other; no tables before the first cell is done."""
    entries = Store(out / KEPT).entries("study")
    if not entries:
        return {}
    return {name: pd.concat([pd.read_parquet(one.path(file)) for one in entries]) for name, file in TABLES.items()}


def committed(file: Path = HERE / "study.parquet") -> dict[str, pd.DataFrame]:
    """Cells that `in_one_file` has put together."""
    frame = pd.read_parquet(file)
    own = {str(name): rows.drop(columns="table") for name, rows in frame.groupby("table")}
    return {name: rows.dropna(axis=1, how="all") for name, rows in own.items()}  # columns of its own


def together(cells: Sequence[dict[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Cells of several sources, one below the other; of a cell that two of them have, the later one's."""
    found: dict[str, pd.DataFrame] = {}
    for one in cells:
        runs = set(one["evidence"]["run"])
        for part, frame in one.items():
            earlier = found.get(part)
            kept = [] if earlier is None else [earlier[~earlier["run"].isin(runs)]]
            found[part] = pd.concat([*kept, frame], ignore_index=True)
    return found


def in_one_file(cells: dict[str, pd.DataFrame], file: Path) -> None:
    pd.concat([frame.assign(table=part) for part, frame in cells.items()]).to_parquet(file, index=False)


def show(cells: dict[str, pd.DataFrame]) -> str:
    about = (
        "Six earlier tasks. Numbers: mean, and 95 % interval over runs and tasks. Intervals cover one base model. "
        "Pocket is built so that Instruction Vectors work in it: there the study demonstrates, and is no evidence "
        "about other models. Day and threads are those of the machine that printed this; pocket's cells were run on "
        "2026-11-25, those of a real model on 2026-11-27 and 28, with one thread and these versions."
    )
    parts = ["## The paper's claims (`benches/study.py`)", f"{machine_line()} {about}"]
    for name, regime in sorted(REGIMES.items(), key=lambda item: not item[1].is_real):
        own = {table: frame[frame["run"].str.startswith(f"{name}-")] for table, frame in cells.items()}
        if own["evidence"]["run"].nunique() >= (1 if regime.is_real else 2):
            parts += shown_regime(regime, own)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def shown_regime(regime: Regime, cells: dict[str, pd.DataFrame]) -> list[str]:
    evidence = {str(run): with_place(rows, cells["tasks"], str(run)) for run, rows in cells["evidence"].groupby("run")}
    found = predictors(cells["tasks"][cells["tasks"]["step"] > 0], leave_out="run" if len(evidence) > 1 else "task")
    claims = claim_table(evidence, found).to_dict("records")
    rows = [[row["text"], row["paper"], interval_text(row), row["beside"], f"**{row['verdict']}**"] for row in claims]
    single = [row["claim"] for row in claims if row["claim"] not in ("prediction", "large")]
    per_run = []
    for run, own in evidence.items():
        of_run = {row["claim"]: row for row in claim_table({run: own}, found).to_dict("records")}
        per_run.append([run, *("{value:.2f}, {verdict}".format_map(of_run[name]) for name in single)])
    r2 = [
        [row["predictor"], "{r2:.2f} [{r2_lo:.2f}, {r2_hi:.2f}]".format_map(row), f"{row['r2_in_sample']:.2f}"]
        for row in found.to_dict("records")
    ]
    scores: dict[str, list[float]] = {}
    for row in cells["new_scores"].to_dict("records"):
        values = [value for name, value in row.items() if name not in ("guidance", "run") and value == value]
        scores.setdefault(row["guidance"], []).extend(values)
    new = ", ".join(f"{kind} {sum(values) / len(values):.2f}" for kind, values in scores.items())
    orders = ", ".join(f"{number} {' then '.join(order)}" for number, order in enumerate(regime.orders))
    return [
        f"### {regime.title}: {len(evidence)} {'run' if len(evidence) == 1 else 'runs'}",
        f"Earlier tasks: {', '.join(regime.options.earlier)}. Orders of new ones: {orders}.",
        table(["claim", "paper", "here", "beside it", "verdict"], rows),
        f"Accuracy on the new tasks after training, by guidance: {new}.",
        *shown_kept(cells),
        table(["run", *single], per_run),
        table(["predictor of performance", "R², left out in turn", "R² in sample"], r2),
    ]


def shown_kept(cells: dict[str, pd.DataFrame]) -> list[str]:
    """Tables of what models say and keep; older cells have neither."""
    if "answers" not in cells or cells["answers"].empty:
        return []
    said = cells["answers"].groupby("model", sort=False)["kind"].value_counts(normalize=True).unstack(fill_value=0.0)
    shares = [[str(model), *(f"{said.loc[model].get(kind, 0.0):.2f}" for kind in SAID)] for model in said.index]
    general = cells["general"].groupby(["model", "measure"], sort=False)["value"].mean().unstack()
    kept = [[str(model), *(f"{general.loc[model, measure]:.2f}" for measure in GENERAL)] for model in general.index]
    return [
        "Kinds of answers to earlier tasks' *test* prompts, as shares (`answers_said`):",
        table(["model", *SAID], shares),
        "General abilities (`general_scores`): perplexity of plain text, tasks by instruction, by demonstrations:",
        table(["model", *GENERAL], kept),
    ]


def with_place(evidence: pd.DataFrame, tasks: pd.DataFrame, run: str) -> pd.DataFrame:
    """The evidence of a run; where it is older than `iv_place` and its references, they come from the run's tasks."""
    if "iv_place" in set(evidence["name"]):
        return evidence
    last = tasks[(tasks["run"] == run) & (tasks["step"] == tasks.loc[tasks["run"] == run, "step"].max())]
    rows = []
    for row in last.to_dict("records"):
        cosine, other, same = row["iv_cosine_fixed"], row["between_max"], row["split_half"]
        found = {"nearest_other": other, "split_half": same, "iv_place": iv_place(cosine, other, same)}
        rows += [{"name": name, "task": row["task"], "value": value} for name, value in found.items()]
    return pd.concat([evidence, pd.DataFrame(rows)], ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "pilot", "show"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--orders", default="0,1,2")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--regime", choices=REGIMES, default="short")
    parser.add_argument("--lr", type=float, help="another learning rate for the pilot")
    parser.add_argument("--cells", type=int, help="stop after so many new cells")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md, and cells into study.parquet")
    given = parser.parse_args()
    if given.what != "show" and given.out is None:
        parser.error("--out is missing: the folder that keeps cells")
    if given.what == "pilot" and not REGIMES[given.regime].is_real:
        parser.error("--regime is of the built-in model, expected one of a real model, such as few")
    if given.what == "run":
        run(given.out, [int(n) for n in given.orders.split(",")], range(given.seeds), given.cells, given.regime)
        return
    if given.what == "pilot":
        pilot(given.out, given.regime, given.lr)
        return
    more = [] if given.out is None else [committed(given.out) if given.out.is_file() else kept(given.out)]
    cells = together([committed(), *filter(None, more)])
    print(show(cells))
    if given.write:
        write_section("study", show(cells))
        in_one_file(cells, HERE / "study.parquet")


if __name__ == "__main__":
    main()
