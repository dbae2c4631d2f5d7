"""Measures what the pocket model can do, and compares it with the targets it was built for (`ivlens pocket card`).

The model has seen the inputs of every split in training, because a fact has to be seen to be known. So the splits do
not separate training from testing: `fit` and `select` choose heads, means and settings, and `test` judges them.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import pandas as pd

from ivlens.common.intervals import wilson
from ivlens.common.progress import showing_progress, ticking
from ivlens.common.version import __version__
from ivlens.effects.measure import head_effects
from ivlens.forward.scoring import greedy_correct
from ivlens.models.boot import TransformerBridge
from ivlens.models.fingerprint import model_identity
from ivlens.models.load import load_model
from ivlens.pocket.corpus import RULES, bank_hash, unseen_rule_words
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.build import build_prompts
from ivlens.prompts.recipe import TASK, PromptRecipe
from ivlens.prompts.templates import PromptTemplate
from ivlens.steering.evaluate import JudgeOptions, evaluate_intervention
from ivlens.tasks.bank import load_bank
from ivlens.tasks.task import Task, TaskExample, split_of
from ivlens.vectors.vector import InstructionVector

Split = Literal["select", "test"]
SHARED = "words"  # the group of inputs that many tasks share, so that only the instruction decides
# 19 random draws are the fewest with which p can reach 0.05, see docs/method.md, 6 Intervention and its controls
N_HEADS, N_DRAWS = 10, 19


@dataclass(frozen=True)
class Bar:
    """One measure's title and target: reach `at_least`, do not exceed `at_most`; with neither it is only reported."""

    title: str
    at_least: float | None = None
    at_most: float | None = None

    def verdict(self, value: float) -> str:
        """`holds` or `FAILED`; an empty text where there is no target."""
        if self.at_least is not None:
            return "holds" if value >= self.at_least else "FAILED"
        if self.at_most is not None:
            return "holds" if value <= self.at_most else "FAILED"
        return ""

    def text(self) -> str:
        """The target as a table cell."""
        if self.at_least is not None:
            return f"≥ {self.at_least:.2f}"
        return f"≤ {self.at_most:.2f}" if self.at_most is not None else ""


BARS = {
    "seen_instructions": Bar("accuracy, seen instructions", at_least=0.99),
    "held_out_instructions": Bar("accuracy, held-out paraphrases", at_least=0.80),
    "few_shot": Bar("accuracy, 3-shot without instruction", at_least=0.90),
    "cloze": Bar("cloze accuracy (knowledge)", at_least=0.98),
    "unseen_rule_inputs": Bar("rules on words that no rule prompt contained"),
    "bare": Bar("shared-input tasks: accuracy with no instruction", at_most=0.20),
    "iv": Bar("the same, with the task's IV added", at_least=0.90),
    "iv_worst": Bar("the same, worst task", at_least=0.60),
    "random": Bar("the same, with random vectors of equal norm", at_most=0.20),
    "other_tasks": Bar("the same, with other tasks' IVs"),
    "random_heads": Bar(f"the same, with the vectors of {N_HEADS} random heads"),
    "constant": Bar("the same, best constant answer"),
}


@dataclass(frozen=True, eq=False)
class Card:
    """What was measured of a pocket model.

    Attributes:
        measures: one row for each entry of `BARS`: name, title, value (accuracy), low and high (95 % interval), exact
            (the share of answers after which the text ends), bar (the target), verdict.
        tasks: accuracy of every task under every condition that needs no vector.
        interventions: every shared-input task with its vector and under every control, each with its chosen setting.
        about: model, bank, split, seed and versions of the measurement.
    """

    measures: pd.DataFrame
    tasks: pd.DataFrame
    interventions: pd.DataFrame
    about: Mapping[str, Any]


def measure_card(
    model: str | TransformerBridge = "pocket", *, split: Split = "test", seed: int = 0, progress: bool = False
) -> Card:
    """Measure a pocket model on the inputs of `split`; takes a few minutes.

    Layers, strengths and sites are always searched on `select`. With `split="select"` they are judged on the same
    inputs: good enough to compare two designs of the model, but too good to be reported.
    """
    with showing_progress(progress):
        return _measured(load_model(model) if isinstance(model, str) else model, split, seed)


