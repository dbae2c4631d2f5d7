"""Metrics of forgetting over a sequence of tasks, their intervals, and verdicts on claims about them.

Scores are shares from 0 to 1. Intervals are over runs; a run is one order of tasks with one seed. They are not over
examples: all examples of a run share its training, and do not vary independently.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from ivlens.common.intervals import LEVEL, t_interval
from ivlens.tasks.formats.records import wrong

# a share far below one example of any test set: rounding shall not decide where an interval ends exactly on the margin
_ROUNDING = 1e-12

Answer = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True)
class SequenceMetrics:
    """Metrics of one run through a sequence of tasks; see `sequence_metrics` for the formulas.

    Attributes:
        ap: Mean over tasks of the score right after the task was learned.
        fp: Mean over the same tasks of the score after the last task.
        forget: `ap - fp`: positive where scores were lost.
        bwt: Mean over all tasks but the last of the change after they were learned: negative where scores were lost.
            NaN for a single task.
        gp: Mean zero-shot score on general tasks after the last task; None where not measured.
        gp_change: `gp` minus the same mean before training.
        ip: Mean few-shot (in-context) score on general tasks after the last task; None where not measured.
        ip_change: `ip` minus the same mean before training.
    """

    ap: float
    fp: float
    forget: float
    bwt: float
    gp: float | None = None
    gp_change: float | None = None
    ip: float | None = None
    ip_change: float | None = None


class Interval(NamedTuple):
    """A mean with its t interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds, with the numbers that decide it.

    Attributes:
        claim: The claim, in words.
        estimate: Mean over runs of a difference; the claim is that this mean is at most `margin`.
        low: Lower end of the 95 % interval of the mean.
        high: Upper end of that interval.
        margin: The largest mean for which the claim holds.
        verdict: `holds` (the whole interval is at most the margin), `does not hold` (all of it is above) or
            `undecided`.
        n_runs: Number of pairs of runs.
    """

    claim: str
    estimate: float
    low: float
    high: float
    margin: float
    verdict: Answer
    n_runs: int


def sequence_metrics(
    scores: Float[np.ndarray, "n_trained n_tasks"],
    *,
    gp: Float[np.ndarray, "gp_stages gp_tasks"] | None = None,
    ip: Float[np.ndarray, "ip_stages ip_tasks"] | None = None,
) -> SequenceMetrics:
    """AP, FP, Forget and BWT of a matrix of scores, and GP and IP with their changes.

    See docs/method.md, 10 Sequences of tasks.

    With `a[i, j]` the score on task `j` after training task `i`, and `n` tasks trained::

        AP     = mean over j < n of a[j, j]          FP  = mean over j < n of a[n-1, j]
        Forget = AP - FP                             BWT = mean over j < n-1 of a[n-1, j] - a[j, j]

    Forget and BWT differ by a factor: `Forget = -BWT · (n - 1) / n`. Forget is a mean over all n tasks, BWT over the
    n - 1 tasks that can change: the last one has just been learned.

    Args:
        scores: The matrix `a`. Columns from n on (tasks not trained yet) are ignored. Above the diagonal NaN is
            allowed, for scores that were not measured.
        gp: Zero-shot scores on general tasks, which are never trained: the first row before training, the last row
            after the last task. Rows between them are not read.
        ip: Scores on the same tasks with demonstrations in the prompt, in the same form.

    Raises:
        ValueError: there are no tasks, or fewer columns than rows; NaN on or below the diagonal; scores outside of 0 to
            1; `gp` or `ip` lacks the row before or the row after training.

    Source:
        Lopez-Paz and Ranzato (2017) for BWT; AP, FP, Forget, GP and IP as in the paper on function vectors in
        continual learning.
    """
    learned = _checked_scores(np.asarray(scores, dtype=float))
    own, last = learned.diagonal(), learned[-1]
    ap, fp = float(own.mean()), float(last.mean())
    bwt = float((last - own)[:-1].mean()) if len(learned) > 1 else float("nan")
    gp_after, gp_change = _change("gp", gp)
    ip_after, ip_change = _change("ip", ip)
    return SequenceMetrics(ap, fp, ap - fp, bwt, gp_after, gp_change, ip_after, ip_change)


def paired_interval(
    values_a: Float[np.ndarray, " runs"], values_b: Float[np.ndarray, " runs"], *, level: float = LEVEL
) -> Interval:
    """Mean of `a - b` over paired runs, with its t interval over runs.

    One run says nothing about how runs differ, so its interval is from minus to plus infinity. An interval of two to
    five runs only describes these runs (`ivlens.common.intervals.named_of`).

    Raises:
        ValueError: there are no runs, or more of one kind than of the other; a value is not finite; the level is not
            between 0 and 1.
    """
    a, b = np.asarray(values_a, dtype=float), np.asarray(values_b, dtype=float)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        got = f"have the shapes {a.shape} and {b.shape}"
        raise wrong("values_a and values_b", got, "one value for each run, run for run", "pair them by order and seed")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise wrong("values_a and values_b", "hold values that are not finite", "numbers", "leave the pair out")
    if not 0 < level < 1:
        raise wrong("level", f"is {level}", "a share between 0 and 1", "use 0.95")
    return _interval(a - b, level)


def verdict(interval: Interval, margin: float) -> Answer:
    """Whether a difference is at most `margin`: decided if its interval ends there or below, or begins above."""
    if interval.high <= margin + _ROUNDING:
        return "holds"
    return "does not hold" if interval.low > margin + _ROUNDING else "undecided"


def forget_verdict(
    forget_plain: Float[np.ndarray, " runs"],
    forget_guided: Float[np.ndarray, " runs"],
    *,
    halved_above: float = 0.05,
    margin: float = 0.02,
) -> Verdict:
    """Whether guidance reduces forgetting as much as it should, by a rule that was fixed before the runs.

    If plain training forgets (the mean of `forget_plain` and the lower end of its interval exceed `halved_above`),
    guidance should at least halve that: `guided - plain / 2` is at most 0. Otherwise there is little to gain, and
    guidance should do no harm: `guided - plain` is at most `margin`. The interval of this difference decides, as in
    `verdict`.

    Args:
        forget_plain: Forget of each run without guidance, as a share.
        forget_guided: Forget of the same runs (order and seed) with guidance.
        halved_above: How much plain training must forget before guidance is asked to halve it.
        margin: How much more than plain training guided training may forget, where plain training hardly forgets.

    Raises:
        ValueError: as for `paired_interval`, or a value outside of -1 to 1.
    """
    plain, guided = np.asarray(forget_plain, dtype=float), np.asarray(forget_guided, dtype=float)
    for name, values in (("forget_plain", plain), ("forget_guided", guided)):
        if (np.abs(values) > 1).any():
            raise wrong(name, f"goes up to {np.abs(values).max():g}", "shares from -1 to 1", "divide percents by 100")
    forgotten = paired_interval(plain, np.zeros_like(plain))
    if min(forgotten.estimate, forgotten.low) > halved_above:
        claim, limit = "guided training forgets at most half of what plain training forgets", 0.0
        interval = paired_interval(guided, plain / 2)
    else:
        claim, limit = f"guided training forgets at most {margin:g} more than plain training", margin
        interval = paired_interval(guided, plain)
    return Verdict(claim, *interval, margin=limit, verdict=verdict(interval, limit), n_runs=len(plain))


def _checked_scores(scores: np.ndarray) -> np.ndarray:
    """The square part of the matrix, with trained tasks alone; refused if it has gaps on or below its diagonal."""
    if scores.ndim != 2 or not len(scores) or scores.shape[1] < len(scores):
        expected = "(n_trained, n_tasks) with a column for each trained task"
        raise wrong("scores", f"has shape {scores.shape}", expected, "add the row of a task when it has been trained")
    learned = scores[:, : len(scores)]
    # row i is after training task i, so entries above the diagonal are of tasks that were not trained yet
    gaps = np.argwhere(np.tril(~np.isfinite(learned)))
    if len(gaps):
        row, column = map(int, gaps[0])
        got = f"holds {learned[row, column]} for task {column} after training task {row}"
        raise wrong("scores", got, "numbers on and below the diagonal", "measure every task learned so far")
    _check_shares("scores", scores)
    return learned


def _change(name: str, values: np.ndarray | None) -> tuple[float | None, float | None]:
    """Mean of the last row, and that mean minus the mean of the first row; None for both without values."""
    if values is None:
        return None, None
    rows = np.asarray(values, dtype=float)
    if rows.ndim != 2 or len(rows) < 2 or not rows.shape[1]:
        expected = "(stages, n_general) with a row before training and one after"
        raise wrong(name, f"has shape {rows.shape}", expected, "score the general tasks before training too")
    if not np.isfinite(rows[[0, -1]]).all():
        raise wrong(name, "has gaps in its first or last row", "a number for each general task", "score all of them")
    _check_shares(name, rows)
    before, after = float(rows[0].mean()), float(rows[-1].mean())
    return after, after - before


def _check_shares(name: str, values: np.ndarray) -> None:
    """Refuse values outside of 0 to 1; NaN passes."""
    known = values[~np.isnan(values)]
    if ((known < 0) | (known > 1)).any():
        got = f"goes from {known.min():g} to {known.max():g}"
        raise wrong(name, got, "shares from 0 to 1", "divide percents by 100")


def _interval(values: np.ndarray, level: float) -> Interval:
    """Mean and t interval of values, one for each run."""
    if len(values) == 1:
        return Interval(float(values.mean()), -float("inf"), float("inf"))
    return Interval(*t_interval(values, level))
