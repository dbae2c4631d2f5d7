"""`predictors`: how well vectors predict performance during tuning, beside predictors that know nothing of vectors."""

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
    """The share of the variance of performance (R²) that each predictor explains on tasks it was not fitted on.

    `R² = 1 - Σ (y - ŷ)² / Σ (y - ȳ)²`, where `ŷ` comes from a straight line in one predictor, fitted on all other
    groups; see docs/method.md, section 8 Vectors along a training. R² is below 0 where the line predicts worse than the
    mean of all points. The rivals `step` and `distance` (`‖ΔW‖ / ‖W_0‖`) know nothing of vectors.

    Args:
        tasks: `Dynamics.tasks` of one or several trainings; best without the first model, whose cosine is always 1.
        outcome: The measure of performance: `prob`, `accuracy` or `logprob`.
        leave_out: Column by which points are grouped, to leave out one group after the other: `task`, or a column that
            names trainings.
        names: Columns that are tried as predictors.

    Returns:
        One row for each predictor: `predictor`, `r2` with the 95 % t interval `r2_lo` to `r2_hi` over groups,
        `interval` (its kind; descriptive with fewer than six groups), `r2_in_sample` (fitted on all points), `n`
        points. Points without a value of the predictor (a checkpoint whose step is not known) are left out; with fewer
        than two groups left the values are NaN.

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
    """The row of one predictor."""
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
    """Predictions for every point, from the line through the points of all other groups."""
    found = np.empty_like(y)
    for one in set(group):
        left = group == one
        found[left] = _line(x[~left], y[~left], x[left])
    return found


def _line(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The least-squares line through `x` and `y`, at other points."""
    spread = ((x - x.mean()) ** 2).sum()
    # a predictor with one value says nothing: the flat line through the mean
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread if spread > 0 else 0.0
    return y.mean() + slope * (at - x.mean())


def _share(error: np.ndarray, spread: np.ndarray) -> float:
    """R² from squared errors and squared distances from the mean; NaN where performance never varies."""
    return float(1 - error.sum() / spread.sum()) if spread.sum() > 0 else float("nan")


def _interval(error: np.ndarray, spread: np.ndarray, group: np.ndarray) -> tuple[float, float]:
    """A t interval of R² over groups; R² is a ratio of sums over groups, and the ratio is linearised."""
    names = sorted(set(group))
    share = _share(error, spread)
    off = np.array([error[group == one].sum() - (1 - share) * spread[group == one].sum() for one in names])
    reach = t_reach(len(names)) * off.std(ddof=1) * len(names) ** 0.5 / max(spread.sum(), 1e-30)
    return share - reach, share + reach