def _measured(bridge: TransformerBridge, split: Split, seed: int) -> Card:
    """What `measure_card` does, with an open model and without its progress bars."""
    bank = load_bank()
    tasks = [task for task in bank.values() if task.in_training]  # the others are for fine-tuning: it never saw them
    judged = pd.concat(
        [_judge_task(bridge, bank, task, split, seed) for task in ticking(tasks, "tasks", "tasks")],
        ignore_index=True,
    )
    shared = [task for task in tasks if task.inputs == SHARED]
    interventions = _interventions(bridge, shared, split, seed)
    return Card(
        measures=_measures(judged, interventions),
        tasks=_task_table(judged),
        interventions=interventions,
        about=_about(bridge, split, seed),
    )


def _judge_task(
    bridge: TransformerBridge, bank: Mapping[str, Task], task: Task, split: Split, seed: int
) -> pd.DataFrame:
    """One row per prompt: task, group, condition, input, correct, exact."""
    rows = []
    for condition, batch in _prompts(bridge.tokenizer, bank, task, split, seed):
        inputs = [example.input for example in batch.examples]
        correct, exact = (found.float().tolist() for found in greedy_correct(bridge, batch))
        rows += [(task.name, task.inputs, condition, *row) for row in zip(inputs, correct, exact, strict=True)]
    return pd.DataFrame(rows, columns=["task", "group", "condition", "input", "correct", "exact"])


def _prompts(
    tokenizer: Any, bank: Mapping[str, Task], task: Task, split: Split, seed: int
) -> list[tuple[str, PromptBatch]]:
    """The prompts of one task under every condition without a vector, each batch with its condition's name."""
    examples = task.split(split, seed)
    batches = []
    for template in ("plain", "after"):  # the model was trained on both orders of instruction and input
        ways = (("seen_instructions", TASK), ("held_out_instructions", task.held_out_instructions))
        for condition, instruction in ways:
            recipe = PromptRecipe(template, instruction, seed=seed)
            batches.append((condition, build_prompts(tokenizer, task, examples, recipe)))
    shots = PromptRecipe(instruction=None, n_shots=3, seed=seed)
    batches.append(("few_shot", build_prompts(tokenizer, task, examples, shots)))
    batches += [("cloze", batch) for batch in _clozes(tokenizer, task, examples)]
    if task.inputs == SHARED:
        recipe = PromptRecipe(seed=seed)
        batches.append(("bare", build_prompts(tokenizer, task, examples, recipe, corruption="drop")))
    # The training prose spells out these words, because the model cannot know their letters otherwise. That gives
    # away the answers of `spell`, so this rule is left out.
    if task.name in RULES and task.name != "spell":
        words = [word for word in unseen_rule_words(bank)[1] if split_of(word, seed) == split]
        unseen = [TaskExample(word, (RULES[task.name](word),)) for word in words]
        batches.append(("unseen_rule_inputs", build_prompts(tokenizer, task, unseen, PromptRecipe(seed=seed))))
    return batches


def _clozes(tokenizer: Any, task: Task, examples: Sequence[TaskExample]) -> list[PromptBatch]:
    """One batch for each of the task's clozes; every example is asked by one cloze."""
    batches = []
    for i, cloze in enumerate(task.clozes):
        beginning = cloze.replace("{x}", "{input}")
        template = PromptTemplate("cloze", instructed=f"{{instruction}} {beginning}", bare=beginning)
        share = examples[i :: len(task.clozes)]
        if share:
            batches.append(build_prompts(tokenizer, task, share, PromptRecipe(template, instruction=None, n_shots=0)))
    return batches


