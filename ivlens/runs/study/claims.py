"""The claims of the paper, and the table that gives each one a number, an interval and a verdict.

Margins were fixed before anything was measured, but for that of `cosine`, which is younger than the first runs. See
docs/method.md, 9 Guided fine-tuning, for the table of claims.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ivlens.common.intervals import grouped_interval, grouped_name
from ivlens.runs.study.plan import CONTROL, HEADS, OTHER_HEADS, PAPER, PLAIN, REHEARSAL, REHEARSALS

SEEN, NOT_SEEN, UNDECIDED, NOT_TESTABLE = "seen", "not seen", "undecided", "not testable here"
LEAD = 0.05  # accuracy by which a vector must be better than the strongest kind of control
NATS = 0.5  # log-odds by which one probability must fall further, or be kept better, than another
PLACE = 0.5  # of the way from the nearest other task's vector to "the same vector"
R2 = 0.5
FORGOTTEN = 0.2  # accuracy that must be lost before claims about forgetting can be tested
# predictors that the similarity of the vector must beat
RIVALS = ("step", "distance")


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, and how it is tested.

    Attributes:
        name: A short name.
        text: The claim in words.
        paper: The number in the paper, as far as it is known.
        parts: Names of the quantities in the evidence that decide it; all of them must reach the margin.
        margin: The claim is seen if a quantity's interval lies at or above this value, not seen if it lies below, and
            undecided if it contains the value.
        unit: Unit of the number and the margin.
        beside: Names of quantities that are shown beside the number.
        needs: A quantity and the least value that it must have; otherwise the claim cannot be tested.
        command: The command that measures this claim alone, on the user's own models.
    """

    name: str
    text: str
    paper: str
    parts: tuple[str, ...]
    margin: float
    unit: str
    beside: tuple[str, ...] = ()
    needs: tuple[str, float] | None = None
    command: str = "ivlens study"


def _beside(test: str, *more: str) -> tuple[str, ...]:
    """Names of the accuracies that are shown beside the lead in a causal test."""
    return tuple(f"{test}_{what}" for what in (*more, "iv", "control", "best_draw"))


def _equal(judged: str, beside: str) -> tuple[str, ...]:
    """Names of the numbers that are shown beside a lead at equal scores."""
    return tuple(f"{what}_{name}" for name in (judged, beside) for what in ("old", "reached"))


