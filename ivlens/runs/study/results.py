"""What a study found: tables, the evidence for every claim, and the files that hold them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ivlens.analysis.dynamics.causal import CausalTest
from ivlens.analysis.dynamics.comparison import Dynamics
from ivlens.analysis.forgetting.drops import log_odds
from ivlens.common.names import path_of
from ivlens.common.saves import filling
from ivlens.common.store.store import KEPT, MARK, Store
from ivlens.models.fingerprint import ModelIdentity
from ivlens.prompts.recipe import plain_options
from ivlens.runs.study.plan import PLAIN, StudyOptions

TABLES = ("evidence", "forgetting", "probes", "causal", "predictors", "new_scores")


@dataclass(frozen=True, eq=False)
class StudyResult:
    """What a study found.

    Attributes:
        dynamics: Vectors, heads and performance along the training without guidance, on *select*.
        probes: Instruction and knowledge probability of every test example: `run` is `before` or a kind of guidance.
        forgetting: `decomposition` of before and after the training without guidance.
        causal: One row for each test, task and condition, on *test*.
        predictors: What predicts performance along the training, one task left out in turn.
        new_scores: Accuracy on each new task after each kind of guidance, on *test*.
        evidence: One value for each claim's quantity and earlier task: `name`, `task`, `value`.
        seconds: Wall time.
    """

    options: StudyOptions
    model: ModelIdentity
    dynamics: Dynamics
    probes: pd.DataFrame
    forgetting: pd.DataFrame
    causal: pd.DataFrame
    predictors: pd.DataFrame
    new_scores: pd.DataFrame
    evidence: pd.DataFrame
    seconds: float

    def about(self) -> dict[str, Any]:
        """Model, options and time, as plain values."""
        return {"model": asdict(self.model), "options": plain_options(self.options), "seconds": round(self.seconds, 1)}


def evidence(
    dynamics: Dynamics,
    probes: Mapping[str, pd.DataFrame],
    tests: Sequence[CausalTest],
    guidance: Sequence[str],
) -> pd.DataFrame:
    """For each quantity that a claim is about, its mean over prompts for every earlier task.

    - `instruction_drop`, `knowledge_drop` (of `seq_prob`), `excess` (log-odds, nats);
    - `iv_cosine`, `accuracy_drop`: at the end of the training, on *select*;
    - `<test>_baseline`, `<test>_iv`, `<test>_control`, `<test>_best_draw`, `<test>_clean`: accuracies on *test*;
      `<test>_lead`: of the IV over the strongest kind of control; `reinjection_own_lead`: over the tuned model's own;
    - `kept_<guidance>`: log-odds of the instruction probability less those after training without guidance;
      `instruction_<guidance>`: the probability.
    """
    rows: list[dict[str, Any]] = []

    def add(name: str, task: str, values: Any) -> None:
        rows.append({"name": name, "task": task, "value": float(np.mean(values))})

    after = {name: _by_task(table) for name, table in probes.items()}
    for task, kinds in after["before"].items():
        lost = {kind: (before, after[PLAIN][task][kind]) for kind, before in kinds.items()}
        for kind, (before, now) in lost.items():
            add(f"{kind}_drop", task, before - now)
        if len(lost) == 2:
            (one, other) = (log_odds(lost[kind][0]) - log_odds(lost[kind][1]) for kind in ("instruction", "knowledge"))
            add("excess", task, one - other)
        for name in guidance:
            add(f"instruction_{name}", task, after[name][task]["instruction"])
            plain = log_odds(after[PLAIN][task]["instruction"])
            add(f"kept_{name}", task, log_odds(after[name][task]["instruction"]) - plain)
    first, last = dynamics.stages[0], dynamics.stages[-1]
    for row in dynamics.tasks.to_dict("records"):
        if row["checkpoint"] == last.name:
            add("iv_cosine", row["task"], row["iv_cosine_fixed"])
            add("accuracy_drop", row["task"], float(first.tasks[row["task"]].accuracy.mean()) - row["accuracy"])
    for test in tests:
        for what in ("clean", "baseline", "iv", "control", "best_draw"):
            add(f"{test.test}_{what}", test.task, test.accuracy(what))
        add(f"{test.test}_lead", test.task, test.accuracy("iv") - test.accuracy("control"))
        if "own" in test.conditions:
            add(f"{test.test}_own_lead", test.task, test.accuracy("iv") - test.accuracy("own"))
    return pd.DataFrame(rows)


def _by_task(table: pd.DataFrame) -> dict[str, dict[str, np.ndarray]]:
    """`seq_prob` of every example, by task and kind; examples are in one order in all tables."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in table.to_dict("records"):
        found.setdefault(row["task"], {}).setdefault(row["kind"], []).append(row["seq_prob"])
    return {task: {kind: np.array(values) for kind, values in kinds.items()} for task, kinds in found.items()}


def write_study(result: StudyResult, folder: str | Path, *, also: Callable[[Path], object] | None = None) -> list[Path]:
    """Write all tables as parquet, and the first and last stage as safetensors; the paths.

    What `run_study` kept in the folder for going on is removed.

    Args:
        also: Called with the folder that is being filled, to add files of its own (the page).

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
    if (root / KEPT / MARK).is_file():
        Store(root / KEPT).clear()
    return [root / file for file in files]
