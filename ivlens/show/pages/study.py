"""The study's page: the paper's analysis with this study's numbers, as one HTML file that loads nothing else."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from html import escape
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ivlens.common.names import path_of
from ivlens.common.version import __version__
from ivlens.runs.study.claims import claim_table, interval_text
from ivlens.runs.study.frontier import equal_scores
from ivlens.runs.study.plan import PLAIN
from ivlens.runs.study.results import TABLES, StudyResult
from ivlens.show.figures.answers import LABELS, answers_plot
from ivlens.show.figures.causal import NAMES, causal_plot, guidance_plot
from ivlens.show.figures.dynamics import drift_heatmap, dynamics_curves, prediction_plot
from ivlens.show.figures.forgetting import forgetting_plot
from ivlens.show.figures.rows import mean
from ivlens.show.figures.similarity import similarity_matrix
from ivlens.show.figures.theme import Theme
from ivlens.show.figures.training import forgetting_against_learning
from ivlens.show.figures.transplants import splice_plot, transplant_plot
from ivlens.show.pages.html import embedded, script, style, template
from ivlens.tasks.bank import load_task

# what the page says first: how far its results reach, for the built-in model and for any other
WARNING = (
    "The built-in model <b>pocket</b> was made so that Instruction Vectors work in it. This page demonstrates how the "
    "claims are tested; it is <b>no evidence about large models</b>, and its intervals cover one base model and one "
    "sequence of new tasks."
)
OTHER = (
    "One model, one sequence of new tasks, one seed: the intervals say how much the numbers depend on which earlier "
    "tasks were asked, and nothing about other models or other trainings."
)


def write_page(result: StudyResult, path: str | Path) -> Path:
    """Write the study's page to `path` (about 5 MB, almost all of it plotly.js)."""
    target = path_of(path)
    target.write_text(page(result), encoding="utf-8")
    return target


def study_figures(result: StudyResult, theme: Theme) -> dict[str, go.Figure]:
    """All figures of the page by the names that its HTML uses, in the colours of one theme."""
    first, last = result.dynamics.stages[0], result.dynamics.stages[-1]
    # a task has two vectors here, before and after the training; names have to be distinct
    vectors = [
        replace(stage.vector(task, first.tasks[task].top_heads(result.options.k)), task=f"{task} · {when}")
        for when, stage in (("before", first), ("after", last))
        for task in first.tasks
    ]
    # without the first checkpoint, from which all cosines and distances are measured
    later = result.dynamics.tasks.loc[result.dynamics.tasks["step"].to_numpy() > 0]
    return {
        "forgetting": forgetting_plot(result.forgetting, theme=theme),
        "answers": answers_plot(result.answers, theme=theme),
        "dynamics": dynamics_curves(result.dynamics.tasks, theme=theme),
        "drift": drift_heatmap(result.dynamics, theme=theme),
        "prediction": prediction_plot(pd.DataFrame(later), result.predictors, theme=theme),
        "similarity": similarity_matrix(vectors, theme=theme),
        "causal": causal_plot(result.causal, theme=theme),
        "transplant": transplant_plot(result.transplants, theme=theme),
        "splices": splice_plot(result.splices, theme=theme),
        "guidance": guidance_plot(result.evidence, theme=theme),
        "frontier": forgetting_against_learning(result.frontier, theme=theme),
    }


