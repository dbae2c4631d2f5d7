"""The rows of a table of the harness' tasks with and without a vector."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ivlens.common.intervals import clustered_difference
from ivlens.steering.summary import paired

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["task", "metric", "n", "plain", "steered", "difference", "difference_lo", "difference_hi"]


def rows_of(plain: Mapping[str, Any], steered: Mapping[str, Any]) -> "pd.DataFrame":
    """A row for each task and metric, from the results of two runs on the same documents."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for task, before in plain["results"].items():
        after = steered["results"].get(task, {})
        for key, value in before.items():
            metric, _, filtered = key.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, int | float) or key not in after:
                continue
            if not filtered:  # facts about the run, such as the number of documents
                continue
            scores = [_scores(results, task, metric, filtered) for results in (plain, steered)]
            difference = float(after[key]) - float(value)
            low, high = _interval(scores[0], scores[1], difference)
            name = metric if filtered == "none" else f"{metric} ({filtered})"
            rows.append(
                {
                    "task": task,
                    "metric": name,
                    "n": plain.get("n-samples", {}).get(task, {}).get("effective"),
                    "plain": float(value),
                    "steered": float(after[key]),
                    "difference": difference,
                    "difference_lo": low,
                    "difference_hi": high,
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS).astype({"n": "Int64"})


def _scores(results: Mapping[str, Any], task: str, metric: str, filtered: str) -> dict[Any, float]:
    """The score of each document; empty where a document has no score of its own, such as in groups of tasks."""
    found: dict[Any, float] = {}
    for one in results.get("samples", {}).get(task, []):
        value = one.get(metric)
        if one.get("filter", "none") == filtered and isinstance(value, int | float):
            found[one["doc_id"]] = float(value)
    return found


def _interval(plain: dict[Any, float], steered: dict[Any, float], difference: float) -> tuple[float, float]:
    """The ends of the paired interval; NaN where the metric is no mean over documents."""
    nothing = float("nan"), float("nan")
    if len(plain) < 2 or plain.keys() != steered.keys():
        return nothing
    own, other = (torch.tensor([scores[doc] for doc in plain]) for scores in (steered, plain))
    if abs(float((own - other).double().mean()) - difference) > 1e-6:
        return nothing
    if bool(((own >= 0) & (own <= 1) & (other >= 0) & (other <= 1)).all()):
        return paired(own[None], other[None])[1:]
    names = [str(doc) for doc in plain]
    return clustered_difference(own.double().numpy(), other.double().numpy(), names)[1:]
