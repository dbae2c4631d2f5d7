"""What predicts performance during tuning: vectors, or just how far the training has gone?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ivlens.common.checks import as_items
from ivlens.common.intervals import named_of, t_reach

if TYPE_CHECKING:
    import pandas as pd

PREDICTORS = ("activation_cosine", "iv_cosine_fixed", "iv_cosine_rechosen", "step", "distance")


def predictors(
    tasks: "pd.DataFrame", *, outcome: str = "prob", leave_out: str = "task", names: str | Sequence[str] = PREDICTORS,
) -> "pd.DataFrame":  # fmt: skip
    """Share of the variance of performance that a straight line in one predictor explains where it was not fitted.

    `R² = 1 - Σ (y - ŷ)² / Σ (y - ȳ)²`, `ŷ` from a line through all points whose `leave_out` is another one: below 0
    where the line predicts worse than the mean of all points. `step` and `distance` (`‖ΔW‖ / ‖W_0‖`) are the rivals
    that know nothing of vectors.

    Args:
        tasks: `Dynamics.tasks` of one or several trainings, best without the first model, which is at cosine 1 by
            construction.
        outcome: `prob`, `accuracy` or `logprob`.
        leave_out: Column that says what is left out in turn: `task`, or that of a training.

    Returns:
        One row for each predictor: `predictor`, `r2`, `r2_lo`, `r2_hi` (95 % t, over what is left out in turn),
        `interval` (its kind: descriptive below six of these), `r2_in_sample`, `n` points. Points at which a predictor
        is not known (a checkpoint without a step) are no points of its line; NaN where fewer than two values of
        `leave_out` have any.

    Raises:
        ValueError: fewer than two values of `leave_out`.
    """
    import pandas as pd

    if len(set(tasks[leave_out].astype(str))) < 2:
        raise ValueError(f"predictors got one value of {leave_out!r}, expected two or more, to leave one out in turn.")
    return pd.DataFrame(
        [{"predictor": name, **_explained(tasks, name, outcome, leave_out)} for name in as_items("names", names)]
    )


def _explained(tasks: "pd.DataFrame", name: str, outcome: str, leave_out: str) -> dict[str, Any]:
    known = tasks.dropna(subset=[name, outcome])
    group = known[leave_out].astype(str).to_numpy()
    if len(set(group)) < 2:
        nothing = dict.fromkeys(("r2", "r2_lo", "r2_hi", "r2_in_sample"), float("nan"))
        return nothing | {"interval": "", "n": len(known)}
    x, y = known[name].to_numpy(float), known[outcome].to_numpy(float)
    error = (y - _held_out(x, y, group)) ** 2
    inside = (y - _line(x, y, x)) ** 2
    spread = (y - y.mean()) ** 2
    low, high = _interval(error, spread, group)
    return {
        "r2": _share(error, spread), "r2_lo": low, "r2_hi": high,
        "interval": named_of(len(set(group))), "r2_in_sample": _share(inside, spread), "n": len(y),
    }  # fmt: skip


def _held_out(x: np.ndarray, y: np.ndarray, group: np.ndarray) -> np.ndarray:
    found = np.empty_like(y)
    for one in set(group):
        left = group == one
        found[left] = _line(x[~left], y[~left], x[left])
    return found


def _line(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    spread = ((x - x.mean()) ** 2).sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread if spread > 0 else 0.0
    return y.mean() + slope * (at - x.mean())


def _share(error: np.ndarray, spread: np.ndarray) -> float:
    return float(1 - error.sum() / spread.sum()) if spread.sum() > 0 else float("nan")


def _interval(error: np.ndarray, spread: np.ndarray, group: np.ndarray) -> tuple[float, float]:
    """t over groups: R² is a ratio of sums, so what counts is how far each group is off the common ratio."""
    names = sorted(set(group))
    share = _share(error, spread)
    off = np.array([error[group == one].sum() - (1 - share) * spread[group == one].sum() for one in names])
    reach = t_reach(len(names)) * off.std(ddof=1) * len(names) ** 0.5 / max(spread.sum(), 1e-30)
    return share - reach, share + reach