def page(result: StudyResult) -> str:
    """The page as one HTML text, which loads nothing from elsewhere."""
    name = escape(Path(result.model.name).name)
    claims = claims_of(result)
    # the sections of the page quote single claims by their names
    numbers = {row["claim"]: row for row in claims.to_dict("records")}
    head, body = _scores(result)
    task = load_task(result.options.earlier[0])
    return template("study.html").substitute(
        title=f"What {name} forgets",
        heading=f"What <code>{name}</code> forgets, and whether its Instruction Vectors stay",
        lead=_lead(result),
        warning=WARNING if result.model.name == "pocket" else OTHER,
        style=style(),
        claims="".join(_claim(row) for row in claims.to_dict("records")),
        cloze=escape((task.clozes or ("…",))[0].replace("{x}", task.examples[0].input)),
        forgetting_text=_verdict(numbers["instruction"]),
        answers_text=_said(result),
        general_head=_row(["", *(label for _, label in _GENERAL)], "th"),
        general=_general(result),
        dynamics_text=_verdict(numbers["cosine"]),
        maps_text="Drift: the change in what a head writes on average, as a share of what it wrote at first (1 for a "
        "head that fell silent). R²: of a line that was fitted on the other tasks. Step and weight distance are rival "
        "predictors that know nothing of vectors.",
        causal_text=_verdict(numbers["reinjection"]) + " " + _verdict(numbers["overlaid"]),
        transplant_text=_verdict(numbers["activation"])
        + " Each prompt has the outputs that the other model has on the "
        "same prompt; if the heads lost the task, and not what is made of their outputs, they bring it back.",
        guidance_text="The same training again, guided. <b>iv</b> is the method of the papers (progressive "
        "intervention, IV-based KL, head consistency); its control has a zero vector in the place of the Instruction "
        "Vector; rehearsal gives earlier instructions on new inputs. "
        f"{_verdict(numbers['guidance'])} {_verdict(numbers['vector'])}",
        equal_text=f"{_verdict(numbers['equal'])} {_verdict(numbers['equal_vector'])}",
        equal=_equal(result),
        scores_head=head,
        scores=body,
        settings=_settings(result),
        files=_files(),
        plotly=get_plotlyjs(),
        script=script(),
        figures=embedded(lambda theme: study_figures(result, theme)),
    )


def claims_of(result: StudyResult) -> pd.DataFrame:
    """The table of claims for one study, with numbers, margins and verdicts."""
    return claim_table({"study": result.evidence}, result.predictors)


def _lead(result: StudyResult) -> str:
    """The page's first paragraph: what was lost in the training, and what became of the vectors."""
    # the row over all tasks, by the measure that counts all tokens of an answer
    lost = result.forgetting.to_dict("records")
    row = next(one for one in lost if one["task"] == "all tasks" and one["measure"] == "seq_prob")
    cosine = mean(row["value"] for row in result.evidence.to_dict("records") if row["name"] == "iv_cosine")
    new = " and ".join(f"<code>{escape(task)}</code>" for task in result.options.new)
    return (
        f"Trained on {new}, the model answers what {len(result.options.earlier)} earlier tasks ask with a probability "
        f"of {row['instruction_after']:.2f} instead of {row['instruction_before']:.2f} where an instruction tells it "
        f"to, and of {row['knowledge_after']:.2f} instead of {row['knowledge_before']:.2f} where a sentence asks for "
        f"the same. The Instruction Vectors of these tasks have kept a cosine of {cosine:.2f}."
    )


def _verdict(row: dict) -> str:
    """A claim's verdict, number and margin in one sentence."""
    why = f" ({escape(row['why'])})" if row["why"] else ""
    verdict = f"<b>{escape(row['verdict'].capitalize())}</b>{why}"
    measured = row["value"] == row["value"]
    return f"{verdict}: {escape(interval_text(row))}, margin {row['margin']:g}." if measured else f"{verdict}."


def _claim(row: dict) -> str:
    """The row of one claim in the table of claims."""
    # some claims have no margin: they cannot be tested here
    margin = "" if math.isnan(row["margin"]) else f"<small>margin {row['margin']:g}</small>"
    why = f"<small>{escape(row['why'])}</small>" if row["why"] else ""
    return (
        f"<tr><td class=claim>{escape(row['text'])}</td><td>{escape(row['paper'])}</td><td>{escape(interval_text(row))}"
        f"{margin}</td><td>{escape(row['beside'])}</td><td class=verdict>{escape(row['verdict'])}"
        f"{why}</td>"
        f"<td><code>{escape(row['command'])}</code></td></tr>"
    )


_GENERAL = (
    ("perplexity", "perplexity of plain text"),
    ("gp", "general tasks, by instruction"),
    ("ip", "general tasks, by demonstrations"),
)  # measures of `general_scores`


def _row(cells: Sequence[str], tag: str = "td") -> str:
    """A row of a table: a name, and numbers."""
    first, *others = cells
    return (
        f"<tr><th>{escape(first)}</th>" + "".join(f"<{tag} class=n>{escape(one)}</{tag}>" for one in others) + "</tr>"
    )


def _name(guidance: str) -> str:
    """How the page calls a model: by the guidance of its training."""
    return "before training" if guidance == "before" else NAMES.get(guidance, guidance)