def _interventions(bridge: TransformerBridge, tasks: Sequence[Task], split: Split, seed: int) -> pd.DataFrame:
    """Judge the vector of each task in `tasks` beside its controls; one table for all."""
    vectors: dict[str, InstructionVector] = {}
    for task in ticking(tasks, "vectors", "tasks"):
        effects = head_effects(bridge, task, recipe=PromptRecipe(seed=seed))
        vectors[task.name] = InstructionVector.from_effects(effects, k=N_HEADS)
    frames = []
    for task in ticking(tasks, "interventions", "tasks"):
        others = [vector for name, vector in vectors.items() if name != task.name]
        options = JudgeOptions(split=split, seed=seed, other_vectors=others)
        frame = evaluate_intervention(bridge, task, vectors[task.name], n_draws=N_DRAWS, options=options).table
        frame.insert(0, "task", task.name)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _measures(judged: pd.DataFrame, interventions: pd.DataFrame) -> pd.DataFrame:
    """The table `Card.measures`: one row for each entry of `BARS`."""
    table = []
    prompts = {str(name): rows for name, rows in judged.groupby("condition")}
    vectors = {str(name): rows for name, rows in interventions.groupby("condition")}
    for name, bar in BARS.items():
        if name in prompts:
            value, low, high = mean_over_tasks(prompts[name])
            exact = mean_over_tasks(prompts[name].assign(correct=prompts[name]["exact"]))[0]
        else:
            found = vectors[name.removesuffix("_worst")]
            found = found.nsmallest(1 if name == "iv_worst" else len(found), ["accuracy"])
            (value, low, high), exact = _mean_of_rows(found), float(found["exact"].to_numpy(float).mean())
        entry = {"name": name, "title": bar.title, "value": value, "low": low, "high": high, "exact": exact}
        table.append(entry | {"bar": bar.text(), "verdict": bar.verdict(value)})
    return pd.DataFrame(table)


def mean_over_tasks(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Mean accuracy over tasks, with the ends of Wilson's 95 % interval over distinct inputs.

    All answers to one input count as one observation, because they are not independent. The number of inputs in the
    interval is an effective one: a plain mean over so many inputs varies as much as this mean does.
    """
    total, n_tasks, variance = 0.0, len(set(rows["task"])), 0.0
    for _, group in rows.groupby("group"):
        table = group.pivot_table(index="input", columns="task", values="correct", aggfunc="mean")
        total += float(table.to_numpy(float).mean(0).sum())
        # a group's mean varies as 1 / (its inputs), and enters the whole mean with its share of the tasks
        variance += (table.shape[1] / n_tasks) ** 2 / len(table)
    mean, n_inputs = total / n_tasks, max(1, int(1 / variance + 1e-9))  # 1 / (1 / 49) is a little below 49
    return mean, *wilson(min(mean, 1.0) * n_inputs, n_inputs)


def _mean_of_rows(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Mean accuracy and mean interval ends of several rows.

    The tasks share their inputs, so that their errors do not average out: the interval of the mean is not narrower.
    """
    accuracy, low, high = rows[["accuracy", "accuracy_lo", "accuracy_hi"]].to_numpy(float).mean(0).tolist()
    return accuracy, low, high


def _task_table(judged: pd.DataFrame) -> pd.DataFrame:
    """The table `Card.tasks`: one row for each task, one column for each condition."""
    wide = judged.pivot_table(index="task", columns="condition", values="correct", aggfunc="mean")
    return wide.reindex(columns=[name for name in BARS if name in wide.columns]).reset_index()


def _about(bridge: TransformerBridge, split: Split, seed: int) -> dict[str, Any]:
    """The facts about model and measurement in `Card.about`."""
    identity = model_identity(bridge)
    packages = ("torch", "transformers", "transformer-lens")
    return {
        "weights_hash": identity.weights_hash,
        "shape": f"{identity.n_layers} layers, {identity.n_heads} heads, d_model {identity.d_model}, "
        f"d_vocab {identity.d_vocab}",
        "bank_hash": bank_hash(load_bank()),
        "split": split,
        "seed": seed,
        "heads_per_vector": N_HEADS,
        "random_draws": N_DRAWS,
        "versions": {"ivlens": __version__, "python": platform.python_version()}
        | {package: version(package) for package in packages},
    }
