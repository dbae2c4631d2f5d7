"""The result of a study: its tables, the evidence for every claim, and how all of it is written."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pandas as pd

from ivlens.analysis.dynamics.comparison import Dynamics
from ivlens.analysis.forgetting.answers import SAID, shares_said
from ivlens.analysis.forgetting.drops import log_odds
from ivlens.common.names import path_of
from ivlens.common.saves import filling
from ivlens.common.store.keys import canonical, content_key, versions
from ivlens.common.store.store import KEPT, MARK, Store
from ivlens.models.fingerprint import ModelIdentity
from ivlens.prompts.recipe import plain_options
from ivlens.runs.study.plan import PLAIN, StudyOptions

TABLES = (
    "evidence", "forgetting", "probes", "answers", "general", "causal", "transplants", "splices", "predictors",
    "new_scores", "frontier",
)  # fmt: skip
MADE = ("answers", "general", "causal", "transplant", "splice")  # kinds in a store of a study's tables, beside `probe`


@dataclass(frozen=True, eq=False)
class StudyResult:
    """The result of a study.

    Attributes:
        options: The options of the study.
        model: The identity of the model before training.
        dynamics: Vectors, heads and performance during the training without guidance, on *select*.
        probes: Instruction and knowledge probability of every test example; the column `run` is `before` or a kind of
            guidance.
        forgetting: `decomposition` of the model before and after the training without guidance.
        answers: What the model says to every test example (`answers_said`), with the column `run` as in `probes`.
        general: `general_scores`, with the same column.
        causal: One row for each causal test, task and condition, on *test*.
        transplants, splices: The tables of `transplant` (with the heads of the first model's vectors) and of `splice`
            for every earlier task, between the model before and after the training without guidance, on *test*.
        predictors: How well step, weight distance and similarities predict performance during training; each task is
            predicted from the others.
        new_scores: Accuracy on each new task after training with each kind of guidance, on *test*.
        frontier: Accuracy on the new task and, as a mean, on the earlier ones, at every judged step of each training,
            on *select*; see `equal_scores`.
        evidence: One number for each quantity and earlier task: `name`, `task`, `value`; see `evidence`. At equal
            scores the task is the new one.
        seconds: Wall time.
    """

    options: StudyOptions
    model: ModelIdentity
    dynamics: Dynamics
    probes: pd.DataFrame
    forgetting: pd.DataFrame
    answers: pd.DataFrame
    general: pd.DataFrame
    causal: pd.DataFrame
    transplants: pd.DataFrame
    splices: pd.DataFrame
    predictors: pd.DataFrame
    new_scores: pd.DataFrame
    frontier: pd.DataFrame
    evidence: pd.DataFrame
    seconds: float

    def about(self) -> dict[str, Any]:
        """Model, options and time, as plain values for JSON."""
        return {"model": asdict(self.model), "options": plain_options(self.options), "seconds": round(self.seconds, 1)}


def study_facts(model: ModelIdentity, options: StudyOptions) -> dict[str, Any]:
    """Everything that a study depends on, for the keys of what a store keeps of it."""
    found = {"kind": "study", "model": model.key, "options": plain_options(options), **versions()}
    return json.loads(canonical(found))  # lists in place of tuples, as descriptions read from a store have


def training_key(study: Mapping[str, Any], guidance: str) -> str:
    """The key in a store of a study's trainings with one kind of guidance."""
    return content_key({**study, "guidance": guidance})


def label_of(study: Mapping[str, Any]) -> dict[str, str]:
    """The label by which a study finds the results in a store that were made for it alone."""
    return {"study": content_key(study)}


def _forget(store: Store, study: Mapping[str, Any]) -> None:
    """Remove what a store keeps of a study that is done, and the store if it has nothing else."""
    trainings = [(one, one.what["recording"].get("training") or {}) for one in store.entries("stage")]
    records = [one for one, training in trainings if training.get("study") == study]
    asked = [one for kind in ("probe", *MADE) for one in store.entries(kind)]
    probes = [one for one in asked if label_of(study).items() <= one.labels.items()]
    for entry in records + probes:
        store.remove(entry.key)
    for guidance in study["options"]["guidance"]:
        rmtree(store.work(training_key(study, guidance)), ignore_errors=True)
    unfinished = store.work("")
    if not (store.places() or store.failures() or (unfinished.is_dir() and any(unfinished.iterdir()))):
        store.clear()


def below(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables one below the other, each with its name in the column `run`."""
    return pd.concat([one.assign(run=name) for name, one in tables.items()], ignore_index=True)


def evidence(
    dynamics: Dynamics,
    probes: Mapping[str, pd.DataFrame],
    causal: pd.DataFrame,
    transplants: pd.DataFrame,
    answers: pd.DataFrame,
    guidance: Sequence[str],
) -> pd.DataFrame:
    """The numbers that decide the claims: each quantity as a mean over prompts, for every earlier task.

    - `instruction_drop`, `knowledge_drop`: by how much the two probabilities (`seq_prob`) fall in the training without
      guidance; `excess`: by how much more the instruction's log-odds fall, in nats.
    - `iv_cosine`, `accuracy_drop`: at the end of that training, on *select*. `nearest_other`, `split_half`: the
      references of the cosine, the largest one with another task's vector and that between two halves of the prompts;
      `iv_place`: where it lies between them, 0 at another task's vector and 1 at the same.
    - `said_<kind>`: the share of each kind of answer (`answers_said`) after that training, on *test*.
    - `<test>_baseline`, `<test>_iv`, `<test>_control`, `<test>_best_draw`, `<test>_clean`: accuracies in a causal test,
      on *test*; `<test>_lead`: accuracy with the IV minus that of the strongest kind of control;
      `reinjection_own_lead`: minus that of the tuned model's own vector.
    - `restored_<heads>`: accuracy of the tuned model with outputs of the first one's heads (`own`: none), on *test*;
      `restored_lead`: with those of the vector's heads, minus the mean over random sets of the same layers.
      `destroyed_<heads>`, `destroyed_lead`: the same into the first model, where the lead is what is lost beyond random
      heads.
    - `instruction_<guidance>`: instruction probability after training with this guidance; `kept_<guidance>`: its
      log-odds minus those after training without guidance, in nats.
    """
    rows: list[dict[str, Any]] = []

    def add(name: str, task: str, values: Any) -> None:
        rows.append({"name": name, "task": task, "value": float(np.mean(values))})

    after = {name: _by_task(table) for name, table in probes.items()}
    for task, kinds in after["before"].items():
        lost = {kind: (before, after[PLAIN][task][kind]) for kind, before in kinds.items()}
        for kind, (before, now) in lost.items():
            add(f"{kind}_drop", task, before - now)
        if len(lost) == 2:  # a task without clozes has no knowledge probability
            (one, other) = (log_odds(lost[kind][0]) - log_odds(lost[kind][1]) for kind in ("instruction", "knowledge"))
            add("excess", task, one - other)
        for name in guidance:
            add(f"instruction_{name}", task, after[name][task]["instruction"])
            plain = log_odds(after[PLAIN][task]["instruction"])
            add(f"kept_{name}", task, log_odds(after[name][task]["instruction"]) - plain)
    first, last = dynamics.stages[0], dynamics.stages[-1]
    for row in dynamics.tasks.to_dict("records"):
        if row["checkpoint"] == last.name:
            cosine, other, same = (row[name] for name in ("iv_cosine_fixed", "between_max", "split_half"))
            add("iv_cosine", row["task"], cosine)
            add("nearest_other", row["task"], other)
            add("split_half", row["task"], same)
            add("iv_place", row["task"], iv_place(cosine, other, same))
            add("accuracy_drop", row["task"], float(first.tasks[row["task"]].accuracy.mean()) - row["accuracy"])
    for task, shares in shares_said(answers).iterrows():
        for kind in SAID:
            add(f"said_{kind}", str(task), shares[kind])
    for task, tests in causal.groupby("task", sort=False):
        for test, own in tests.groupby("test", sort=False):
            found = _judged(own)
            for what in ("clean", "baseline", "iv", "control", "best_draw"):
                add(f"{test}_{what}", str(task), found[what])
            add(f"{test}_lead", str(task), found["iv"] - found["control"])
            if "own" in found:  # in re-injection alone
                add(f"{test}_own_lead", str(task), found["iv"] - found["own"])
    for task, found in _received(transplants).items():
        for name, value in found.items():
            add(name, task, value)
    return pd.DataFrame(rows)


def iv_place(cosine: float, other: float, same: float) -> float:
    """Where a cosine lies between another task's vector (0) and the same vector (1); NaN where these are as near."""
    return (cosine - other) / (same - other) if same > other else float("nan")


def _judged(test: pd.DataFrame) -> dict[str, float]:
    """Accuracies of one causal test by condition, with the strongest kind of control and its best single vector."""
    found = {row["condition"]: float(row["accuracy"]) for row in test.to_dict("records")}
    # without controls, the prompts with nothing added
    strongest, best = test.loc[test["strongest"], "accuracy"], test["best_draw"].dropna()
    for name, values in (("control", strongest), ("best_draw", best)):
        found[name] = float(values.iloc[0]) if len(values) else found["baseline"]
    return found


def _received(transplants: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The quantities of transplants for each task."""
    found: dict[str, dict[str, float]] = {}
    for row in transplants.to_dict("records"):
        what = "restored" if row["into"] == "after" else "destroyed"
        found.setdefault(row["task"], {})[f"{what}_{row['heads']}"] = row["accuracy"]
    for own in found.values():
        for what, sign in (("restored", 1), ("destroyed", -1)):
            own[f"{what}_lead"] = sign * (own[f"{what}_vector"] - own.get(f"{what}_random", float("nan")))
    return found


def _by_task(table: pd.DataFrame) -> dict[str, dict[str, np.ndarray]]:
    """`seq_prob` of every example by task and kind, in the order of the table, which is the same in all tables."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in table.to_dict("records"):
        found.setdefault(row["task"], {}).setdefault(row["kind"], []).append(row["seq_prob"])
    return {task: {kind: np.array(values) for kind, values in kinds.items()} for task, kinds in found.items()}


def write_study(result: StudyResult, folder: str | Path, *, also: Callable[[Path], object] | None = None) -> list[Path]:
    """Write all tables as parquet, and the first and last stage as safetensors; returns the paths.

    What `run_study` kept of this study in the folder's store, to go on from after an interruption, is removed, and the
    store too if nothing else is in it.

    Args:
        also: Called with a scratch folder, to add more files (the page); they are written together with the others.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    root = path_of(folder, "folder")
    with filling(root) as scratch:
        for name in TABLES:
            getattr(result, name).to_parquet(scratch / f"{name}.parquet")
        for name in ("tasks", "heads", "layers"):
            getattr(result.dynamics, name).to_parquet(scratch / f"dynamics_{name}.parquet")
        for stage in (result.dynamics.stages[0], result.dynamics.stages[-1]):
            stage.save(scratch / "stages" / f"{stage.name}.safetensors")
        if also is not None:
            also(scratch)
        files = sorted(path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file())
    # only now that the result is whole
    if (root / KEPT / MARK).is_file():
        _forget(Store(root / KEPT), study_facts(result.model, result.options))
    return [root / file for file in files]