def _said(result: StudyResult) -> str:
    """What became of the right answers, in one sentence."""
    kinds = [row["kind"] for row in result.answers.to_dict("records") if row["run"] == PLAIN]
    parts = [f"{LABELS[kind]} {n}" for kind in LABELS if kind != "right" and (n := kinds.count(kind))]
    what = ", ".join(parts) or "none"
    n_wrong = len(kinds) - kinds.count("right")
    return f"Wrong after the training without guidance are {n_wrong} of {len(kinds)} answers: {escape(what)}."


def _general(result: StudyResult) -> str:
    """The rows of general abilities: the perplexity, and means over the general tasks."""
    rows = []
    for run, own in result.general.groupby("run", sort=False):
        found = own.to_dict("records")
        # a task whose answers all begin alike has no ranked accuracy (NaN)
        seen = [row for row in found if row["value"] == row["value"]]
        values = [[row["value"] for row in seen if row["measure"] == measure] for measure, _ in _GENERAL]
        rows.append(_row([_name(str(run)), *(f"{mean(one):.2f}" if one else "–" for one in values)]))
    return "".join(rows)


def _equal(result: StudyResult) -> str:
    """A row for each guidance and new task: where the score on the new task was first reached, and what was kept."""
    rows = []
    for row in equal_scores(result.frontier).to_dict("records"):
        missed = row["step"] != row["step"]
        found = ["not reached", "–"] if missed else [f"{row['step']:.0f}", f"{row['old']:.2f}"]
        rows.append(_row([_name(str(row["guidance"])), str(row["task"]), f"{row['wanted']:.2f}", *found]))
    return "".join(rows)


def _scores(result: StudyResult) -> tuple[str, str]:
    """Head and body of the table of accuracies on the new tasks, one row per guidance."""
    rows = result.new_scores.to_dict("records")
    names = [name for name in rows[0] if name != "guidance"]
    head = "<tr><th>guidance</th>" + "".join(f"<th class=n>{escape(str(name))}</th>" for name in names) + "</tr>"
    body = "".join(
        f"<tr><th>{escape(NAMES.get(str(row['guidance']), str(row['guidance'])))}</th>"
        + "".join(f"<td class=n>{row[name]:.2f}</td>" for name in names)
        + "</tr>"
        for row in rows
    )
    return head, body


def _settings(result: StudyResult) -> str:
    """How everything was measured, as a list of names and values."""
    model, options = result.model, result.options
    told = "" if options.training is None else f"; trained and judged on new tasks with {options.training}"
    # what is needed to judge the numbers, or to measure them again
    facts = {
        "model": f"{model.name} · {model.n_layers} layers × {model.n_heads} heads · weights {model.weights_hash[:12]}",
        "earlier tasks": ", ".join(options.earlier),
        "new tasks": " then ".join(options.new),
        "training": f"{options.method}, {options.steps} steps each, lr {options.lr:g}, batch {options.batch_size}",
        "splits": "fit (heads, means), select (settings, the curves of section 2), test (all else), by the input",
        "vectors": f"{options.k} heads, effects on {options.n_prompts} corrupted prompts",
        "controls": f"{options.n_draws} random vectors of equal norm, {options.n_draws} sets of random heads, the "
        "other earlier tasks' vectors; quoted is the kind that does best on select, on average",
        "prompts": f"at most {options.n_judge_prompts} of each task and split; {options.recipe}{told}",
        "seed": f"{options.seed} of the trainings",
        "made with": f"ivlens {__version__} in {result.seconds:.0f} s",
    }
    return "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())


def _files() -> str:
    """Which files lie in the same folder as the page."""
    names = ("claims", *TABLES, "dynamics_tasks", "dynamics_heads")
    links = ", ".join(f'<a href="{name}.parquet">{name}.parquet</a>' for name in names)
    return f"Beside this page: {links}, and all figures of it as JSON that plotly reads."


def about(result: StudyResult) -> dict:
    """The main results as plain values, for `ivlens study --json`."""
    return {
        "model": asdict(result.model),
        "seconds": round(result.seconds, 1),
        "claims": claims_of(result).to_dict("records"),
        "new_scores": result.new_scores.to_dict("records"),
    }