_DYNAMICS = "ivlens dynamics CHECKPOINTS --causal"
_TUNE = "ivlens tune --guidance"
CLAIMS = (
    Claim(
        "instruction", "The instruction's probability falls more than the knowledge's.",
        "accuracy −10.24 against +1.93 points (LLaMA2-7B-Chat)", ("excess",), NATS, "nats of log-odds",
        ("instruction_drop", "knowledge_drop"), ("instruction_drop", 0.1), "ivlens forget CHECKPOINTS",
    ),
    Claim(
        "cosine", "The Instruction Vector stays nearer to itself than to other tasks' while performance falls.",
        "cosine ≈ 0.95; no references", ("iv_place",), PLACE, "of the way from another task's vector to the same",
        ("iv_cosine", "nearest_other", "split_half", "accuracy_drop"), ("accuracy_drop", FORGOTTEN),
        "ivlens dynamics CHECKPOINTS",
    ),
    Claim(
        "reinjection", "Re-injecting the first model's vector restores performance beyond its controls.",
        "0.03 → 0.47, without controls", ("reinjection_lead",), LEAD, "accuracy over the strongest kind of control",
        (*_beside("reinjection", "baseline"), "reinjection_own_lead"), ("accuracy_drop", FORGOTTEN), _DYNAMICS,
    ),
    Claim(
        "overlaid", "Overlaid, not erased: the vector is still written and read while the instructed model fails.",
        "claimed; not tested apart", ("write_lead", "read_lead"), LEAD, "accuracy over the strongest kind of control",
        (*_beside("write"), *_beside("read")), ("accuracy_drop", FORGOTTEN), _DYNAMICS,
    ),
    Claim(
        "subtraction", "Taking the new task's vector away restores performance beyond its controls.",
        "claimed; no number", ("subtraction_lead",), LEAD, "accuracy over the strongest kind of control",
        _beside("subtraction", "baseline"), ("accuracy_drop", FORGOTTEN), _DYNAMICS,
    ),
    Claim(
        "activation", "What is activated has changed, P(θ|x): the first model's heads restore the task beyond others.",
        "claimed; not tested", ("restored_lead",), LEAD, "accuracy over random heads of the same layers",
        ("restored_own", "restored_vector", "restored_random", "restored_every", "destroyed_lead"),
        ("accuracy_drop", FORGOTTEN), "ivlens transplant BEFORE AFTER",
    ),
    Claim(
        "guidance", "IV-guided training keeps the instruction's probability.",
        "+5.44 GP, +17.52 IP (points, mean of four methods)", (f"kept_{PAPER}",), NATS, "nats of log-odds over plain",
        (f"instruction_{PLAIN}", f"instruction_{PAPER}"), ("instruction_drop", 0.1), f"{_TUNE} {PAPER}",
    ),
    Claim(
        "vector", "It is the vector that keeps it: the same guidance with a zero vector keeps less.",
        "no such control", ("kept_vector",), NATS, "nats of log-odds over the zero vector",
        (f"instruction_{PAPER}", f"instruction_{CONTROL}"), ("instruction_drop", 0.1), f"{_TUNE} {CONTROL}",
    ),
    Claim(
        "rehearsal", "Rehearsing old instructions on new inputs keeps it (not in the papers).",
        "–", ("kept_rehearsal",), NATS, "nats of log-odds over plain",
        (f"instruction_{PLAIN}", "instruction_rehearsal"), ("instruction_drop", 0.1), f"{_TUNE} {REHEARSAL}",
    ),
    Claim(
        "equal", "At equal scores on the new task, IV-guided training keeps more of earlier tasks.",
        "not compared at equal scores", ("equal",), LEAD, "accuracy over plain", _equal(PAPER, PLAIN),
        ("accuracy_drop", FORGOTTEN), f"{_TUNE} {PAPER}",
    ),
    Claim(
        "equal_vector", "At equal scores, it is the vector: the same guidance with a zero vector keeps less.",
        "no such control", ("equal_vector",), LEAD, "accuracy over the zero vector", _equal(PAPER, CONTROL),
        ("accuracy_drop", FORGOTTEN), f"{_TUNE} {CONTROL}",
    ),
    Claim(
        "equal_heads", "At equal scores, holding the strongest heads keeps more than holding random ones.",
        "not compared at equal scores", ("equal_heads",), LEAD, "accuracy over random heads",
        _equal(HEADS, OTHER_HEADS), ("accuracy_drop", FORGOTTEN), f"{_TUNE} {OTHER_HEADS}",
    ),
    Claim(
        "equal_rehearsal", "At equal scores, rehearsing old instructions keeps more of earlier tasks.",
        "–", ("equal_rehearsal",), LEAD, "accuracy over plain", _equal("rehearsal", PLAIN),
        ("accuracy_drop", FORGOTTEN), f"{_TUNE} {REHEARSAL}",
    ),
)  # fmt: skip
PREDICTION = "Similarity of the activated vector predicts performance, better than step and weight distance do."
# claims that a study need not have measured, and a quantity that it has if it did
LATER = {"cosine": "iv_place", "activation": "restored_lead", "equal_heads": f"reached_{HEADS}"}
LATER |= dict.fromkeys(("equal", "equal_vector", "equal_rehearsal"), f"reached_{PLAIN}")
LARGE = "The same holds in models of 7B parameters."


def claim_table(runs: Mapping[str, pd.DataFrame], predictors: pd.DataFrame) -> pd.DataFrame:
    """A table with one row for each claim: its number with an interval, and the verdict.

    Args:
        runs: The evidence (`StudyResult.evidence`) of each run, by the run's name. With one run the interval is over
            its tasks, with several it is over runs.
        predictors: The table of `ivlens.analysis.dynamics.predictors` for all runs together.

    Returns:
        `claim`, `text`, `paper`, `value`, `low`, `high`, `interval` (its kind), `unit`, `margin`, `beside` (other
        numbers, as text), `verdict`, `why` (why a claim cannot be tested; else empty), `command`.
    """
    values = {run: _quantities(table) for run, table in runs.items()}
    # what an older study did not measure is not the same as a claim that cannot be tested
    measured = {name for found in values.values() for name in found}
    rows = [_row(claim, values) for claim in CLAIMS if claim.name not in LATER or LATER[claim.name] in measured]
    fell = grouped_interval([list(found["accuracy_drop"].values()) for found in values.values()])[0]
    # after the claims about forgetting and before those about guidance
    place = next(number for number, row in enumerate(rows) if row["claim"] == "guidance")
    too_little = {"verdict": NOT_TESTABLE, "why": _too_little("accuracy_drop", fell, FORGOTTEN)}
    rows.insert(place, _prediction(predictors) | ({} if fell >= FORGOTTEN else too_little))
    large = _plain_row("large", LARGE, "LLaMA2-7B, Llama3-8B, Mistral-7B", NOT_TESTABLE, "ivlens study --model NAME")
    rows.append(large | {"why": "it is about other models"})
    return pd.DataFrame(rows)


