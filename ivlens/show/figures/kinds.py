"""Which figures and tables are drawn from each kind of result. A new kind is one entry of `KINDS_OF_RESULTS`."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd

from ivlens.analysis.attention.files import FILE as ATTENTION_FILE
from ivlens.analysis.attention.results import HeadAttention
from ivlens.effects.files import FILE as EFFECTS_FILE
from ivlens.effects.results import HeadEffects
from ivlens.runs.suites.report import latex, summary_of
from ivlens.show.figures.attention import attention_bars
from ivlens.show.figures.benchmarks import COLUMNS, method_summary, score_matrices
from ivlens.show.figures.evaluation_kinds import EVALUATION_KINDS
from ivlens.show.figures.found import Found
from ivlens.show.figures.heads import head_heatmap, short_name
from ivlens.show.figures.interventions import intervention_curves
from ivlens.show.figures.kind import Kind, count, each
from ivlens.show.figures.maps import head_maps, inches_of
from ivlens.show.figures.paper import Drawing
from ivlens.show.figures.rows import grouped, interval_kinds, rows_of
from ivlens.show.figures.similarity import similarity_matrix
from ivlens.show.figures.study_kinds import STUDY_KINDS
from ivlens.show.figures.sweeps import strength_curves, strength_map
from ivlens.show.figures.tables import tuning_table
from ivlens.show.figures.tokens import attention_tokens
from ivlens.show.figures.tokens import inches_of as inches_of_tokens
from ivlens.show.figures.training import forgetting_against_learning, shown_kinds, trained_once, training_curves
from ivlens.vectors.file import FILE as VECTOR_FILE
from ivlens.vectors.vector import InstructionVector

MARKS = "outlined with their rank: the strongest heads; grey: the interval includes 0"
PANELS = 12  # the largest number of head maps in one figure


def draw_all(files: Sequence[Found]) -> tuple[list[Drawing], list[Found]]:
    """The drawings of all runs, with distinct names, and the files that are of no known kind.

    Raises:
        ValueError: a table has the columns of some kind, but its content cannot be drawn.
    """
    runs = grouped(files, lambda file: file.group)
    drawings, known = list[Drawing](), set[Found]()
    for group, members in runs.items():
        by_kind = grouped((file for file in members if _kind_of(file)), lambda file: _kind_of(file))
        for kind, chosen in by_kind.items():
            known.update(chosen)  # also where nothing is drawn: the file is not unknown
            if kind.unless in {other.name for other in by_kind}:
                continue
            for drawing in kind.draw(chosen):
                drawings.append(replace(drawing, name="-".join(filter(None, [group, drawing.name]))))
    return drawings, [file for file in files if file not in known]


def _kind_of(file: Found) -> Kind | None:
    """The first kind that recognises the file; None: no kind does."""
    if file.has("table"):  # several tables in one file, as benches keep them: their columns say nothing about a row
        return None
    return next((kind for kind in KINDS_OF_RESULTS if kind.holds(file)), None)


# --- one function for each kind: its drawings, with captions ---------------------------------------------------------


def _heads(files: Sequence[Found]) -> Iterator[Drawing]:
    effects = [file.loaded(HeadEffects) for file in files]
    models = [*grouped(effects, lambda found: found.model.key)]
    scores = [*grouped(effects, lambda found: found.settings.get("score"))]
    # maps share a colour scale only where model and score, and so the unit, are the same
    sets = grouped(effects, lambda found: (found.model.key, found.settings.get("score")))
    for (model, score), results in sets.items():
        suffix = "" if len(models) == 1 else f"-model{1 + models.index(model)}"
        suffix += "" if len(scores) == 1 else f"-{score}"
        if len(results) == 1:
            n_layers, n_heads = results[0].aie.shape
            caption = (
                f"Average indirect effect of every head of {short_name(results[0])} on the task {results[0].task}, "
                f"over {len(results[0].cie)} corrupted prompts; {MARKS}."
            )
            inches = min(4.2, max(2.4, 1.0 + 2.2 * max(n_layers / n_heads, n_layers / 16)))
            yield Drawing(f"heads{suffix}", caption, head_heatmap(results[0]), inches=inches)
        for start in range(0, len(results), PANELS) if len(results) > 1 else ():
            page = results[start : start + PANELS]
            n_tasks, n_prompts = len({found.task for found in page}), sorted({len(found.cie) for found in page})
            over = f"{n_prompts[0]} to {n_prompts[-1]}" if len(n_prompts) > 1 else f"{n_prompts[0]}"
            maps = "" if n_tasks == len(page) else f" in {len(page)} maps"
            caption = (
                f"Average indirect effect of every head of {short_name(page[0])} on {_tasks(n_tasks)}{maps}, over "
                f"{over} corrupted prompts each; {MARKS}."
            )
            number = f"-{1 + start // PANELS}" if len(results) > PANELS else ""
            inches = 0.7 + inches_of(page[0].aie.shape[0]) * math.ceil(len(page) / COLUMNS)
            yield Drawing(f"heads{suffix}{number}", caption, head_maps(page), width="page", inches=inches)


def _tasks(n: int) -> str:
    return "one task" if n == 1 else f"{n} tasks"


def _head_table(name: str, file: Found) -> Iterator[Drawing]:
    by_score = [*file.frame.groupby("score")] if "score" in file.frame else [("", file.frame)]
    for score, frame in by_score:
        n_tasks = count(frame, "task")
        caption = f"Average indirect effect of every head on {_tasks(n_tasks)}; {MARKS}."
        width = "column" if n_tasks < 3 else "page"
        inches = max(2.4, 0.7 + inches_of(1 + max(map(int, frame["layer"].tolist()))) * math.ceil(n_tasks / COLUMNS))
        yield Drawing(
            name + (f"-{score}" if len(by_score) > 1 else ""), caption, head_maps(frame), width=width, inches=inches
        )


def _attention(name: str, file: Found) -> Iterator[Drawing]:
    tasks = [*file.frame.groupby("task", sort=False)]
    for task, frame in tasks:
        suffix = "-" + re.sub(r"[^\w.-]+", "_", str(task)) if len(tasks) > 1 else ""
        yield _shares(name + suffix, str(task), frame)


def _attention_file(name: str, file: Found) -> Iterator[Drawing]:
    found = file.loaded(HeadAttention)
    yield _shares(name, found.task, found.frame())
    if all(one.shown for one in found.looked.values()):
        for kind in found.prompts:
            figure = attention_tokens(found, prompts=kind)
            caption = (
                f"One {kind} prompt of the task {found.task}, for each head: the darker a token, the more the last "
                "token attends to it; the line below it tells which part of the prompt it belongs to."
            )
            yield Drawing(f"{name}-{kind}", caption, figure, width="page", inches=min(8.5, inches_of_tokens(figure)))


def _shares(name: str, task: str, frame: pd.DataFrame) -> Drawing:
    caption = (
        f"Attention from the last prompt token on the task {task}, summed over each part of the prompt: means over "
        f"{max(frame['n'])} prompts of each kind; beside it each head's induction and previous-token score."
    )
    n_bars = min(20, count(frame, "label")) * count(frame, "prompts")
    return Drawing(name, caption, attention_bars(frame), width="page", inches=min(8.0, 1.0 + 0.2 * n_bars))


def _similarity(files: Sequence[Found]) -> Iterator[Drawing]:
    vectors = [file.loaded(InstructionVector) for file in files]
    by_model = grouped(vectors, lambda vector: vector.model.key)
    for rank, group in enumerate(by_model.values(), start=1):
        # one vector per task, the last one where a run saved several
        distinct = list({vector.task: vector for vector in group}.values())
        if len(distinct) < 2:
            continue
        suffix = "" if len(by_model) == 1 else f"-model{rank}"
        caption = f"Cosines between the Instruction Vectors of {len(distinct)} tasks, similar ones side by side."
        width = "column" if len(distinct) <= 4 else "page"  # values in the cells need room
        inches = min(6.5, 1.6 + 0.36 * len(distinct))
        yield Drawing(f"similarity{suffix}", caption, similarity_matrix(distinct), width=width, inches=inches)


def _curves(name: str, file: Found) -> Iterator[Drawing]:
    caption = (
        "Accuracy on bare select inputs by layer, every vector at its best strength in each layer; "
        "bands: Wilson 95 % over prompts; dashed: no vector."
    )
    yield Drawing(name, caption, intervention_curves(file.frame), width="page", inches=2.5)


def _strengths(name: str, file: Found) -> Iterator[Drawing]:
    n_tasks = count(file.frame, "task")
    of = f" (mean of {n_tasks} tasks)" if n_tasks > 1 else ""
    caption = f"Accuracy on bare select inputs{of} by layer, one line per strength; dashed: no vector."
    yield Drawing(name, caption, strength_curves(file.frame), width="page", inches=2.5)
    caption = f"Accuracy on bare select inputs{of} by layer (columns) and strength (rows); outlined: the best setting."
    n_alphas, wide = count(file.frame, "alpha"), count(file.frame, "layer") > 6 or count(file.frame, "site") > 1
    figure = strength_map(file.frame)
    yield Drawing(f"{name}-map", caption, figure, width="page" if wide else "column", inches=0.8 + 0.25 * n_alphas)


def _training(name: str, file: Found) -> Iterator[Drawing]:
    caption = "Accuracy on select inputs of the new task and of earlier tasks along the training."
    yield Drawing(name, caption, training_curves(file.frame))


def _trade_off(name: str, file: Found) -> Iterator[Drawing]:
    frame = file.frame
    kinds, shown = count(frame, "guidance"), len(shown_kinds(frame["guidance"]))
    once = trained_once(rows_of(frame, ("guidance", "new"), "ivlens bench"))
    shows = (
        "the course of each training"
        if once
        else "the best mean accuracy on earlier tasks among all trainings and judged steps that reach at least a given "
        "accuracy on the new one"
    )
    caption = f"Forgetting against learning: {shows}, on select inputs."
    caption += f" {shown} of {kinds} kinds of guidance are shown." if shown < kinds else ""
    wide = count(frame, "method") > 1
    yield Drawing(
        name, caption, forgetting_against_learning(frame), width="page" if wide else "column", inches=2.7
    )  # fmt: skip


def _matrices(name: str, file: Found) -> Iterator[Drawing]:
    n = len(file.frame[["method", "guidance"]].drop_duplicates())
    caption = "Score on every task (columns) before training and after each task was trained (rows), first order."
    width = "column" if n == 1 else "page"
    yield Drawing(name, caption, score_matrices(file.frame), width=width, inches=0.7 + 1.5 * math.ceil(n / COLUMNS))


def _methods(name: str, file: Found) -> Iterator[Drawing]:
    frame = file.frame
    n, summary = len(frame[["method", "guidance"]].drop_duplicates()), summary_of(frame)
    runs = " to ".join(str(each) for each in sorted({min(summary["runs"]), max(summary["runs"])}))
    caption = (
        "Mean score on the trained tasks right after each was trained (AP) and at the end (FP), with intervals "
        f"({interval_kinds(summary.to_dict('records'))}) over {runs} runs; the distance between the marks is what was "
        "forgotten."
    )
    yield Drawing(name, caption, method_summary(frame), inches=0.9 + 0.28 * n)
    yield Drawing(name, caption, table=latex(summary))


def _tuning_scores(name: str, file: Found) -> Iterator[Drawing]:
    caption = "Accuracy on test inputs before and after a training on the new task."
    yield Drawing(name, caption, table=tuning_table(file.frame))


KINDS_OF_RESULTS = (
    *STUDY_KINDS,
    Kind("heads", lambda file: file.format == EFFECTS_FILE.format, _heads),
    Kind("attention_file", lambda file: file.format == ATTENTION_FILE.format, each("attention", _attention_file)),
    Kind("similarity", lambda file: file.format == VECTOR_FILE.format, _similarity),
    Kind(
        "attention",
        lambda file: file.has("task", "prompts", "label", "segment", "share", "low", "high", "n"),
        each("attention", _attention),
        "attention_file",
    ),
    Kind("head_table", lambda file: file.has("task", "layer", "head", "aie"), each("heads", _head_table), "heads"),
    Kind(
        "curves",
        lambda file: (
            file.has("condition", "vector", "layer", "alpha", "site", "accuracy", "n") and not file.has("accuracy_lo")
        ),
        each("intervention", _curves),
    ),
    *EVALUATION_KINDS,
    Kind("strengths", lambda file: file.has("layer", "alpha", "site", "accuracy"), each("strengths", _strengths)),
    Kind("methods", lambda file: file.has("method", "guidance", "ap", "fp", "forget"), each("methods", _methods)),
    Kind(
        "matrices",
        lambda file: file.has("method", "guidance", "order", "stage", "trained", "task", "score"),
        each("scores", _matrices),
    ),
    Kind(
        "trade_off",
        lambda file: file.has("guidance", "new", "old") or file.has("guidance", "new", "watched"),
        each("forgetting", _trade_off),
    ),
    Kind("training", lambda file: file.has("step", "new", "loss"), each("training", _training)),
    Kind("tuning_scores", lambda file: file.has("task", "role", "before"), each("tuning", _tuning_scores)),
)
