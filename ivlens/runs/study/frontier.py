"""What each guidance keeps at equal scores on the new task: the rule that decides the study's claims about guidance."""

from typing import Any

import numpy as np
import pandas as pd

from ivlens.runs.study.plan import CONTROL, HEADS, OTHER_HEADS, PAPER, PLAIN, REHEARSALS

LEVEL = 0.75  # of the best score on the new task that training without guidance has at a judged step
_ROUNDING = 1e-9  # 0.75 of 0.8 is a little more than 0.6
COLUMNS = ("guidance", "task", "step", "new", "old")
# what is compared with what: the quantity in the evidence, the guidance that is judged, and what it has to beat
PAIRS = (
    ("equal", PAPER, PLAIN),
    ("equal_vector", PAPER, CONTROL),
    ("equal_heads", HEADS, OTHER_HEADS),
    *(("equal_rehearsal", rehearsal, PLAIN) for rehearsal in REHEARSALS),
)


def equal_scores(frontier: pd.DataFrame) -> pd.DataFrame:
    """For each guidance and new task, the first judged step at which it is as good on the new task as all have to be.

    All trainings on a new task are judged at the same steps. The score that all have to reach there is 0.75 of the best
    one of the training without guidance. A training that does not reach it has failed: it keeps nothing that counts.

    Args:
        frontier: A row for each judged step: `guidance`, `task` (the new one), `step`, `new` and `old`, the accuracies
            on the new task and (mean) on the earlier ones, on *select*.

    Returns:
        One row for each guidance and new task: `guidance`, `task`, `wanted` (the score to be reached), `step`, `new`,
        `old` there; the last three are NaN for a training that failed.
    """
    rows: list[dict[str, Any]] = []
    for task, own in frontier.groupby("task", sort=False):
        wanted = LEVEL * float(own.loc[own["guidance"] == PLAIN, "new"].max())
        for guidance, run in own.groupby("guidance", sort=False):
            there = [row for row in run.to_dict("records") if row["new"] >= wanted - _ROUNDING > 0]
            missed = dict.fromkeys(("step", "new", "old"), np.nan)
            found = min(there, key=lambda row: row["step"], default=missed)
            values = {name: found[name] for name in ("step", "new", "old")}
            rows.append({"guidance": guidance, "task": task, "wanted": wanted, **values})
    return pd.DataFrame(rows, columns=["guidance", "task", "wanted", "step", "new", "old"])


def equal_evidence(frontier: pd.DataFrame) -> pd.DataFrame:
    """Rows of the evidence about guidance at equal scores, for every new task: `name`, `task`, `value`.

    - `old_<guidance>`: accuracy on earlier tasks where the score on the new one is first reached; 0 for a miss;
    - `reached_<guidance>`: 1 where it is reached, else 0;
    - `equal`, `equal_vector`, `equal_heads`, `equal_rehearsal`: by how much more `iv` keeps than no guidance, `iv` than
      `iv` with a zero vector, `heads` than the same guidance of random heads, and rehearsal than no guidance. Where
      what it is compared with misses, there is nothing to compare, and no row.
    """
    rows = []
    for task, own in equal_scores(frontier).groupby("task", sort=False):
        found = {str(row["guidance"]): float(row["old"]) for row in own.to_dict("records")}
        for guidance, old in found.items():
            rows.append({"name": f"old_{guidance}", "task": task, "value": float(np.nan_to_num(old))})
            rows.append({"name": f"reached_{guidance}", "task": task, "value": float(old == old)})
        done = set[str]()  # of several kinds of rehearsal the first one counts
        for name, judged, beside in PAIRS:
            if name in done or judged not in found:
                continue
            done.add(name)
            if {judged, beside} <= found.keys() and found[beside] == found[beside]:
                lead = float(np.nan_to_num(found[judged])) - found[beside]
                rows.append({"name": name, "task": task, "value": lead})
    return pd.DataFrame(rows, columns=["name", "task", "value"])