def _quantities(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The evidence of one run as numbers by quantity and task.

    Adds the lead of the vector over a zero vector, and the quantities of the first kind of rehearsal under one name.
    """
    found: dict[str, dict[str, float]] = {}
    for row in table.to_dict("records"):
        found.setdefault(row["name"], {})[row["task"]] = row["value"]
    if {f"kept_{PAPER}", f"kept_{CONTROL}"} <= set(found):
        with_it, without = found[f"kept_{PAPER}"], found[f"kept_{CONTROL}"]
        found["kept_vector"] = {task: with_it[task] - without[task] for task in with_it}
    rehearsal = next((name for name in REHEARSALS if f"kept_{name}" in found), None)
    for what in ("kept", "instruction", "old", "reached"):
        if f"{what}_{rehearsal}" in found:
            found[f"{what}_rehearsal"] = found[f"{what}_{rehearsal}"]
    return found


def _row(claim: Claim, values: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """The row of one claim."""

    def groups(name: str) -> list[list[float]]:
        return [list(found[name].values()) for found in values.values() if name in found]

    def interval(name: str) -> tuple[float, float, float]:
        return grouped_interval(groups(name))

    parts = {name: interval(name) for name in claim.parts}
    # the smallest part is the number of the claim, which holds only if all parts do
    weakest = min(parts, key=lambda name: parts[name][0])
    mean, low, high = parts[weakest]
    verdict, why = _verdict(list(parts.values()), claim.margin), ""
    if any(part[0] != part[0] for part in parts.values()):  # NaN: nothing was measured
        verdict, why = NOT_TESTABLE, "not measured, or not reached"
    # "not >=", so that NaN counts as too small
    if claim.needs is not None and not (has := interval(claim.needs[0])[0]) >= claim.needs[1]:
        verdict, why = NOT_TESTABLE, _too_little(claim.needs[0], has, claim.needs[1])
    shown = [*(claim.parts if len(claim.parts) > 1 else ()), *claim.beside]
    means = {name: interval(name)[0] for name in shown}
    beside = ", ".join(f"{name.replace('_', ' ')} {_two(value)}" for name, value in means.items() if value == value)
    return {
        "claim": claim.name, "text": claim.text, "paper": claim.paper, "value": mean, "low": low, "high": high,
        "interval": grouped_name(groups(weakest)), "unit": claim.unit, "margin": claim.margin, "beside": beside,
        "verdict": verdict, "why": why, "command": claim.command,
    }  # fmt: skip


def _too_little(name: str, has: float, needed: float) -> str:
    """Why a claim cannot be tested where too little was forgotten."""
    return f"{name.replace('_', ' ')} {'unknown' if has != has else _two(has)}, needed {needed:g}"


def _verdict(parts: Sequence[tuple[float, float, float]], margin: float) -> str:
    """Not seen if the interval of any part lies below the margin, seen if all lie at or above it, else undecided."""
    if any(high < margin for _, _, high in parts):
        return NOT_SEEN
    return SEEN if all(low >= margin for _, low, _ in parts) else UNDECIDED


def _prediction(predictors: pd.DataFrame) -> dict[str, Any]:
    """The row of the claim that similarity of the vector predicts performance."""
    found = {row["predictor"]: row for row in predictors.to_dict("records")}
    own = found["activation_cosine"]
    verdict = _verdict([(own["r2"], own["r2_lo"], own["r2_hi"])], R2)
    if verdict == SEEN and any(found[name]["r2"] >= own["r2"] for name in RIVALS):
        verdict = NOT_SEEN
    beside = ", ".join(f"{name.replace('_', ' ')} {row['r2']:.2f}" for name, row in found.items() if row is not own)
    row = _plain_row("prediction", PREDICTION, "R² = 0.873", verdict, "ivlens dynamics CHECKPOINTS")
    numbers = {"value": own["r2"], "low": own["r2_lo"], "high": own["r2_hi"], "interval": own.get("interval", "")}
    return row | numbers | {"unit": "R² where not fitted", "margin": R2, "beside": beside}


def _plain_row(name: str, text: str, paper: str, verdict: str, command: str) -> dict[str, Any]:
    """The row of a claim without numbers."""
    nan = float("nan")
    return {
        "claim": name, "text": text, "paper": paper, "value": nan, "low": nan, "high": nan, "interval": "", "unit": "",
        "margin": nan, "beside": "", "verdict": verdict, "why": "", "command": command,
    }  # fmt: skip


def interval_text(row: Mapping[str, Any]) -> str:
    """The number of a claim as text, with its interval, the kind of interval and the unit."""
    if row["value"] != row["value"]:
        return "–"
    kind = f"; {row['interval']}" if row.get("interval") else ""
    return f"{_two(row['value'])} [{_two(row['low'])}, {_two(row['high'])}{kind}] {row['unit']}"


def _two(value: float) -> str:
    """A number with two decimals; never "-0.00"."""
    return f"{round(value, 2) + 0.0:.2f}"
