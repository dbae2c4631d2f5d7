"""Kinds of results that `ivlens forget`, `ivlens dynamics` and `ivlens study` write, and what is drawn from each."""

from collections.abc import Iterator

import pandas as pd

from ivlens.show.figures.answers import RUNS, answers_plot
from ivlens.show.figures.causal import causal_plot, guidance_plot
from ivlens.show.figures.dynamics import dynamics_curves
from ivlens.show.figures.forgetting import forgetting_plot
from ivlens.show.figures.found import Found
from ivlens.show.figures.kind import Kind, count, each
from ivlens.show.figures.knowledge import drift_of_table, knowledge_curves
from ivlens.show.figures.panels import COLUMNS
from ivlens.show.figures.paper import Drawing
from ivlens.show.figures.rows import interval_kinds
from ivlens.show.figures.tables import claims_table
from ivlens.show.figures.transplants import splice_plot, transplant_plot


def _forgetting(name: str, file: Found) -> Iterator[Drawing]:
    frame = file.frame
    last, kinds = frame, interval_kinds(frame.to_dict("records"))
    if "checkpoint" in frame:
        caption = (
            "Probability of the right answers at each checkpoint, with the instruction and in clozes; means "
            f"over tasks, bands: {kinds} of what was lost."
        )
        yield Drawing(f"{name}-along", caption, knowledge_curves(frame))
        # before and after: the first checkpoint and the last one
        last = pd.DataFrame(frame[frame["checkpoint"] == frame["checkpoint"].iloc[-1]])
    caption = (
        "Probability of the right answers before training (open) and after it (filled), with the instruction and in "
        f"clozes; lines over filled marks: {kinds} of the drop."
    )
    yield Drawing(name, caption, forgetting_plot(last), width="page", inches=0.9 + 0.36 * count(last, "task"))


def _dynamics(name: str, file: Found) -> Iterator[Drawing]:
    caption = (
        "Accuracy, and cosine of each Instruction Vector with its first version, along the training; thin: each task, "
        "thick: mean; dashed: cosine of two halves of the prompts; dotted: cosine between tasks."
    )
    yield Drawing(name, caption, dynamics_curves(file.frame), width="page", inches=2.6)


def _drift(name: str, file: Found) -> Iterator[Drawing]:
    caption = (
        "Drift of every head at the last checkpoint: the change in its mean write, as a share of the first mean write; "
        "mean over tasks."
    )
    yield Drawing(name, caption, drift_of_table(file.frame))


def _causal(name: str, file: Found) -> Iterator[Drawing]:
    caption = "Accuracy with vectors of one checkpoint in another, and with their controls; small marks are tasks."
    n = count(file.frame, "test")
    yield Drawing(name, caption, causal_plot(file.frame), width="page", inches=1.0 + 0.7 * n)


def _answers(name: str, file: Found) -> Iterator[Drawing]:
    caption = "What the model says to the earlier tasks' test prompts before and after the training: shares of prompts."
    yield Drawing(name, caption, answers_plot(file.frame), width="page", inches=1.2 + 0.4 * count(file.frame, "task"))


def _is_answers(file: Found) -> bool:
    """Whether a table says what the models of one study say; a table of several studies has their names as runs."""
    return file.has("run", "task", "said", "kind") and bool(RUNS.keys() & set(file.frame["run"]))


def _guidance(name: str, file: Found) -> Iterator[Drawing]:
    caption = "Probability of earlier tasks' answers, with their instruction, after each guidance; small marks: tasks."
    yield Drawing(name, caption, guidance_plot(file.frame), width="page", inches=2.4)


def _claims(name: str, file: Found) -> Iterator[Drawing]:
    kinds = interval_kinds(file.frame.to_dict("records"))
    caption = (
        f"Claims of the paper, each with its number here, its interval ({kinds}), the margin fixed beforehand and a "
        "verdict."
    )
    yield Drawing(name, caption, table=claims_table(file.frame))


def _transplants(name: str, file: Found) -> Iterator[Drawing]:
    n, kinds = count(file.frame, "task"), interval_kinds(file.frame.to_dict("records"))
    caption = (
        "Accuracy of the tuned and of the first model on clean test prompts, with outputs of the other's heads (for "
        f"each prompt its own); bands: {kinds} over prompts; dashed: the model as it is; dotted: the giving model."
    )
    yield Drawing(name, caption, transplant_plot(file.frame), width="page", inches=0.5 + 1.9 * n)


def _splices(name: str, file: Found) -> Iterator[Drawing]:
    n, kinds = count(file.frame, "task"), interval_kinds(file.frame.to_dict("records"))
    caption = (
        "Accuracy on clean test prompts with the lower blocks of one model and the upper ones of the other; bands: "
        f"{kinds} over prompts."
    )
    yield Drawing(
        name,
        caption,
        splice_plot(file.frame),
        width="column" if n == 1 else "page",
        inches=0.5 + 1.9 * -(-n // COLUMNS),
    )


def _is_series(file: Found) -> bool:
    """Whether a table holds one series of checkpoints; a table of several runs, which has a column `run`, does not."""
    return file.has("checkpoint", "task", "iv_cosine_fixed", "split_half") and not file.has("run")


STUDY_KINDS = (
    Kind(
        "forgotten",
        lambda file: file.has("task", "measure", "instruction_before", "knowledge_before", "excess"),
        each("forgotten", _forgetting),
    ),
    Kind("dynamics", _is_series, each("dynamics", _dynamics)),
    Kind("drift", lambda file: file.has("checkpoint", "layer", "head", "drift"), each("drift", _drift)),
    Kind("causal", lambda file: file.has("test", "task", "condition", "accuracy"), each("causal", _causal)),
    Kind(
        "transplant", lambda file: file.has("into", "heads", "k", "accuracy", "gain"), each("transplant", _transplants)
    ),
    Kind("answers", _is_answers, each("answers", _answers)),
    Kind("splices", lambda file: file.has("lower", "layer", "accuracy"), each("splices", _splices)),
    # these three names occur in many tables, so this one must have no other column
    Kind("guidance", lambda file: file.columns == {"name", "task", "value"}, each("guidance", _guidance)),
    Kind("claims", lambda file: file.has("claim", "text", "value", "margin", "verdict"), each("claims", _claims)),
)  # fmt: skip
